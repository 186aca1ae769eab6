"""From an alarm to the next step: the one place where guard, diagnosis and recovery meet.

The guard saw something and refused; here the case is put together, investigated by replay, decided by the policy, and
the decision is carried out on the session. Everything is written down before training goes on.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from maskrcnn_coco import recovery
from maskrcnn_coco.diagnosis.investigate import BUDGET_STEPS, TEAM_STEPS, investigate
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import GuardStop, MaskRCNNError
from maskrcnn_coco.model.optim import zero_state
from maskrcnn_coco.records import (
    PROVED,
    Action,
    Alarm,
    Evidence,
    Finding,
    Incident,
    lowered_settings,
    plain,
    record_from,
)
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.optimizer import begin_anew, lower_settings
from maskrcnn_coco.system.backends import run_eagerly, use_fused_attention, use_libraries
from maskrcnn_coco.system.precision import keep_fp32
from maskrcnn_coco.training.augmentation_counts import pasted_evidence
from maskrcnn_coco.training.case import build_case
from maskrcnn_coco.training.case_file import save_case
from maskrcnn_coco.training.incident import compose, history_at
from maskrcnn_coco.training.rollback import go_back, put_in_force, reload
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.training.signals import AtOnce, breakable

AFTER, FOLLOWS = 3, 0.8
"""An alarm so many steps after a bad one that was taken comes of that; and how sure this can be, without replays."""
TRIES = {"POISONED_STATE": "trying older files", "LOSS_MATH": "taking recorded steps again"}
UNPROVED = {
    "POISONED_STATE": "no older file does better over these steps",
    "LOSS_MATH": "recorded steps give the losses that they gave",
}
"""Of a cause that is only in doubt: what is done to prove it, and what is said where that does not."""


def respond(session: Session, alarm: Alarm, batches: list[Any]) -> int:
    """Diagnose ``alarm``, act, write the incident; returns the planned step to go on with.

    Raises:
        GuardStop: the policy, the mode or the budget says stop. The verdict is written first.
    """
    # Of several processes one investigates, the one whose batch is bad; all do what it decides.
    source = int(alarm.measured.get("rank", 0))
    case, findings = None, what_it_follows(session, alarm)
    if session.ranks.rank == source and not findings:
        session.console.note(
            f"step {alarm.step}: {alarm.message}; looking for the cause by taking steps again, away from the run "
            f"(at most {budget_of(session.ranks)} steps' work)"
        )
        try:
            with breakable(alone=session.ranks.world == 1):
                case, findings = looked_into(session, alarm, batches)
        except AtOnce:
            # Nothing was applied: the run that goes on meets it again, and counts it then.
            session.rewind(alarm.step)
            session.progress.images_seen -= sum(len(batch.image_ids) for batch in batches)
            return alarm.step
    findings = shared_findings(session.ranks, findings, source)
    return answer(session, alarm, case, findings)


def what_it_follows(session: Session, alarm: Alarm) -> list[Finding]:
    """The finding for an alarm that comes of a bad step which was taken, as it is where the guard only observes.

    Not of inputs, which are their own doing. Empty: the alarm is the first, or nothing was taken.
    """
    last = session.incidents[-1] if session.incidents else None
    if last is None or not last.action.detail.get("taken") or not 0 < alarm.step - last.step <= AFTER:
        return []
    if alarm.symptom in ("input_nonfinite", "crash"):
        return []
    first = last.detail.get("follows", last.id)
    what = Evidence(f"incident {first}", "its step was taken: what follows comes of it", last.cause)
    culprit, confidence = dataclasses.replace(last.culprit), min(last.confidence, FOLLOWS)
    return [Finding(last.cause, confidence, culprit, [what], last.onset_step, last.fix, {"follows": first})]


def if_proved(session: Session, alarm: Alarm, batches: list[Any], cause: str) -> int | None:
    """Answer an alarm that is only a doubt: where replays do not prove ``cause``, nothing is done.

    Returns:
        The planned step to go on with; None: it was not proved.
    """
    session.console.note(f"{alarm.message}; {TRIES[cause]}, away from the run")
    try:
        with breakable(alone=True):
            case, findings = looked_into(session, alarm, batches)
    except AtOnce:
        return None
    if findings[0].cause != cause or findings[0].confidence < PROVED:
        session.console.note(f"{UNPROVED[cause]}: the run goes on as it is")
        return None
    return answer(session, alarm, case, findings)


def answer(session: Session, alarm: Alarm, case: Case | None, findings: list[Finding]) -> int:
    """Decide, act, and write the incident of what was found; see `respond`."""
    action = choose(session, alarm, findings)
    incident = compose(session, alarm, findings, action)
    next_step = carry_out(session, alarm, incident)
    action = incident.action
    if next_step == alarm.step and action.kind != "stop":
        session.rewind(next_step)  # the refused try is in the incident; the records will hold the step that is taken
    incident.lost_steps = max(0, alarm.step - next_step)
    incident.outcome = "stopped" if action.kind == "stop" else "recovered"
    session.keep_incident(incident)
    if case is not None:
        keep_case(session, incident, case)
    if action.kind == "stop":
        raise GuardStop(
            f"stopped at step {alarm.step}: {incident.cause} ({alarm.message})",
            got=action.detail.get("why"),
            fix=incident.fix or f"maskrcnn-coco explain {incident.cause}",
        )
    return next_step


def looked_into(session: Session, alarm: Alarm, batches: list[Any]) -> tuple[Case | None, list[Finding]]:
    """The case of ``alarm`` and what was found; whatever goes wrong in looking is said, and never ends the run."""
    try:
        case = build_case(session, alarm, batches)
        findings = investigate(case, budget_steps=budget_of(session.ranks))
        findings[0].evidence += pasted_evidence(batches, findings[0].culprit.image_ids)
        return case, findings
    except Exception as e:  # odd data, odd models, memory: the verdict suffers, the run does not
        said = f"could not be made: {type(e).__name__}: {str(e)[:200]}"
        return None, [Finding("UNKNOWN", 0.0, evidence=[Evidence("investigation", said)])]


def budget_of(ranks: Ranks) -> int:
    """Most steps that an investigation may take again."""
    return BUDGET_STEPS if ranks.world == 1 else TEAM_STEPS


def carry_out(session: Session, alarm: Alarm, incident: Incident) -> int:
    """`act` on the incident's action; where that is impossible, the action becomes a stop that says why."""
    if incident.action.kind == "stop":
        return alarm.step
    try:
        return act(session, alarm, incident.action, incident)
    except MaskRCNNError as e:
        detail = {"why": e.what, "instead_of": incident.action.kind}
        incident.action, incident.fix = Action("stop", detail), incident.fix or (e.fix or "")
        return alarm.step


