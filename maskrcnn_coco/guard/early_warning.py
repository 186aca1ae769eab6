"""Early warning during a run: update-to-weight ratio and gradient-norm trend, from the records alone. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

from maskrcnn_coco.guard.rows import STREAKS
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.wording import rate_flag

JUMP = STREAKS[-1][1]
"""Own losses above this many times their level: the component has blown up. The guard waits for several such steps in
a row before it acts; for a warning, and for the short trainings of `limits`, one is enough."""
OWN_LOSSES = {
    "rpn": ("loss_objectness", "loss_rpn_box_reg"),
    "box_head": ("loss_classifier", "loss_box_reg"),
    "mask_head": ("loss_mask",),
}
WINDOW = 10
"""Steps over which a trend is fitted."""
HISTORY = 40
"""Applied steps before the window that say what is usual."""
STEADY_RISE = 0.7
"""Share of all pairs of steps in the window that must rise: chance gives 0.5 ± 0.13, divergence nearly 1."""
GROWTH = 3.0
"""Fitted growth over the window, and level above the usual, that are worth a warning."""
RATIO = 0.05
"""An update of 5 % of the weights, seen again and again, is far above what trains well (about 0.1 %)."""
RATIO_JUMP = 5.0
LEAP = 0.15
"""An update of this share of the weights is worth a word at once: healthy runs of NaN-Bench stay below 0.06, and every
learning rate there that is too high passes it before the alarm."""
CALM_STEPS = 5
"""Steps that say what level a component's own losses have."""


@dataclass(frozen=True)
class EarlyWarning:
    """One component that heads for trouble while everything is still finite. ``what``: "ratio", "jump" or "norm"."""

    step: int
    component: str
    what: str
    value: float
    usual: float
    message: str
    fix: str


def early_warning(records: Sequence[StepRecord]) -> list[EarlyWarning]:
    """Warnings as of the last record; call it after each step with the newest `HISTORY` + `WINDOW` records or more.

    A warning is no alarm: nothing is to be refused for it. At most one per component, the update ratio's first.
    """
    applied = [r for r in records[-(HISTORY + WINDOW) :] if r.applied]
    if not applied or applied[-1] is not records[-1]:
        return []
    found = []
    for component in applied[-1].group_grad_norm:
        warning = _ratio_warning(applied, component) or _jump_warning(applied, component)
        warning = warning or _norm_warning(applied, component)
        if warning is not None:
            found.append(warning)
    return found


def _ratio_warning(records: Sequence[StepRecord], component: str) -> EarlyWarning | None:
    measured = [(r.step, r.update_ratio[component]) for r in records if component in r.update_ratio]
    if not measured or measured[-1][0] != records[-1].step:
        return None
    last, before = measured[-1][1], [v for _, v in measured[:-1]]
    usual = median(before) if before else RATIO
    often = len(records) >= WINDOW + 2 and (not before or last >= RATIO_JUMP * usual or max(before[-2:]) > RATIO)
    if not last > LEAP and not (last > RATIO and often):
        return None
    text = f"{component}: each step moves its weights by {last:.1%} of their norm (about 0.1 % trains well)"
    return _warning(records, component, "ratio", last, usual, text)


def _jump_warning(records: Sequence[StepRecord], component: str) -> EarlyWarning | None:
    """Own losses far above their level, right after steps that moved the weights far: no batch is to blame."""
    before = records[:-1]
    if component not in OWN_LOSSES or len(before) < CALM_STEPS:
        return None
    moved = max(r.update_ratio.get(component, 0.0) for r in before[-CALM_STEPS:])
    if moved <= RATIO:
        return None  # as in nearly every step: the level need not be known
    last, level = own_loss(records[-1], component), own_level(before, component)
    if last <= JUMP * level:
        return None
    text = (
        f"{component}: losses {last / level:.0f} times their level, after steps that moved its weights by {moved:.0%}"
    )
    return _warning(records, component, "jump", last, level, text)


def own_loss(record: StepRecord, component: str) -> float:
    """The component's own losses of one step, summed; the total for the backbone and for other models' parts."""
    names = [n for n in OWN_LOSSES.get(component, ()) if n in record.losses]
    value = sum(record.losses[n] for n in names) if names else record.loss
    return value if math.isfinite(value) else math.inf


def own_level(records: Sequence[StepRecord], component: str) -> float:
    """Median of `own_loss`."""
    return max(median(own_loss(r, component) for r in records), 1e-6)


def _norm_warning(records: Sequence[StepRecord], component: str) -> EarlyWarning | None:
    if len(records) < WINDOW + 2:
        return None
    norms = [r.group_grad_norm.get(component, math.nan) for r in records]
    window, before = norms[-WINDOW:], norms[:-WINDOW]
    if len(before) < 2 or not all(math.isfinite(v) and v > 0 for v in window):
        return None
    usual = median(before)
    growth, rising = trend([math.log(v) for v in window])
    level = median(window[-3:])
    if usual <= 0 or rising < STEADY_RISE or math.exp(growth * (WINDOW - 1)) < GROWTH or level < GROWTH * usual:
        return None
    losses = [r.loss for r in records[-WINDOW:]]
    if median(losses[-3:]) < median(losses[:3]):
        return None  # norms that grow while the loss falls are those of weights that find their way
    text = (
        f"{component}: gradient norm rises {math.exp(growth) - 1:.0%} a step over {WINDOW} steps and is "
        f"{level / usual:.1f} times its usual {usual:.3g}"
    )
    return _warning(records, component, "norm", level, usual, text)


def trend(values: Sequence[float]) -> tuple[float, float]:
    """Theil-Sen slope per step, and the share of pairs that rise: one outlier moves neither much."""
    pairs = list(combinations(range(len(values)), 2))
    slopes = [(values[j] - values[i]) / (j - i) for i, j in pairs]
    return median(slopes), sum(s > 0 for s in slopes) / len(slopes)


def _warning(
    records: Sequence[StepRecord], component: str, what: str, value: float, usual: float, text: str
) -> EarlyWarning:
    return EarlyWarning(
        records[-1].step, component, what, value, usual, text, f"lower {rate_flag(component)}, or maskrcnn-coco advise"
    )
