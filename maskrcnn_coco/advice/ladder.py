"""The ladder: train the head multipliers 3, 5, 7, 10 briefly, in order, side by side, and mark the first unsafe one.

It is what people were told to do by hand. Each rung starts from the same weights, with the same batches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from maskrcnn_coco.advice.limits import Settled, judge, rising
from maskrcnn_coco.advice.trials import Trials
from maskrcnn_coco.guard.early_warning import own_level

MULTIPLIERS = (3.0, 5.0, 7.0, 10.0)
HEADS = ("box_head", "mask_head")
COLOURS = ("#3b6fb6", "#3f9e6e", "#b8860b", "#b5443c", "#7a5fa0", "#555555")


@dataclass(frozen=True)
class Rung:
    """One short training. ``safe``: no alarm of the guard and no jump of a component's own losses.

    ``blame`` is the component whose losses jumped most, where unsafe. ``losses`` are the total losses by step.
    """

    multiplier: float
    safe: bool
    steps: int
    final_loss: float
    highest_loss: float
    grad_norm: float
    symptom: str | None
    blame: str | None
    losses: tuple[float, ...]


def climb(
    trials: Trials,
    settled: Settled,
    lr: Mapping[str, float],
    *,
    multipliers: Sequence[float] = MULTIPLIERS,
    steps: int = 30,
    say: Callable[[str], None] | None = None,
) -> list[Rung]:
    """Train each multiplier in order from ``settled``.

    Args:
        lr: learning rate per component; the heads' are replaced by the backbone's times the multiplier.
        steps: of each rung; one that raises the guard's alarm ends there.
    """
    rungs = []
    for multiplier in multipliers:
        rates = {c: (lr["backbone"] * multiplier if c in HEADS else v) for c, v in lr.items()}
        trials.load(settled.state)
        trial = trials.run(rates, steps, first_step=settled.state.step, ramp=rising(steps // 2))
        verdicts = {c: judge(trial, c, own_level(settled.trial.records, c)) for c in rates}
        safe = all(v.stable for v in verdicts.values())
        norms = sorted(r.grad_norm for r in trial.records)
        rungs.append(
            Rung(
                multiplier,
                safe,
                trial.steps,
                trial.final_loss,
                max(trial.losses),
                norms[len(norms) // 2],
                trial.symptom,
                None if safe else max(verdicts, key=lambda c: verdicts[c].peak),
                tuple(trial.losses),
            )
        )
        if say:
            say(f"head multiplier {multiplier:g}: {'safe' if safe else 'UNSAFE'}, loss {rungs[-1].final_loss:.3g}")
    return rungs


def first_unsafe(rungs: Sequence[Rung]) -> Rung | None:
    """The first rung, in the order they were trained, that is not safe."""
    return next((r for r in rungs if not r.safe), None)


def table(rungs: Sequence[Rung]) -> tuple[list[str], list[list[str]]]:
    """Header and rows for `console.Console.table`."""
    header = ["multiplier", "verdict", "steps", "loss at the end", "highest loss", "median grad norm"]
    worst = first_unsafe(rungs)
    rows = []
    for r in rungs:
        verdict = "safe" if r.safe else f"unsafe ({r.blame})" + (" ← first" if r is worst else "")
        cells = [f"{v:.3g}" for v in (r.final_loss, r.highest_loss, r.grad_norm)]
        rows.append([f"{r.multiplier:g}", verdict, str(r.steps), *cells])
    return header, rows


def svg(rungs: Sequence[Rung], *, width: int = 640, height: int = 300) -> str:
    """The loss curves, one line a rung, logarithmic; the first unsafe one is dashed. Self-contained SVG."""
    left, right, top, bottom = 56, 150, 20, 36
    finite = [v for r in rungs for v in r.losses if math.isfinite(v) and v > 0]
    if not finite:
        return f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"></svg>'
    low, high = math.log10(min(finite)), math.log10(min(max(finite), 1e6 * min(finite)))
    high = max(high, low + 0.1)
    steps = max(2, *(len(r.losses) for r in rungs))

    def x(step: float) -> float:
        return left + (width - left - right) * step / (steps - 1)

    def y(loss: float) -> float:
        level = math.log10(loss) if loss > 0 and math.isfinite(loss) else high
        return top + (height - top - bottom) * (1 - (min(max(level, low), high) - low) / (high - low))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="12"><title>Loss by step for each head multiplier</title>'
    ]
    parts += [
        f'<line x1="{left}" x2="{width - right}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
        f'<text x="{left - 6}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555">{float(f"{value:.2g}"):g}</text>'
        for value in (10**low, 10 ** ((low + high) / 2), 10**high)
    ]
    parts += [
        f'<text x="{x(s):.1f}" y="{height - bottom + 18}" text-anchor="middle" fill="#555">{s + 1}</text>'
        for s in (0, steps - 1)
    ]
    worst = first_unsafe(rungs)
    for i, r in enumerate(rungs):
        points = " ".join(f"{x(s):.1f},{y(v):.1f}" for s, v in enumerate(r.losses))
        dash = ' stroke-dasharray="5 3"' if r is worst else ""
        label = f"× {r.multiplier:g}" + ("" if r.safe else " unsafe") + (" (first)" if r is worst else "")
        colour = COLOURS[i % len(COLOURS)]
        parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="2"{dash} points="{points}"/>')
        parts.append(f'<text x="{width - right + 10}" y="{top + 16 + 18 * i}" fill="{colour}">{label}</text>')
    parts.append(f'<text x="{(left + width - right) / 2:.0f}" y="{height - 8}" text-anchor="middle">step</text>')
    parts.append(f'<text x="{left + 4}" y="{top - 4}" fill="#555">loss</text></svg>')
    return "".join(parts)
