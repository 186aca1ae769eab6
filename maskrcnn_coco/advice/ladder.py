"""The ladder: train the head multipliers 3, 5, 7, 10 briefly, in order, side by side, and mark the first unsafe one.

It is what people were told to do by hand. Each rung starts from the same weights, with the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from maskrcnn_coco.advice.limits import Settled, judge, rising
from maskrcnn_coco.advice.trials import Trials
from maskrcnn_coco.guard.early_warning import own_level
from maskrcnn_coco.report.svg import Chart, Series, standalone

MULTIPLIERS = (3.0, 5.0, 7.0, 10.0)
HEADS = ("box_head", "mask_head")


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


def svg(rungs: Sequence[Rung]) -> str:
    """The loss curves, one line a rung, logarithmic; the first unsafe one is dashed. Self-contained SVG."""
    worst = first_unsafe(rungs)
    series = []
    for slot, r in enumerate(rungs):
        name = f"× {r.multiplier:g}" + ("" if r.safe else " unsafe") + (" (first)" if r is worst else "")
        series.append(Series(name, list(enumerate(r.losses, 1)), slot, undone=r is worst))
    chart = Chart("Loss by step for each head multiplier", series, log=True, whole=True, width=500, height=300)
    return standalone(chart)
