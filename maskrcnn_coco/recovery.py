"""From findings to an action: policy only. Pure functions of what was found and what was done before; no torch.

Principles: data is left out only where it is proved bad on healthy weights; a learning rate is lowered only for the
components that the replays name; nothing non-finite is ever papered over; and a run that cannot go on says so.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.records import PROVED, Action, Finding, Incident, lowered_settings

DATA = ("DATA_BOX", "DATA_LABEL", "DATA_PIXEL", "DATA_MASK")
MIN_FACTOR, MAX_FACTOR = 1e-4, 0.5
MOST_DRAWS = 3
"""So many draws of one image at one step, or in most of so many epochs, may be bad before the image itself is."""
AGAIN = 0.7
"""Each further incident of the same component lowers its rate by this much more."""
HOLD_STEPS, HOLD_LEAST, HOLD_SHARE = 100, 16, 30
"""A lowered rate is raised again after so many steps without an incident: at most, at least, and as a part of the plan.

Each time that a raised one had to be lowered again doubles the wait.
"""
RAISE, LAPSES = 1.5, 3
"""A rate is raised by so much at a time, and no more after it had to be lowered again so often."""
ABOVE_HELD, BELOW_DIVERGED = 3.0, 0.7
"""A rate is never raised above so many times what held in replay, nor above this share of what diverged.

Between the two may lie what stays finite and learns worse: no alarm would take it back.
"""


@dataclass(frozen=True)
class Budgets:
    """Budgets of one run. Beyond them it stops with its verdict instead of going in circles."""

    max_incidents: int = 30
    max_rollbacks: int = 10
    max_quarantine_share: float = 0.2
    max_scanned_share: float = 0.5
    """The same where each is seen to be bad in the image or target itself: no doing of this model's, and what is left
    is sound. Beyond half it is the data set's form that is misread."""
    skips: int = 3
    """So many skipped steps within ``skip_window`` steps lead to a roll-back, and after that to a stop."""
    skip_window: int = 50
    max_retries: int = 2


