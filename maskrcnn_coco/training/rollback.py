"""Back to an older state, of memory or disk; what was decided stays in force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from maskrcnn_coco.checkpoint.store import by_age, load
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import CheckpointError, GuardStop
from maskrcnn_coco.records import Alarm, Incident
from maskrcnn_coco.replay.optimizer import lower_settings, put_usual
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system.backends import run_eagerly, use_fused_attention, use_libraries
from maskrcnn_coco.system.precision import keep_fp32
from maskrcnn_coco.training.own_settings import put_own
from maskrcnn_coco.training.progress import Progress
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.training.train_state import TrainState


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
    live = session.train_state
    live.restore(snapshot)
    put_in_force(session.progress, live, session.plan, session.train_source)
    live.guard.reset(snapshot.step)
    session.rewind(snapshot.step)
    return snapshot.step


def sound_state(live: TrainState, kept: Sequence[Snapshot], last: Incident) -> Snapshot | None:
    """Where a run that stops at ``last`` leaves model and optimizer: the newest verified state of ``kept``.

    None: ``live`` stands, as after a refused step where nothing was wrong with the state before it; after a
    divergence, the newest state from before it began.

    Raises:
        LookupError: there is no such state.
    """
    ruined = last.symptom in ("diverged", "stalled") or last.cause in ("LR_TOO_HIGH", "POISONED_STATE", "NORM_STATE")
    if not ruined and live.is_sound():
        return None
    held = [s for s in kept if s.step <= last.onset_step] or list(kept[-1:])
    if not held:
        raise LookupError("no verified state is held")
    return held[0]


def stand_on_sound(session: Session, last: Incident) -> bool:
    """Put model and optimizer into the newest verified state, as a run that stops leaves them to its caller.

    Records stay as they were written: they show what happened.

    Returns:
        Whether there is such a state. False leaves everything as it is.
    """
    live = session.train_state
    try:
        snapshot = sound_state(live, session.ring.items, last)
    except LookupError:
        return False
    if snapshot is not None:
        _stand_on(session, snapshot)
    return True


def stand_on_whole(session: Session) -> bool:
    """The same for a run that something else broke off, at any point of a step: state and count belong together.

    Returns:
        Whether there is such a state. False leaves everything as it is.
    """
    guard, step = session.guard, session.progress.step
    alarm = None
    if guard.late:
        guard.flush()
        alarm = guard.alarm
        step = step if alarm is None else alarm.step
    if alarm is not None or session.unsettled or not session.train_state.is_sound():
        snapshot = session.ring.newest(before_step=step + 1)
        if snapshot is None:
            return False
        _stand_on(session, snapshot)
    return True


def _stand_on(session: Session, snapshot: Snapshot) -> None:
    progress = session.progress
    session.train_state.restore(snapshot)
    progress.step = snapshot.step
    progress.closed_epochs = min(progress.closed_epochs, session.epoch_of(snapshot.step))
    progress.recall(session.history, snapshot.step)


def reload(session: Session, alarm: Alarm, checkpoint: str | None = None) -> int:
    """The newest state that a scan finds sound: of memory first, then of the checkpoint folder.

    A state may be finite and poisoned all the same; so what was loaded or copied last is not taken on trust.

    Args:
        checkpoint: the file that was proved to train on: that one, and nothing that came of the loaded one.
    """
    live = session.train_state
    for snapshot in session.ring.items if checkpoint is None else []:
        if snapshot.step <= alarm.step and not live.poisoned(snapshot):
            return restore_session(session, snapshot)
    paths = by_age(session.config.checkpoint_dir) if checkpoint is None else [Path(checkpoint)]
    source, state = sound_file(live, paths, session.console)
    decided = session.progress
    load_state(session, state, source)
    session.progress.keep_decisions(decided)
    put_in_force(session.progress, live, session.plan, session.train_source)
    session.ring.clear()
    live.guard.reset(session.progress.step)
    session.rewind(session.progress.step)
    return session.progress.step


def sound_file(live: TrainState, paths: Sequence[Path], console: Console) -> tuple[str, dict[str, Any]]:
    """The first checkpoint of ``paths`` that can be read and that a scan finds sound: its path and what it holds.

    Raises:
        GuardStop: there is none.
    """
    for path in paths:
        try:
            state = load(path)
        except CheckpointError as e:
            console.note(str(e))
            continue
        faults = live.poisoned(state_in(state))
        if not faults:
            return str(path), state
        console.note(f"{path} is passed over: {faults[0].what} ({faults[0].name})")
    raise GuardStop("no verified state is left, in memory or on disk", fix="start again with healthy weights")


def state_in(state: dict[str, Any]) -> Snapshot:
    """What a checkpoint holds, as a state to be looked at or replayed from; it was verified when it was read."""
    loop = state["loop"]
    return Snapshot(loop["step"], loop["epoch"], state["model"], state["optimizer"], state["scaler"], verified=True)


def older_files(folder: str, before_step: int) -> Iterator[tuple[str, Snapshot]]:
    """The checkpoints of ``folder`` from before ``before_step``, newest first; those that cannot be read not."""
    for path in by_age(folder):
        try:
            held = state_in(load(path))
        except CheckpointError:
            continue
        if held.step < before_step:
            yield str(path), held


def load_state(session: Session, state: dict[str, Any], source: str) -> list[str]:
    """Weights, optimizer, scaler, guard and progress of ``state`` into the session.

    Returns:
        The settings of its optimizer that nothing learns with; none of its settings is taken.
    """
    config, live = session.config, session.train_state
    live.load(state, source, f"{config.model}, {session.data.num_classes - 1} classes, {config.optimizer}")
    unusable = put_own(session)
    loop = dict(state["loop"])
    # Checkpoints of before this was counted were written after the epoch's end, or within an epoch.
    loop.setdefault("closed_epochs", loop.pop("epoch", 0))
    session.progress = Progress(**loop)
    session.progress.loaded()
    session.resumed_from, session.changed_in_file = source, []
    put_in_force(session.progress, live, session.plan, session.train_source)
    return unusable


def put_in_force(decided: Progress, live: TrainState, plan: Plan, source: CocoDataset | UserData) -> None:
    """What recovery decided, on model, optimizer and data; doing it twice changes nothing."""
    for name in decided.fp32_modules:
        keep_fp32(live.model, name)
    run_eagerly(live.model, decided.eager_modules)
    if not decided.libraries:
        use_libraries(False)
    if not decided.attention:
        use_fused_attention(False)
    lower_settings(live.optimizer, decided.settings_most)
    groups = live.optimizer.param_groups
    put_usual(groups, [str(g.get("component")) for g in groups], decided.usual)
    plan.quarantine([entry["id"] for entry in decided.quarantine if "index" not in entry])
    for entry in decided.quarantine:
        if "index" in entry:
            plan.quarantine_at(entry["index"])
    plan.redraw(decided.redrawn)
    for entry in decided.quarantine_annotations:
        source.quarantine([entry["id"]], entry.get("image_ids"))
