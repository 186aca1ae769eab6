"""Whether a short training went well: pure functions over step records, each one line of `verify`'s checklist."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from maskrcnn_coco.records import StepRecord

SPIKE = 5.0
"""A loss this many times the median of the ten steps before it is a spike."""
NORM_GROWTH = 10.0
"""The median gradient norm of the last quarter may be this many times that of the second quarter."""
STILL = 1e-7
"""Median update-to-weight ratio below which weights do not move: float32 rounds such updates away."""
CLIPPED_AWAY = 1e-3
"""Median clipping coefficient below which clipping, not the learning rate, decides the step."""
LEFT_OUT = 0.2
"""Share of quarantined images above which a fix only hides the fault."""


@dataclass
class Check:
    """One line of the checklist. ``name`` says what is checked, ``message`` what was found, with figures."""

    name: str
    ok: bool
    message: str


def finite(records: Sequence[StepRecord]) -> Check:
    """Every loss and gradient norm is finite and every step was applied."""
    bad = [r.step for r in records if not (math.isfinite(r.loss) and math.isfinite(r.grad_norm) and r.applied)]
    steps = ", ".join(map(str, bad[:5]))
    where = f"not at {'steps' if len(bad) > 1 else 'step'} {steps}"
    return Check("all values finite", not bad and bool(records), where if bad else _count(records))


def falling(records: Sequence[StepRecord], *, confidence: float = 0.95) -> Check:
    """Losses fall: Mann and Kendall's trend test, one-sided, with Theil and Sen's slope.

    Robust to spikes and to noise of any size that has no trend. With fewer than 8 steps there is no test.
    """
    values = [r.loss for r in records if r.applied and math.isfinite(r.loss)]
    n = len(values)
    if n < 8:
        return Check("losses falling", False, f"only {n} steps: at least 8 are needed to tell (--steps)")
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    score = sum((values[j] > values[i]) - (values[j] < values[i]) for i, j in pairs)
    slope = median((values[j] - values[i]) / (j - i) for i, j in pairs)
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    sure = NormalDist().cdf((-score - 1) / spread) if score < 0 else 1 - NormalDist().cdf((score - 1) / spread)
    text = f"{values[0]:.3f} → {median(values[-max(3, n // 8) :]):.3f}, slope {slope:+.4g} a step, {sure:.1%} sure"
    return Check("losses falling", sure >= confidence and slope < 0, text)


def no_spikes(records: Sequence[StepRecord]) -> Check:
    """No loss far above the ones before it."""
    losses = [(r.step, r.loss) for r in records if math.isfinite(r.loss)]
    found = []
    for i in range(5, len(losses)):
        usual = median(v for _, v in losses[max(0, i - 10) : i])
        if losses[i][1] > SPIKE * usual:
            found.append(losses[i])
    shown = ", ".join(f"{v:.3g} at step {s}" for s, v in found[:3])
    return Check("no spikes", not found, shown or f"no loss above {SPIKE:g} times the ones before it")


def norms_bounded(records: Sequence[StepRecord]) -> Check:
    """Gradient norms do not grow: the quarter at the end against the second one (the first is warm-up)."""
    norms = [r.grad_norm for r in records if math.isfinite(r.grad_norm)]
    quarter = len(norms) // 4
    if quarter < 2:
        return Check("gradient norms bounded", bool(norms), f"largest {max(norms, default=math.nan):.3g}")
    early, late = median(norms[quarter : 2 * quarter]), median(norms[-quarter:])
    text = f"median {early:.3g} early, {late:.3g} late, largest {max(norms):.3g}"
    return Check("gradient norms bounded", late <= NORM_GROWTH * early, text)


def weights_move(records: Sequence[StepRecord]) -> Check:
    """The learning rate is not so low that nothing moves."""
    ratios: dict[str, list[float]] = {}
    for r in records:
        for name, value in r.update_ratio.items():
            ratios.setdefault(name, []).append(value)
    if not ratios:
        return Check("weights move", True, "update-to-weight ratios were not measured in so few steps")
    middle = {name: median(values) for name, values in ratios.items()}
    still = [name for name, value in middle.items() if value < STILL]
    shown = ", ".join(f"{name} {value:.2g}" for name, value in middle.items())
    return Check("weights move", not still, f"{', '.join(still)} stand still: raise --lr ({shown})" if still else shown)


def clipping_leaves_something(records: Sequence[StepRecord], max_grad_norm: float) -> Check:
    """Clipping trims steps; where it shrinks each one a thousandfold it hides a fault and stops learning."""
    norms = [r.grad_norm for r in records if math.isfinite(r.grad_norm)]
    if not max_grad_norm or not norms:
        return Check("clipping leaves the steps", True, "off" if not max_grad_norm else "no finite norm")
    middle = median(min(1.0, max_grad_norm / n) if n > 0 else 1.0 for n in norms)
    share = sum(n > max_grad_norm for n in norms) / len(norms)
    text = f"{share:.0%} of the steps clipped, to {middle:.2g} of their length in the middle"
    return Check("clipping leaves the steps", middle >= CLIPPED_AWAY, text)


def enough_images(left_out: int, images: int) -> Check:
    """Quarantine leaves a data set to learn from."""
    share = left_out / max(images, 1)
    text = f"{left_out} of {images} images left out ({share:.0%})"
    return Check("enough images left", share <= LEFT_OUT, text)


def _count(records: Sequence[StepRecord]) -> str:
    return f"{len(records)} steps, all applied" if records else "no step was made"
