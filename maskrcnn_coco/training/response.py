"""From an alarm to the next step: the one place where guard, diagnosis and recovery meet.

The guard saw something and refused; here the case is put together, investigated by replay, decided by the policy, and
the decision is carried out on the session. Everything is written down before training goes on.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from maskrcnn_coco import recovery
from maskrcnn_coco.checkpoint.store import by_age, load
from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.facts import StateFault
from maskrcnn_coco.diagnosis.investigate import investigate
from maskrcnn_coco.diagnosis.scan_state import scan_state
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import CheckpointError, GuardStop
from maskrcnn_coco.model.forward import keep_fp32
from maskrcnn_coco.model.optim import lower_weight_decay
from maskrcnn_coco.model.rig import rig_of, settings_of
from maskrcnn_coco.readings import optimizer_names
from maskrcnn_coco.records import Action, Alarm, Evidence, Finding, Incident, plain, record_from
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.snapshot import Snapshot, restore
from maskrcnn_coco.report.incident_files import save_case
from maskrcnn_coco.system.backends import run_eagerly, use_libraries
from maskrcnn_coco.training.resume import load_state
from maskrcnn_coco.training.session import Session

DECISIONS = ("incidents", "quarantine", "quarantine_annotations", "lr_factors", "weight_decay", "fp32_modules")
"""What stays in force when an older state is loaded."""
INVESTIGATION_SECONDS = 120.0
"""Most time for one investigation; on small data it is bounded further by the price of twenty steps or so."""


def say(text: str) -> None:
    """One line on stderr, for code that has no console."""
    sys.stderr.write(f"maskrcnn_coco: {text}\n")


def respond(session: Session, alarm: Alarm, batches: list[Any]) -> int:
    """Diagnose ``alarm``, act, write the incident; returns the planned step to go on with.

    Raises:
        GuardStop: the policy, the mode or the budget says stop. The verdict is written first.
    """
    # Of several processes one investigates, the one whose batch is bad; all do what it decides.
    source = int(alarm.measured.get("rank", 0))
    case = build_case(session, alarm, batches)
    findings: list[Finding] = []
    if session.ranks.rank == source:
        findings = investigate(case, budget_seconds=INVESTIGATION_SECONDS)
    findings = shared_findings(session.ranks, findings, source)
    action = choose(session, alarm, findings)
    incident = compose(session, alarm, findings, action)
    next_step = alarm.step if action.kind == "stop" else act(session, alarm, action, incident)
    if next_step == alarm.step and action.kind != "stop":
        session.rewind(next_step)  # the refused try is in the incident; the records will hold the step that is taken
    incident.lost_steps = max(0, alarm.step - next_step)
    incident.outcome = "stopped" if action.kind == "stop" else "recovered"
    session.keep_incident(incident)
    if session.ranks.rank == source:
        keep_case(session, incident, case)
    if action.kind == "stop":
        raise GuardStop(
            f"stopped at step {alarm.step}: {incident.cause} ({alarm.message})",
            got=action.detail.get("why"),
            fix=incident.fix or f"maskrcnn-coco explain {incident.cause}",
        )
    return next_step


def shared_findings(ranks: Ranks, findings: list[Finding], source: int) -> list[Finding]:
    """The findings of process ``source``, on every process."""
    if ranks.world == 1:
        return findings
    return [record_from(Finding, f) for f in ranks.broadcast_object(plain(findings), source=source)]


def choose(session: Session, alarm: Alarm, findings: list[Finding]) -> Action:
    """The action: by mode, else by the policy."""
    if session.config.guard == "observe":
        return Action("skip", {"observed": True})
    if session.config.guard == "stop":
        return Action("stop", {"why": "--guard stop"})
    return recovery.decide(findings, history_at(session, alarm.step), session.limits)


def history_at(session: Session, step: int) -> recovery.History:
    """What the policy has to know of the run, seen from ``step``."""
    return recovery.History(session.incidents, step, images=len(session.plan), total=session.total_steps)


def build_case(session: Session, alarm: Alarm, batches: list[Any]) -> Case:
    """All that a replay needs, taken from the session without changing it."""
    return Case(
        alarm=alarm,
        now=session.snapshot(alarm.step),
        earlier=[s for s in session.ring.items if s.step <= alarm.step],
        tape=list(session.tape),
        batches=batches,
        history=session.history[-300:],
        settings=settings_of(session),
        rig=rig_of(session),
    )


def compose(session: Session, alarm: Alarm, findings: list[Finding], action: Action) -> Incident:
    """The incident record of the best finding and the action that was decided."""
    top = findings[0] if findings else Finding("UNKNOWN", 0.0, evidence=[Evidence("none made", "no finding")])
    number = f"{len(session.progress.incidents) + 1:04d}"
    return Incident(
        id=number,
        step=alarm.step,
        epoch=alarm.epoch,
        onset_step=alarm.onset_step if top.onset_step is None else top.onset_step,
        symptom=alarm.symptom,
        cause=top.cause,
        confidence=top.confidence,
        culprit=top.culprit,
        evidence=top.evidence,
        action=action,
        outcome="recovered",
        lost_steps=0,
        fix=top.fix,
        explain=f"maskrcnn-coco explain {top.cause}",
        detail={
            **top.detail,
            "lr_factors": dict(session.progress.lr_factors),
            "message": alarm.message,
            "measured": alarm.measured,
            "other_findings": [{"cause": f.cause, "confidence": f.confidence} for f in findings[1:]],
            "records": session.history[-60:],
            "time": time.time(),
        },
    )


def act(session: Session, alarm: Alarm, action: Action, incident: Incident) -> int:
    """Carry ``action`` out on the session; returns the step to go on with."""
    detail = action.detail
    match action.kind:
        case "skip":
            return alarm.step + 1
        case "quarantine":
            session.leave_out(detail.get("image_ids", []), detail.get("annotation_ids", []), incident.id)
            return go_back(session, detail["to_step"]) if "to_step" in detail else alarm.step
        case "rollback":
            return go_back(session, detail["to_step"])
        case "lower_lr":
            step = go_back(session, detail["to_step"])
            if "weight_decay" in detail:
                session.progress.weight_decay = detail["weight_decay"]
                lower_weight_decay(session.optimizer, detail["weight_decay"])
            for component in detail.get("components") or [detail["component"]]:
                session.progress.lr_factors[component] = (
                    session.progress.lr_factors.get(component, 1.0) * detail["factor"]
                )
            return step
        case "precision":
            return change_precision(session, alarm, detail)
        case "reload":
            return reload(session, alarm)
        case _:
            raise GuardStop(f"no such action: {action.kind}")


def go_back(session: Session, to_step: int) -> int:
    """Restore the newest verified snapshot at or before ``to_step``; returns its step.

    A state that was never touched (a refused step, snapshot of this very step missing) is kept as it is.
    """
    older = session.ring.items
    # The ring thins old states out: where none is old enough, the oldest is the nearest to it.
    snapshot = session.ring.newest(before_step=to_step + 1) or (min(older, key=lambda s: s.step) if older else None)
    if snapshot is None:
        raise GuardStop(f"no verified state is left from step {to_step} or before", fix="lower --lr, or check the data")
    return restore_session(session, snapshot)


def restore_session(session: Session, snapshot: Snapshot) -> int:
    """Put the session back to ``snapshot``; what recovery decided since (lower rates, quarantine) stays in force."""
    restore(snapshot, session.model, session.optimizer, session.scaler, guard=session.guard)
    if session.progress.weight_decay is not None:
        lower_weight_decay(session.optimizer, session.progress.weight_decay)
    session.guard.reset(snapshot.step)
    session.rewind(snapshot.step)
    return snapshot.step


def change_precision(session: Session, alarm: Alarm, detail: dict[str, Any]) -> int:
    """Keep one module in fp32, run it without compiled code or vendor library, or hold the loss scale."""
    run_eagerly(session.model, detail.get("eager_modules", []))
    session.progress.eager_modules += detail.get("eager_modules", [])
    if detail.get("libraries") is False:
        session.progress.libraries = False
        use_libraries(False)
    for name in detail.get("modules", []):
        keep_fp32(session.model, name)
        session.progress.fp32_modules.append(name)
    if "loss_scale" in detail and session.scaler is not None:
        session.scaler.update(float(detail["loss_scale"]))
    return go_back(session, detail["to_step"]) if "to_step" in detail else alarm.step


def reload(session: Session, alarm: Alarm) -> int:
    """The newest state that a scan finds sound: of memory first, then of the checkpoint folder.

    A state may be finite and poisoned all the same; so what was loaded or copied last is not taken on trust.
    """
    names = optimizer_names(session.model, session.optimizer)
    for snapshot in session.ring.items:
        if snapshot.step <= alarm.step and not poisoned(session, snapshot, names):
            return restore_session(session, snapshot)
    for path in by_age(session.config.checkpoint_dir):
        try:
            state = load(path)
        except CheckpointError as e:
            session.console.note(str(e))
            continue
        loop = state["loop"]
        held = Snapshot(loop["step"], loop["epoch"], state["model"], state["optimizer"], state["scaler"])
        faults = poisoned(session, held, names)
        if faults:
            session.console.note(f"{path} is passed over: {faults[0].what} ({faults[0].name})")
            continue
        decided = {name: getattr(session.progress, name) for name in DECISIONS}
        load_state(session, state, str(path))
        vars(session.progress).update(decided)
        if session.progress.weight_decay is not None:
            lower_weight_decay(session.optimizer, session.progress.weight_decay)
        session.ring.clear()
        session.guard.reset(session.progress.step)
        session.rewind(session.progress.step)
        return session.progress.step
    raise GuardStop("no verified state is left, in memory or on disk", fix="start again with healthy weights")


def poisoned(session: Session, snapshot: Snapshot, names: list[str]) -> list[StateFault]:
    """What no healthy run can hold, in ``snapshot``."""
    return [f for f in scan_state(snapshot, session.model, names, component_of) if f.certain]


def keep_case(session: Session, incident: Incident, case: Case) -> None:
    """Write what replays the incident elsewhere; a full disk or an odd tensor costs the replay, never the run."""
    try:
        save_case(session.logdir / "incidents", incident.id, case)
    except (OSError, RuntimeError) as e:
        session.console.warn(f"incident {incident.id} cannot be replayed later: its case was not written ({e})")


def maybe_raise_lr(session: Session) -> None:
    """Raise a lowered learning rate again where it has held; the policy says when."""
    if not session.progress.lr_factors:
        return
    history = history_at(session, session.progress.step)
    for component, factor in recovery.maybe_raise(history, session.progress.lr_factors).items():
        session.progress.lr_factors[component] = factor
        session.console.note(f"{component}: learning rate raised again to {factor:.3g} of the plan; it has held")