@dataclass(frozen=True)
class History:
    """What happened before: incidents with their actions, the step of the alarm, the number of training images."""

    incidents: Sequence[Incident] = field(default_factory=tuple)
    step: int = 0
    images: int = 0
    total: int = 0
    """Planned steps of the whole run; 0: unknown."""

    @property
    def hold(self) -> int:
        """Steps without an incident after which a lowered rate counts as holding."""
        return min(HOLD_STEPS, max(HOLD_LEAST, self.total // HOLD_SHARE)) if self.total else HOLD_STEPS


def decide(findings: Sequence[Finding], history: History, budgets: Budgets | None = None) -> Action:
    """The action for the best finding. Pure: the same arguments give the same action."""
    budgets = budgets or Budgets()
    top = _acting(findings)
    if top is None:
        return Action("stop", {"why": "no finding at all"})
    if top.detail.get("every_batch") and not (top.cause in DATA and not top.detail.get("widespread")):
        return Action("stop", {"why": f"the step raises an error on every batch: {top.fix}"})
    spent = _spent(top, history, budgets)
    if spent is not None:
        return Action("stop", {"why": spent})
    if top.detail.get("redraw") and leaves_out(top) and not _bad_however_drawn(top, history):
        return Action("rollback", {"to_step": history.step, "redraw": top.detail["redraw"]})
    if top.cause in DATA and top.confidence >= PROVED:
        return _quarantine(top, history, budgets)
    match top.cause:
        case "LR_TOO_HIGH":
            return _by_plan(top, history, budgets) if top.detail.get("foreign_rates") else _lower(top, history)
        case "POISONED_STATE" | "NORM_STATE" if not top.detail.get("by_forward"):
            return _restore(top, history, budgets)
        case "FP16_OVERFLOW" if top.confidence >= PROVED and not top.detail.get("proved_on_healthy_weights"):
            return _precision(top, history, budgets)
        case "SCALE_COLLAPSE" | "ACCUMULATION" if top.detail.get("clipped_scaled") or top.detail.get("never_cleared"):
            return Action("skip", {"why": f"the step was taken; only the loop can change this: {top.fix}"})
        case "SCALE_COLLAPSE":
            return _hold_scale(top, history, budgets)
        case "BACKEND" if top.confidence >= PROVED and _fallback(top, history):
            return Action("precision", _fallback(top, history))
        case "TRANSIENT":
            return _retry(top, history, budgets)
        case "ANCHORS" if top.confidence >= PROVED:
            return Action("stop", {"why": f"no batch can be trained on with these anchors: {top.fix}"})
        case "LOSS_MATH" if top.detail.get("passed") and _times("passed", history, budgets) < budgets.skips:
            return Action("skip", {"passed": True})  # its step is lost, what it made of the buffers is not
        case "LOSS_MATH" if top.detail.get("weighed"):
            return Action("skip", {"weighed": top.detail["weighed"]})
        case "LOSS_MATH" if top.detail.get("stops"):
            return Action("stop", {"why": f"{top.detail['stops']}: {top.fix}"})
    if top.detail.get("proved_on_healthy_weights") and top.culprit.image_ids:
        return _quarantine(top, history, budgets)
    if top.cause == "LOSS_MATH" and top.confidence >= PROVED and _seen_before(top, history):
        return _same_maths(top, history, budgets)
    if top.culprit.image_ids and any(_same_samples(top, i) for i in history.incidents):
        return _met_again(top, history, budgets)
    if top.detail.get("ruined") and top.onset_step is not None and not _times("after_skips", history, budgets):
        return Action("rollback", {"to_step": top.onset_step, "after_skips": True})
    return _skip(top, history, budgets)


def maybe_raise(history: History, factors: Mapping[str, float]) -> dict[str, float]:
    """Component → new factor, for lowered rates that have held long enough; empty where there is nothing to change.

    Args:
        factors: component → what its planned rate is multiplied by at present.
    """
    raised: dict[str, float] = {}
    for component, factor in factors.items():
        lowered = [i for i in history.incidents if component in _lowered(i.action)]
        if factor >= 1.0 or not lowered:
            continue
        lapses = _lapses([i.step for i in lowered], history.hold)
        wait = history.hold * 2**lapses
        since = history.step - max(i.step for i in lowered)
        most = min(_most(component, i) for i in lowered)
        if lapses < LAPSES and since > 0 and since % wait == 0 and factor < most:
            raised[component] = min(most, factor * RAISE)
    return raised


def may_ask(history: History, factors: Mapping[str, float], asked: Sequence[int]) -> bool:
    """Whether to try if the rates ``factors`` are needed still: at intervals that double, and after each lapse too.

    Args:
        asked: steps at which that was tried before.
    """
    steps = [i.step for i in history.incidents if set(factors) & set(_lowered(i.action))]
    if not steps or (lapses := _lapses(steps, history.hold)) >= LAPSES:
        return False
    tried = [step for step in asked if step > max(steps)]
    return history.step - max([*steps, *tried]) >= HOLD_LEAST * 2 ** (lapses + len(tried))


def lowered_by(history: History, factors: Mapping[str, float]) -> tuple[int, bool]:
    """The first step that was taken with the rates ``factors`` as low as they are, and whether any was proved."""
    found = [i for i in history.incidents if set(factors) & set(_lowered(i.action))]
    steps = [int(i.action.detail.get("to_step", i.step)) for i in found]
    return max(steps, default=0), any(i.confidence >= PROVED for i in found)


def _lapses(steps: Sequence[int], hold: int) -> int:
    """How often a rate that had held was lowered again. Incidents close together are one search for what holds."""
    ordered = sorted(steps)
    return sum(b - a > hold for a, b in itertools.pairwise(ordered))


def ceiling(factor: float) -> float:
    """The share of a rate that diverged which nothing brings it back above, where it held with ``factor``."""
    return min(ABOVE_HELD * factor, BELOW_DIVERGED)


def _most(component: str, lowered: Incident) -> float:
    """The largest factor of the plan that one incident leaves open.

    What was only likely is taken back whole where it holds: a spike that is over must not cost the rest of the run.
    """
    if lowered.confidence < PROVED:
        return 1.0
    diverged = float((lowered.detail.get("lr_factors") or {}).get(component, 1.0))
    return diverged * ceiling(float(lowered.action.detail.get("factor", 1.0)))


def _acting(findings: Sequence[Finding]) -> Finding | None:
    """The finding that says what to do: the inner cause, where the first only says on which rank it happened."""
    top = next(iter(findings), None)
    if top is not None and "heavier" in top.detail:  # a lower rate is all that is in our hands; how low, the walks say
        return next((f for f in findings if f.cause == "LR_TOO_HIGH"), top)
    if top is None or top.cause != "RANK_LOCAL":
        return top
    # What is not proved decides nothing: a rate that was never shown to be at fault stays as it is.
    inner = [f for f in findings[1:] if f.cause != "UNKNOWN" and f.confidence >= PROVED]
    return inner[0] if inner else findings[0]


def _spent(top: Finding, history: History, budgets: Budgets) -> str | None:
    # What is left out is over, each time; how much of it there may be is the quarantine's own budget.
    over = {"again", "redraw"}
    new = [i for i in history.incidents if i.action.kind != "quarantine" and not over & i.action.detail.keys()]
    if len(new) >= budgets.max_incidents:
        return f"{len(new)} incidents in one run: it cannot be kept healthy"
    back = sum(1 for i in history.incidents if i.lost_steps > 0)
    needs = top.cause in ("LR_TOO_HIGH", "POISONED_STATE", "NORM_STATE", "TRANSIENT")
    if needs and back >= budgets.max_rollbacks:
        return f"{back} roll-backs in one run did not keep it healthy"
    return None


def leaves_out(top: Finding) -> bool:
    """Whether the images of this finding are to be left out of the data."""
    proved = top.cause in DATA and top.confidence >= PROVED and not top.detail.get("widespread")
    return proved or bool(top.detail.get("proved_on_healthy_weights") and top.culprit.image_ids)


def _bad_however_drawn(top: Finding, history: History) -> bool:
    """Whether so many draws of one of these samples were bad that the sample is: at one step, or epoch after epoch."""
    before = [
        (i.step, epoch, index) for i in history.incidents for epoch, index, _ in i.action.detail.get("redraw", [])
    ]
    for epoch, index, _ in top.detail["redraw"]:
        mine = [(step, e) for step, e, i in before if i == index]
        if sum(step == history.step for step, _ in mine) >= MOST_DRAWS - 1:
            return True
        epochs = {e for _, e in mine} | {epoch}
        if len(epochs) >= MOST_DRAWS and 2 * len(epochs) > epoch - min(epochs) + 1:
            return True
    return False


def _quarantine(top: Finding, history: History, budgets: Budgets) -> Action:
    gone = {i for incident in history.incidents for i in incident.action.detail.get("image_ids", [])}
    images = [i for i in top.culprit.image_ids if i not in gone]
    if not images:
        return _met_again(top, history, budgets)
    if top.detail.get("widespread"):
        return Action("stop", {"why": f"every batch has the fault {top.cause}: it is the data set, not one image"})
    share = (len(gone) + len(images)) / max(history.images, 1)
    # Labels that are no class are the set's numbering: without a fifth of its images a class may be gone.
    scanned = top.cause != "DATA_LABEL" and any(e.test.startswith("scan:") for e in top.evidence if e.supports)
    if share > (budgets.max_scanned_share if scanned else budgets.max_quarantine_share):
        first = "repair the data set first" if top.cause in DATA else top.fix
        return Action("stop", {"why": f"{share:.0%} of the images would be left out: {first}"})
    return Action("quarantine", {"image_ids": images, "annotation_ids": list(top.culprit.annotation_ids)})


def _met_again(top: Finding, history: History, budgets: Budgets) -> Action:
    """An image that was named already comes again: under another key, or from a loader that only its loop can change.

    Its batch is all that it costs: nothing to go back for, or to stop for, unless most steps are lost to such.
    """
    met = _times("again", history, budgets)
    if met > budgets.skip_window // 2:
        return Action("stop", {"why": f"{met} of the last {budgets.skip_window} steps were lost to what is known"})
    return Action("skip", {"again": list(top.culprit.image_ids)})


def _same_samples(top: Finding, before: Incident) -> bool:
    """Likely twice, of the very same samples: what a loader hands out again each epoch is no new trouble."""
    return before.cause == top.cause and set(before.culprit.image_ids) == set(top.culprit.image_ids)


def _seen_before(top: Finding, history: History) -> bool:
    return bool(top.fix) and any(i.cause == top.cause and i.fix == top.fix for i in history.incidents)


def _same_maths(top: Finding, history: History, budgets: Budgets) -> Action:
    """One op of the loss on one line fails for some batches: they cost their steps, as long as others are between."""
    if top.detail.get("sound_beside"):
        return _met_again(top, history, budgets)  # other batches are normal: what comes in a row does so by chance
    lost = {i.step for i in history.incidents}
    if not all(history.step - n in lost for n in range(1, budgets.skips + 1)):
        return _met_again(top, history, budgets)
    if not _times("after_skips", history, budgets):
        return Action("rollback", {"to_step": max(0, history.step - budgets.skips - 1), "after_skips": True})
    return Action("stop", {"why": f"{budgets.skips} steps in a row were skipped, again after a roll-back"})


def _lower(top: Finding, history: History) -> Action:
    components = list(top.detail.get("components") or ([top.culprit.component] if top.culprit.component else []))
    to_step = top.detail.get("back_to", history.step if top.onset_step is None else top.onset_step)
    if not components:
        # Divergence without a proved component: back to health, with every rate lowered once.
        components = list(top.detail.get("lr", {}))
        if not components:
            return Action("rollback", {"to_step": to_step})
    before = sum(1 for i in history.incidents if set(components) & set(_lowered(i.action)))
    if top.detail.get("holds"):
        before = 0  # shown to hold from that very state on: no need for more than was asked
    factor = float(top.detail.get("factor", 0.3)) * AGAIN**before
    # A rate that leapt by a slip may have to come down by as much, and a tenth more.
    least = min([MIN_FACTOR, *(0.1 / v for v in (top.detail.get("leapt") or {}).values())])
    factor = max(least, min(MAX_FACTOR, factor))
    if before:
        # The last snapshot did not hold: go further back each time, as far as there are states to go back to.
        kept = sorted(s for s in top.detail.get("snapshots", [to_step]) if s <= to_step)
        to_step = kept[max(0, len(kept) - 1 - before)] if kept else to_step
    detail: dict[str, Any] = {"component": components[0], "components": components}
    if settings := lowered_settings(top.detail) | {k: v for k, v in top.detail.items() if k == "usual"}:
        # The rates are right: only this setting of the optimizer is lowered.
        return Action("lower_lr", {**detail, "factor": 1.0, "to_step": to_step, **settings})
    detail |= {"factor": factor, "to_step": to_step}
    if "most" in top.detail:
        detail["most"] = top.detail["most"]
    return Action("lower_lr", detail)


def _by_plan(top: Finding, history: History, budgets: Budgets) -> Action:
    """Rates that were not the plan's made it diverge: back, and on by the plan, which nothing speaks against."""
    again = [i for i in _recent(history, budgets) if i.detail.get("foreign_rates")]
    if len(again) >= budgets.max_retries:
        return Action("stop", {"why": f"somebody sets learning rates that are not the plan's: {top.fix}"})
    to_step = history.step if top.onset_step is None else top.onset_step
    # An update that was refused has changed nothing: there is nothing to go back for.
    refused = {"refused": True} if top.detail.get("refused") else {}
    return Action("rollback", {"to_step": to_step, "by_plan": True, **refused})


def _restore(top: Finding, history: History, budgets: Budgets) -> Action:
    same = [i for i in _recent(history, budgets) if i.cause == top.cause]
    if (usual := _not_yet_usual(top, history)) and (same or top.detail.get("at_once")):
        return Action("rollback", {"to_step": history.step, "usual": usual})
    if len(same) >= budgets.max_retries:
        return Action("stop", {"why": f"the state is bad again after {len(same)} roll-backs: {top.fix}"})
    if top.detail.get("state_anew"):
        return Action("rollback", {"to_step": history.step, "state_anew": True})
    if top.cause == "NORM_STATE" and top.detail.get("at_load"):
        return Action("stop", {"why": f"the model was built this way: {top.fix}"})
    if top.detail.get("only_file"):
        return Action("stop", {"why": f"there is no other file to go on from: {top.fix}"})
    if top.detail.get("at_load"):
        return Action("reload", {"checkpoint": top.detail.get("file")})
    if "to_step" in top.detail:  # what was copied since may hold what is wrong
        return Action("rollback", {"to_step": top.detail["to_step"], "older_only": True})
    return Action("rollback", {"to_step": history.step})


def _not_yet_usual(top: Finding, history: History) -> dict[str, Any]:
    """Settings of the optimizer that were proved wrong, with their defaults; those that have them already, not."""
    done = {name for i in history.incidents for name in i.action.detail.get("usual", {})}
    return {name: value for name, value in top.detail.get("usual", {}).items() if name not in done}


def _precision(top: Finding, history: History, budgets: Budgets) -> Action:
    modules = list(top.detail.get("fp32_modules") or [])
    # Half precision is given up altogether only for what comes again: one batch costs less.
    if not modules or (modules == [""] and not any(i.cause == top.cause for i in _recent(history, budgets))):
        return _skip(top, history, budgets)
    return Action("precision", {"module": modules[0], "modules": modules, "dtype": "fp32"})


def _fallback(top: Finding, history: History) -> dict[str, Any]:
    """What to do without, where it was not done before: the compiled code of some modules, or the vendor's library."""
    gone = {m for i in history.incidents for m in i.action.detail.get("eager_modules", [])}
    modules = [m for m in top.detail.get("eager_modules", []) if m not in gone]
    if modules:
        return {"module": modules[0], "eager_modules": modules}
    if top.detail.get("attention") is False and not any("attention" in i.action.detail for i in history.incidents):
        return {"module": top.culprit.module, "attention": False}
    off = any(i.action.detail.get("libraries") is False for i in history.incidents)
    return {"module": top.culprit.module, "libraries": False} if top.detail.get("libraries") and not off else {}


def _hold_scale(top: Finding, history: History, budgets: Budgets) -> Action:
    held = [i for i in history.incidents if "loss_scale" in i.action.detail]
    if len(held) >= budgets.max_retries:
        return _skip(top, history, budgets)
    return Action("precision", {"loss_scale": float(top.detail.get("loss_scale", 2.0**12))})


def _retry(top: Finding, history: History, budgets: Budgets) -> Action:
    tries = sum(1 for i in history.incidents if i.cause == "TRANSIENT" and i.step == history.step)
    if tries >= budgets.max_retries:
        return _skip(top, history, budgets)
    return Action("rollback", {"to_step": top.detail.get("to_step", history.step), "retry": True})


def _skip(top: Finding, history: History, budgets: Budgets) -> Action:
    """Skip; after several skips close together go back once; after that stop."""
    known = ("weighed", "again", "image_ids")  # what they were skipped for is known, and no skip too many
    skips = [
        i for i in _recent(history, budgets) if i.action.kind == "skip" and not any(k in i.action.detail for k in known)
    ]
    if len(skips) < budgets.skips:
        return Action("skip", {})
    if not _times("after_skips", history, budgets):
        # Before the first of the skipped steps the run was healthy.
        return Action("rollback", {"to_step": max(0, min(i.step for i in skips) - 1), "after_skips": True})
    return Action("stop", {"why": f"{len(skips)} steps skipped within {budgets.skip_window}, again after a roll-back"})


def _times(key: str, history: History, budgets: Budgets) -> int:
    """How often an action of late had this in its detail: "after_skips", for a cause that is not known."""
    return sum(key in i.action.detail for i in _recent(history, budgets))


def _recent(history: History, budgets: Budgets) -> list[Incident]:
    return [i for i in history.incidents if i.step > history.step - budgets.skip_window]


def _lowered(action: Action) -> list[str]:
    detail: dict[str, Any] = action.detail
    if action.kind != "lower_lr":
        return []
    return list(detail.get("components") or [str(detail.get("component"))])
