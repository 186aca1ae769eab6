"""What the records of a run say by themselves: rates that are not the plan's, and how much each component moved."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from maskrcnn_coco.diagnosis.facts import Facts, Reference
from maskrcnn_coco.diagnosis.limits import SOUND
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.case import Case

FOREIGN = 3.0
"""A rate this many times the plan's was set by somebody else; recovery only lowers."""
USUAL = 8
"""Steps before the onset whose rates are the usual ones; more would reach into a warm-up."""
RATIOS = 20
"""Most measured steps that go into a mean update-to-weight ratio."""
SMALLEST = 1e-2
"""A healthy loss counts as at least this, as the guard has it: some are around zero by construction (PPO, GRPO)."""
SHRINKS = 0.5
"""Learning rate times weight decay above which weight decay itself is suspected: weights halve in every step."""
FIRST = 5
"""Steps that make a run's first reference."""


def ratios(before: list[StepRecord], onset: int) -> dict[str, float]:
    """Update-to-weight ratio per component: geometric mean over the steps measured before the onset, else over all.

    The last one alone misleads: once one component runs wild, the others move too.
    """
    measured = [r for r in before if r.update_ratio]
    early = [r for r in measured if r.step < onset] or measured
    names = early[-1].update_ratio if early else {}
    logs = {c: [math.log(max(r.update_ratio.get(c, 0.0), 1e-12)) for r in early[-RATIOS:]] for c in names}
    return {c: math.exp(sum(v) / len(v)) for c, v in logs.items()}


def foreign_rates(case: Case, records: list[StepRecord]) -> dict[str, list[float]]:
    """Component → [step, rate of the plan, rate of the optimizer] of the first step at which they are far apart."""
    found: dict[str, list[float]] = {}
    for r in records:
        entry = case.planned(r.step) if case.planned is not None else None
        plan = {} if entry is None else entry.lr
        for component, rate in r.lr.items():
            planned = plan.get(component, math.nan)
            if rate > FOREIGN * planned > 0:
                found.setdefault(component, [float(r.step), planned, rate])
    return found


def usual_lr(records: Sequence[StepRecord], onset: int) -> dict[str, float]:
    """Component → its usual rate in the steps before the onset; empty where fewer than three are known."""
    early = [r.lr for r in records if r.applied and r.step < onset][-USUAL:]
    names = records[-1].lr if records and len(early) >= 3 else {}
    return {c: statistics.median(lr.get(c, 0.0) for lr in early) for c in names}


def rises(records: list[StepRecord], onset: int, usual: dict[str, float]) -> dict[str, float]:
    """Component → how many times its ``usual`` rate the highest since the onset is: 1 where either is not known."""
    since = [r.lr for r in records if r.step >= onset]
    return {c: max(lr.get(c, 0.0) for lr in since) / v if v > 0 else 1.0 for c, v in usual.items() if since}


def beyond_sense(
    name: str, steps: Iterable[tuple[dict[str, float], Sequence[dict[str, Any]]]], groups: Sequence[str]
) -> set[str]:
    """The components for which setting ``name`` of the optimizer was so high that nothing learns.

    Args:
        name: a key of `SOUND`.
        steps: (learning rate per component, the settings of each parameter group) of every step in question.
        groups: the component of each parameter group.
    """
    found: set[str] = set()
    for lr, settings in steps:
        for component, kept in zip(groups, settings, strict=False):
            value = float(kept.get(name) or 0.0)
            if value <= SOUND[name]:
                continue  # a usual one: where it shrinks weights all the same, the rate is to blame
            if value >= 1.0 if name == "momentum" else lr.get(component, 0.0) * value > SHRINKS:
                found.add(component)
    return found


def climbs(facts: Facts, groups: Sequence[dict[str, Any]]) -> bool:
    """Whether the recorded loss is above the usual one, and some group, or the loop's sign, has steps go up it."""
    now = facts.recorded_loss
    upwards = any(g.get("maximize") for g in groups) or bool(facts.measured.get("climbs"))
    return upwards and facts.reference.count > 0 and now is not None and now > facts.reference.loss


def apart(before: StepRecord, now: StepRecord) -> float:
    """The most that any component's gradient norm differs by between two steps."""
    then = before.group_grad_norm
    return max((abs(v - then.get(c, math.inf)) for c, v in now.group_grad_norm.items()), default=math.inf)


def record_of(case: Case, step: int) -> StepRecord | None:
    return next((r for r in reversed(case.history) if r.step == step), None)


def reference_of(history: list[StepRecord], before: int, window: int = 50) -> Reference:
    """Healthy medians over the last ``window`` applied, finite steps before step ``before``."""
    kept = [
        r for r in history if r.applied and r.step < before and math.isfinite(r.loss) and math.isfinite(r.grad_norm)
    ]
    if not kept:
        return Reference()
    # A long divergence must not pass for health: where the run was quieter at its start, that is the measure.
    both = [kept[-window:], kept[:FIRST]]
    loss = min(statistics.median(abs(r.loss) for r in part) for part in both if len(part) >= min(FIRST, len(kept)))
    norm = statistics.median(r.grad_norm for r in both[0])
    return Reference(max(loss, SMALLEST), norm, len(both[0]), min(0.0, *(r.loss for r in both[0])))


def onset_of(history: list[StepRecord], step: int) -> int:
    """The first step of the unbroken run-up to ``step``: losses or norms well above the run's median."""
    before = [r for r in history if r.applied and r.step < step]
    reference = reference_of(before, step)
    onset = step
    for r in reversed(before if reference.count > 2 else []):
        # A likelihood that falls below zero is no run-up, however far; its gradient would tell.
        if r.loss <= 2 * reference.loss and r.grad_norm <= 4 * reference.norm:
            break
        onset = r.step
    return onset
