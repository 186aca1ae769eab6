"""Whether a short training went well: pure functions over step records, each one line of `verify`'s checklist."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from maskrcnn_coco.guard.early_warning import JUMP
from maskrcnn_coco.records import StepRecord

ENOUGH = 30
"""Steps after which losses that do not fall are said not to fall; healthy recipes show a trend in fewer."""
SPIKE = 5.0
"""A loss this many times the median of the ten steps before it is a spike."""
NORM_GROWTH = 10.0
"""The median gradient norm of the last quarter may be this many times that of the second quarter."""
STILL = 1e-7
"""Median update-to-weight ratio below which weights do not move: float32 rounds such updates away."""
CRAWL, WHOLE_WAY = 3e-5, 0.05
"""The fastest component's ratio at its full rate, below which a run learns next to nothing (0.1 % trains well; random
heads at the recipe's rates on real images 0.02 %), unless its many steps take it this share of the weights' norm."""
SMOOTHING, VISIBLE = 0.6, 0.1
"""TensorBoard's smoothing as it is shipped; the share of the total loss above which a curve's jump is of interest."""
CLIPPED_AWAY = 1e-3
"""Median clipping coefficient below which clipping, not the learning rate, decides the step."""
LEFT_OUT = 0.2
"""Share of quarantined images above which a fix only hides the fault."""


@dataclass
class Check:
    """One line of the checklist. ``name`` says what is checked, ``message`` what was found, with figures.

    ``ok`` None: it cannot be told from what was measured, and the message says what is missing.
    """

    name: str
    ok: bool | None
    message: str

    @property
    def mark(self) -> str:
        """✓ it holds, ✗ it does not, ? it cannot be told."""
        return "?" if self.ok is None else "✓" if self.ok else "✗"


def verdict(checks: Sequence[Check]) -> str:
    """ "holds", "does not hold", or "unknown": nothing speaks against the fix, and something could not be told."""
    if any(c.ok is False for c in checks):
        return "does not hold"
    return "unknown" if any(c.ok is None for c in checks) else "holds"


def finite(records: Sequence[StepRecord]) -> Check:
    """Every loss and gradient norm is finite and every step was applied."""
    bad = [r.step for r in records if not (math.isfinite(r.loss) and math.isfinite(r.grad_norm))]
    refused = [r.step for r in records if not r.applied and r.step not in bad]
    said = [
        f"{what} {', '.join(map(str, s[:5]))}" for what, s in (("not at step", bad), ("refused: step", refused)) if s
    ]
    return Check("all values finite", not said and bool(records), "; ".join(said) or _count(records))


def falling(records: Sequence[StepRecord], *, confidence: float = 0.95) -> Check:
    """Losses fall: Mann and Kendall's trend test, one-sided, with Theil and Sen's slope.

    Robust to spikes and to noise of any size that has no trend. A trend of few steps may be hidden in the noise: below
    `ENOUGH` steps only losses that rise say that they do not fall.
    """
    values = [r.loss for r in records if r.applied and math.isfinite(r.loss)]
    n = len(values)
    if n < 8:
        return Check("losses falling", None, f"only {n} steps: at least 8 are needed to tell (--steps {ENOUGH})")
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    score = sum((values[j] > values[i]) - (values[j] < values[i]) for i, j in pairs)
    slope = median((values[j] - values[i]) / (j - i) for i, j in pairs)
    spread = math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    sure = NormalDist().cdf((-score - 1) / spread) if score < 0 else 1 - NormalDist().cdf((score - 1) / spread)
    text = f"{values[0]:.3f} → {median(values[-max(3, n // 8) :]):.3f}, slope {slope:+.4g} a step, {sure:.1%} sure"
    if sure >= confidence and slope < 0:
        return Check("losses falling", True, text)
    if n < ENOUGH and sure > 1 - confidence:
        return Check("losses falling", None, f"{text}: too few steps to tell from the noise (--steps {ENOUGH})")
    return Check("losses falling", False, text)


def no_spikes(records: Sequence[StepRecord]) -> Check:
    """No loss far above the ones before it."""
    losses = [(r.step, r.loss) for r in records if math.isfinite(r.loss)]
    found = []
    for i in range(5, len(losses)):
        usual = median(v for _, v in losses[max(0, i - 10) : i])
        if losses[i][1] > SPIKE * usual:
            found.append(losses[i])
    shown = ", ".join(f"{v:.3g} at step {s}" for s, v in found[:3])
    if len(losses) <= 5:
        return Check("no spikes", None, f"only {len(losses)} steps: a spike is one among ten")
    return Check("no spikes", not found, shown or f"no loss above {SPIKE:g} times the ones before it")


def curves_smooth(records: Sequence[StepRecord]) -> Check:
    """No curve of TensorBoard's leaps: each loss, smoothed as it is shown there, against its ten points before."""
    rows = [r for r in records if math.isfinite(r.loss)]
    totals = _smoothed([r.loss for r in rows])
    found = []
    for name in {name: None for r in rows for name in r.losses}:
        curve = _smoothed([r.losses.get(name, 0.0) for r in rows])
        for i in range(5, len(curve)):
            usual = median(curve[max(0, i - 10) : i])
            if curve[i] > max(JUMP * usual, VISIBLE * median(totals[max(0, i - 10) : i])):
                found.append(f"loss/{name} leaps from {usual:.3g} to {curve[i]:.3g} at step {rows[i].step}")
                break
    if len(rows) <= 5:
        return Check("curves smooth", None, f"only {len(rows)} points")
    text = "; ".join(found[:3]) or f"no loss, smoothed, above {JUMP:g} times the points before it"
    return Check("curves smooth", not found, text)