def shared_findings(ranks: Ranks, findings: list[Finding], source: int) -> list[Finding]:
    """The findings of process ``source``, on every process."""
    if ranks.world == 1:
        return findings
    return [record_from(Finding, f) for f in ranks.broadcast_object(plain(findings), source=source)]


def choose(session: Session, alarm: Alarm, findings: list[Finding]) -> Action:
    """The action: by mode, else by the policy."""
    if session.config.guard == "observe":
        taken = any(r.applied and r.step == alarm.step for r in session.history[-1:])
        return Action("skip", {"observed": True, **({"taken": True} if taken else {})})
    if session.config.guard == "stop":
        return Action("stop", {"why": "--guard stop"})
    return recovery.decide(findings, history_at(session, alarm.step), session.budgets)


def act(session: Session, alarm: Alarm, action: Action, incident: Incident) -> int:
    """Carry ``action`` out on the session; returns the step to go on with."""
    detail = action.detail
    match action.kind:
        case "skip":
            if detail.get("passed"):
                session.guard.buffers.pass_on()
            return alarm.step + 1
        case "quarantine":
            images, annotations = detail.get("image_ids", []), detail.get("annotation_ids", [])
            session.leave_out(images, annotations, incident.id, met_in=incident.culprit.image_ids)
            return go_back(session, detail["to_step"]) if "to_step" in detail else alarm.step
        case "rollback" if "usual" in detail:  # the step was refused or undone: the state is sound as it is
            session.progress.usual |= detail["usual"]
            put_in_force(session.progress, session.train_state, session.plan, session.train_source)
            return alarm.step
        case "rollback" if "state_anew" in detail:
            forget(session.optimizer)
            session.ring.clear()  # states of before hold what was found
            session.guard.reset(alarm.step)
            return alarm.step
        case "rollback" if "redraw" in detail:
            session.draw_anew(detail["redraw"])
            return alarm.step
        case "rollback" if incident.cause == "POISONED_STATE":
            return reload(session, alarm)  # states kept since may hold what was found
        case "rollback":
            session.progress.by_plan |= bool(detail.get("by_plan"))
            return alarm.step if detail.get("refused") else go_back(session, detail["to_step"])
        case "lower_lr":
            step = go_back(session, detail["to_step"])
            for name, most in lowered_settings(detail).items():
                setattr(session.progress, name, most)
            lower_settings(session.optimizer, session.progress.settings_most)
            session.progress.usual |= detail.get("usual", {})
            for component in detail.get("components") or [detail["component"]]:
                session.progress.lr_factors[component] = (
                    session.progress.lr_factors.get(component, 1.0) * detail["factor"]
                )
            session.guard.instruments.divergence.watch()
            return step
        case "precision":
            return change_precision(session, alarm, detail)
        case "reload":
            return reload(session, alarm, detail.get("checkpoint"))
        case _:
            raise GuardStop(f"no such action: {action.kind}")


