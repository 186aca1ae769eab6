"""A refused step of this run, ready to be replayed."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec
from torch import nn

from maskrcnn_coco.advice.prepare import BATCHES, first_batches, make_task
from maskrcnn_coco.advice.trials import Task
from maskrcnn_coco.data.batch import make_batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.model.rig import make_rig
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.replay.case import Case, Rig
from maskrcnn_coco.replay.private_copy import deep_copy
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.replay.snapshot import Snapshot, take
from maskrcnn_coco.replay.tape import TapeEntry
from maskrcnn_coco.training.rollback import older_files
from maskrcnn_coco.training.session import Session

LATEST, FURTHEST = 8, 16
"""Records that are looked at for the alarm's step; and most steps that are taken again to where it began."""


def rig_of(session: Session) -> Rig:
    """How to run one of the session's steps away from it."""
    source = session.train_source
    return make_rig(
        session.config,
        session.model,
        session.device,
        session.precision,
        rank=session.ranks.rank,
        make=lambda keys: make_batch(source, keys),
        redraw=SampleKey.anew,
        fp32_modules=session.progress.fp32_modules,
    )


def settings_of(session: Session) -> dict[str, Any]:
    """Plain values for the explanation, and all that `rig_from_settings` needs on another machine."""
    return {
        "config": msgspec.to_builtins(session.config),
        "resume_path": session.resumed_from,
        "changed_in_file": session.changed_in_file[:50],
        "loaded_step": session.first_step,
        "lr": dict(session.schedule.lr),
        "lr_factors": dict(session.progress.lr_factors),
        "classes": list(session.data.class_names),
        "frozen": [n for n, p in session.model.named_parameters() if not p.requires_grad],
        "precision": session.precision,
        "rank": session.ranks.rank,
        "world": session.ranks.world,
        "fp32_modules": list(session.progress.fp32_modules),
        "steps_per_epoch": session.plan.steps_per_epoch,
        "accumulate": session.config.accumulate,
        "glitches": [i.step for i in session.incidents if i.cause == "TRANSIENT" or "multiplied" in i.detail],
    }


def build_case(session: Session, alarm: Alarm, batches: list[Any]) -> Case:
    """All that a replay needs, taken from the session without changing it."""
    case = Case(
        alarm=alarm,
        now=session.snapshot(alarm.step),
        earlier=[s for s in session.ring.items if s.step <= alarm.step],
        tape=list(session.tape),
        batches=batches,
        history=session.history[-300:],
        settings=settings_of(session),
        rig=rig_of(session),
        planned=lambda step: planned(session, step),
        files=lambda: older_files(session.config.checkpoint_dir, session.first_step),
        loaded_step=session.first_step if session.resumed_from else None,
    )
    if any(r.applied and r.step == alarm.step for r in session.history[-LATEST:]):
        case.now = state_before(case) or case.now
    return case


def state_before(case: Case) -> Snapshot | None:
    """The state that the alarm's step began from, where the step was taken: an older one, and the steps since it.

    None: there is no way from an older state to that step.
    """
    older = next((s for s in case.earlier if s.step <= case.alarm.step), None)
    if older is None or older.step == case.alarm.step:
        return older
    if case.alarm.step - older.step > FURTHEST:
        return None
    replay, found = Replay(dataclasses.replace(case, now=older)), list[Snapshot]()
    if not case.covers(older.step):
        return None

    def keep(model: nn.Module) -> None:
        epoch = case.alarm.epoch
        found.append(take(model, replay.optimizer, None, step=case.alarm.step, epoch=epoch))

    replay.walk(f"steps {older.step} to {case.alarm.step}, for the state before the last", older, visit=keep)
    return dataclasses.replace(found[0], scaler=case.now.scaler) if found else None


def planned(session: Session, step: int) -> TapeEntry | None:
    """What planned step ``step`` takes, at the rates of the plan; None past the end of the run."""
    if not 0 <= step < session.total_steps:
        return None
    epoch, keys = session.plan.step(step)
    scale = None if session.scaler is None else float(session.scaler.get_scale())
    return TapeEntry(step, epoch, keys, session.schedule.at(step), scale, applied=False)


def task_of(session: Session, steps: int) -> Task:
    """The session's training for ``steps`` steps, on a private copy of its model."""
    return make_task(
        session.config,
        lambda: deep_copy(session.model),
        session.forward.losses,
        first_batches(session.train_source, session.plan, min(steps, BATCHES)),
        device=session.device,
        precision=session.precision,
    )