def _smoothed(values: Sequence[float]) -> list[float]:
    out, total, weight = [], 0.0, 0.0
    for value in values:
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * value, SMOOTHING * weight + (1 - SMOOTHING)
        out.append(total / weight)
    return out


def norms_bounded(records: Sequence[StepRecord]) -> Check:
    """Gradient norms do not grow: the quarter at the end against the second one (the first is warm-up)."""
    norms = [r.grad_norm for r in records if math.isfinite(r.grad_norm)]
    quarter = len(norms) // 4
    if quarter < 2:
        seen = f"only {len(norms)} steps, largest {max(norms):.3g}" if norms else "no step"
        text = f"{seen}: no growth can be told from so few"
        return Check("gradient norms bounded", None, text)
    early, late = median(norms[quarter : 2 * quarter]), median(norms[-quarter:])
    text = f"median {early:.3g} early, {late:.3g} late, largest {max(norms):.3g}"
    return Check("gradient norms bounded", late <= NORM_GROWTH * early, text)


def weights_move(records: Sequence[StepRecord], peak: Mapping[str, float], steps: int) -> Check:
    """The learning rate is not so low that nothing moves.

    Args:
        peak: each component's rate after the warm-up: a step of the warm-up counts as if it were at this rate.
        steps: of the whole run.
    """
    ratios: dict[str, list[float]] = {}
    for r in records:
        for name, value in r.update_ratio.items():
            rate = r.lr.get(name, 0.0)
            ratios.setdefault(name, []).append(value * (peak.get(name, rate) / rate if rate > 0 else 1.0))
    if not ratios:
        return Check("weights move", None, "update-to-weight ratios were not measured in so few steps")
    middle = {name: median(values) for name, values in ratios.items()}
    still = [name for name, value in middle.items() if value < STILL]
    shown = ", ".join(f"{name} {value:.2g}" for name, value in middle.items())
    fastest = max(middle.values())
    if still:
        return Check("weights move", False, f"{', '.join(still)} stand still: raise --lr ({shown})")
    if fastest < min(CRAWL, WHOLE_WAY / max(steps, 1)):
        text = f"at most {fastest:.1g} of their norm a step, {fastest * steps:.1g} in all {steps} steps: raise --lr"
        return Check("weights move", False, f"{text} or --max-grad-norm ({shown})")
    return Check("weights move", True, shown)


def clipping_leaves_something(records: Sequence[StepRecord], max_grad_norm: float) -> Check:
    """Clipping trims steps; where it shrinks each one a thousandfold it hides a fault and stops learning."""
    norms = [r.grad_norm for r in records if math.isfinite(r.grad_norm)]
    if not max_grad_norm:
        return Check("clipping leaves the steps", True, "off")
    if not norms:
        return Check("clipping leaves the steps", None, "no finite norm was measured")
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