def forget(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer begin anew with the weights as they are.

    Raises:
        GuardStop: what it remembers is known to itself alone.
    """
    if not begin_anew(optimizer):
        raise GuardStop("the optimizer's state is bad, and no older one is kept", fix="load a state that fits")
    if isinstance(optimizer, (torch.optim.SGD, torch.optim.AdamW)):
        zero_state(optimizer)


def change_precision(session: Session, alarm: Alarm, detail: dict[str, Any]) -> int:
    """Keep one module in fp32, run it without compiled code or vendor library, or hold the loss scale."""
    run_eagerly(session.model, detail.get("eager_modules", []))
    session.progress.eager_modules += detail.get("eager_modules", [])
    if detail.get("libraries") is False:
        session.progress.libraries = False
        use_libraries(False)
    if detail.get("attention") is False:
        session.progress.attention = False
        use_fused_attention(False)
    for name in detail.get("modules", []):
        keep_fp32(session.model, name)
        session.progress.fp32_modules.append(name)
    if "loss_scale" in detail and session.scaler is not None:
        session.scaler.update(float(detail["loss_scale"]))
    return go_back(session, detail["to_step"]) if "to_step" in detail else alarm.step


def keep_case(session: Session, incident: Incident, case: Case) -> None:
    """Write what replays the incident elsewhere; a full disk or an odd tensor costs the replay, never the run."""
    try:
        save_case(session.log.folder / "incidents", incident.id, case)
    except Exception as e:  # whatever a caller's own objects hold
        said = f"{type(e).__name__}: {e}"
        session.console.warn(f"incident {incident.id} cannot be replayed later: its case was not written ({said})")


def maybe_raise_lr(session: Session) -> None:
    """Raise a lowered learning rate again where it has held; the policy says when."""
    if not session.progress.lr_factors:
        return
    history = history_at(session, session.progress.step)
    for component, factor in recovery.maybe_raise(history, session.progress.lr_factors).items():
        session.progress.lr_factors[component] = factor
        session.console.note(f"{component}: learning rate raised again to {factor:.3g} of the plan; it has held")
