"""Lower rates in a loop whose schedule is its own, for as long as that schedule asks for more than what held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from maskrcnn_coco.diagnosis.from_records import usual_lr
from maskrcnn_coco.diagnosis.limits import SOON
from maskrcnn_coco.guard.lowered import Lowered
from maskrcnn_coco.guard.updates import of_one_size
from maskrcnn_coco.records import Action, Finding, Incident, StepRecord, lowered_settings
from maskrcnn_coco.recovery import ceiling

BELOW_HELD = 0.5
"""A schedule's own rate is back in force once it is below this share of the rate that held."""


def lower(
    lowered: Lowered,
    detail: Mapping[str, Any],
    groups: Sequence[str],
    history: Sequence[StepRecord],
    held: dict[str, float],
    since: int,
    *,
    proved: bool,
) -> None:
    """Put what a "lower_lr" action decided in force.

    Args:
        detail: of the action.
        groups: names of all parameter groups: a setting of the optimizer is lowered in each.
        held: group → the highest rate at which its lowered rate was shown to hold, and no more than twice what it was
            in the sound steps before (0: there were none); written here.
        since: the first step over which it was shown.
        proved: it was; what is only likely may be over soon.
    """
    most, usual = detail.get("most") or {}, usual_lr(history, since)
    settings, sound = lowered_settings(detail), detail.get("usual") or {}
    lowered.usual.update(sound)
    for name in groups:
        for setting, value in settings.items():
            lowered.limit(name, setting, value)
    for name, rate in most.items():
        lowered.limit(name, "lr", float(rate))
    for name in detail.get("components", []) if not settings and not most and not sound else []:
        lowered.factors[name] = lowered.factors.get(name, 1.0) * float(detail["factor"])
        highest = max((r.lr.get(name, 0.0) for r in history if r.step >= since), default=0.0)
        # A schedule that anneals passes below what held by itself: lowered as it is, it goes on annealing.
        held[name] = min(usual.get(name, 0.0) / BELOW_HELD, highest * float(detail["factor"]))
        # One that goes on rising would bring even the lowered rate to what diverged.
        if proved and highest > 0:
            lowered.limit(name, "lr", highest * ceiling(float(detail["factor"])))


def with_gradients(
    finding: Finding,
    action: Action,
    step: int,
    before: Sequence[Incident],
    optimizer: torch.optim.Optimizer,
    groups: Sequence[str],
) -> Action:
    """``action``, where somebody multiplies the loss of step after step once it was seen: the second is answered.

    The first, where gradients were multiplied and not the loss, looked like a glitch.

    Steps that grow with the gradient are as long as they were at a rate so many times lower; those of one size, as
    Adam's, stay as they are, and what is healthy is learned anew.
    """
    times, last = finding.detail.get("multiplied"), before[-1] if before else None
    if times is None:
        return action
    if "ruined" in finding.detail:  # steps were taken so
        step = min(step, finding.onset_step or step)
    elif last is None or step - last.step > SOON or not ("multiplied" in last.detail or last.cause == "TRANSIENT"):
        return action
    if "betas" in optimizer.param_groups[0] or of_one_size(optimizer):
        return Action("skip", {"weighed": times})
    return Action("lower_lr", {"components": list(groups), "factor": 1 / times, "to_step": step, "multiplied": times})


def rates_back(lowered: Lowered, rates: Mapping[str, float], held: Mapping[str, float]) -> list[str]:
    """Take back the factors of groups whose own ``rates`` the schedule has brought well below what ``held``; which.

    What was too high is an absolute rate; as a factor on all that comes it would cost the rest of the training.
    """
    back = [name for name in lowered.factors if rates.get(name, 0.0) <= BELOW_HELD * held.get(name, 0.0) > 0]
    for name in back:
        del lowered.factors[name]
    return back
