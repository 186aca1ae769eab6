"""What the records of a run say by themselves: rates that are not the plan's, and how much each component moved."""

from __future__ import annotations

import math
import statistics

from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.case import Case

FOREIGN = 3.0
"""A rate this many times the plan's was set by somebody else; recovery only lowers."""
USUAL = 8
"""Steps before the onset whose rates are the usual ones; more would reach into a warm-up."""
RATIOS = 20
"""Most measured steps that go into a mean update-to-weight ratio."""


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


def rises(records: list[StepRecord], onset: int) -> dict[str, float]:
    """Component → how many times its usual rate the highest since the onset is: 1 where either is not known."""
    early = [r.lr for r in records if r.applied and r.step < onset][-USUAL:]
    since = [r.lr for r in records if r.step >= onset]
    if len(early) < 3 or not since:
        return {}
    usual = {c: statistics.median(lr.get(c, 0.0) for lr in early) for c in since[-1]}
    return {c: max(lr.get(c, 0.0) for lr in since) / v if v > 0 else 1.0 for c, v in usual.items()}


def record_of(case: Case, step: int) -> StepRecord | None:
    return next((r for r in reversed(case.history) if r.step == step), None)
