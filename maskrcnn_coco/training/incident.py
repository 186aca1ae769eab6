"""An incident put together from alarm, findings and action."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskrcnn_coco import recovery
from maskrcnn_coco.errors import MaskRCNNError
from maskrcnn_coco.records import Action, Alarm, Culprit, Evidence, Finding, Incident, incident_of
from maskrcnn_coco.training.data_fix import data_fix
from maskrcnn_coco.training.session import Session


def history_at(session: Session, step: int) -> recovery.History:
    """What the policy has to know of the run, seen from ``step``."""
    return recovery.History(session.incidents, step, images=len(session.plan), total=session.total_steps)


def compose(session: Session, alarm: Alarm, findings: list[Finding], action: Action) -> Incident:
    """The incident record of the best finding and the action that was decided."""
    number, factors = len(session.progress.incidents) + 1, session.progress.lr_factors
    incident = incident_of(number, alarm, findings, action, history=session.history, lr_factors=factors)
    if "redraw" in action.detail:
        return incident  # nothing in the data set is to be put right
    incident.fix = data_fix(
        incident.cause,
        incident.fix,
        incident.culprit.image_ids,
        way=session.way,
        flags=session.data.flags,
        findings=session.progress.findings,
    )
    return incident


def note_poisoned(session: Session, path: Path, why: str) -> None:
    """An incident for a checkpoint that was passed over: what was wrong and how many steps it costs."""
    action = Action("reload", {"checkpoint": str(session.saver.folder), "to_step": session.progress.step})
    evidence = [Evidence(f"scan: {path.name} at load", why, "POISONED_STATE")]
    _note_file(session, path, evidence, action, f"delete {path}")


def note_settings(session: Session, path: Path, unusable: Sequence[str]) -> None:
    """An incident for settings of a checkpoint's optimizer that nothing learns with: the run's own were taken."""
    evidence = [Evidence(f"scan: optimizer of {path.name} at load", what, "POISONED_STATE") for what in unusable]
    fix = f"look for what wrote {path}: a run's own settings are taken, never a file's"
    _note_file(session, path, evidence, Action("reload", {"checkpoint": str(path)}), fix)


def _note_file(session: Session, path: Path, evidence: list[Evidence], action: Action, fix: str) -> None:
    step = session.progress.step
    incident = Incident(
        id=f"{len(session.progress.incidents) + 1:04d}",
        step=step,
        epoch=session.epoch_of(step),
        onset_step=step,
        symptom="param_nonfinite",
        cause="POISONED_STATE",
        confidence=1.0,
        culprit=Culprit(checkpoint=str(path)),
        evidence=evidence,
        action=action,
        outcome="recovered",
        lost_steps=0,
        fix=fix,
        explain="maskrcnn-coco explain POISONED_STATE",
    )
    session.keep_incident(incident)


def note_stop(session: Session, stop: MaskRCNNError) -> None:
    """An incident for a stop that no alarm led to: its own words are all that is known."""
    step = session.progress.step
    alarm = Alarm("crash", step, session.epoch_of(step), step, stop.what)
    finding = Finding("UNKNOWN", 0.0, evidence=[Evidence("guard", stop.what)], fix=stop.fix or "")
    incident = compose(session, alarm, [finding], Action("stop", {"why": stop.what}))
    incident.outcome = "stopped"
    session.keep_incident(incident)
