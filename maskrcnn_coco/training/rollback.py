"""Back to an older state, of memory or disk; what was decided stays in force."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn_coco.checkpoint.store import by_age, load
from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.facts import StateFault
from maskrcnn_coco.diagnosis.scan_state import scan_state
from maskrcnn_coco.errors import CheckpointError, GuardStop
from maskrcnn_coco.records import Alarm, Incident
from maskrcnn_coco.replay.optimizer import lower_weight_decay, optimizer_names, restore_optimizer
from maskrcnn_coco.replay.snapshot import Snapshot, restore
from maskrcnn_coco.replay.state import nonfinite_names, state_tensors
from maskrcnn_coco.system.backends import run_eagerly, use_libraries
from maskrcnn_coco.system.precision import keep_fp32
from maskrcnn_coco.training.progress import Progress
from maskrcnn_coco.training.session import Session


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
    if session.ema is not None:
        session.ema.go_back(snapshot.step, session.model)
    put_in_force(session)
    session.guard.reset(snapshot.step)
    session.rewind(snapshot.step)
    return snapshot.step


def stand_on_sound(session: Session, last: Incident) -> bool:
    """Put model and optimizer into the newest verified state, as a run that stops leaves them to its caller.

    The state before the refused step stands where nothing was wrong with it; after a divergence, the newest snapshot
    from before it began. Records stay as they were written: they show what happened.

    Returns:
        Whether there is such a state. False leaves everything as it is.
    """
    ruined = last.symptom in ("diverged", "stalled") or last.cause in ("LR_TOO_HIGH", "POISONED_STATE", "NORM_STATE")
    if not ruined and session.guard.inspect() is None and not nonfinite_names(state_tensors(session.model)):
        return True
    held = [s for s in session.ring.items if s.step <= last.onset_step] or session.ring.items[-1:]
    if not held:
        return False
    snapshot = held[0]
    restore(snapshot, session.model, session.optimizer, session.scaler, guard=session.guard)
    session.progress.step = snapshot.step
    session.progress.closed_epochs = min(session.progress.closed_epochs, session.epoch_of(snapshot.step))
    session.progress.recall(session.history, snapshot.step)
    return True


def reload(session: Session, alarm: Alarm, checkpoint: str | None = None) -> int:
    """The newest state that a scan finds sound: of memory first, then of the checkpoint folder.

    A state may be finite and poisoned all the same; so what was loaded or copied last is not taken on trust.

    Args:
        checkpoint: the file that was proved to train on: that one, and nothing that came of the loaded one.
    """
    names = optimizer_names(session.model, session.optimizer)
    for snapshot in session.ring.items if checkpoint is None else []:
        if snapshot.step <= alarm.step and not poisoned(session, snapshot, names):
            return restore_session(session, snapshot)
    for path in by_age(session.config.checkpoint_dir) if checkpoint is None else [Path(checkpoint)]:
        try:
            state = load(path)
        except CheckpointError as e:
            session.console.note(str(e))
            continue
        held = state_in(state)
        faults = poisoned(session, held, names)
        if faults:
            session.console.note(f"{path} is passed over: {faults[0].what} ({faults[0].name})")
            continue
        decided = session.progress
        load_state(session, state, str(path))
        session.progress.keep_decisions(decided)
        put_in_force(session)
        session.ring.clear()
        session.guard.reset(session.progress.step)
        session.rewind(session.progress.step)
        return session.progress.step
    raise GuardStop("no verified state is left, in memory or on disk", fix="start again with healthy weights")


def state_in(state: dict[str, Any]) -> Snapshot:
    """What a checkpoint holds, as a state to be looked at or replayed from; it was verified when it was read."""
    loop = state["loop"]
    return Snapshot(loop["step"], loop["epoch"], state["model"], state["optimizer"], state["scaler"], verified=True)


def older_files(session: Session) -> Iterator[tuple[str, Snapshot]]:
    """The checkpoints of the folder that are older than the loaded one, newest first; those that cannot be read not."""
    for path in by_age(session.config.checkpoint_dir):
        try:
            held = state_in(load(path))
        except CheckpointError:
            continue
        if held.step < session.first_step:
            yield str(path), held


def poisoned(session: Session, snapshot: Snapshot, names: list[str]) -> list[StateFault]:
    """What no healthy run can hold, in ``snapshot``."""
    return [f for f in scan_state(snapshot, session.model, names, component_of) if f.certain]


def load_state(session: Session, state: dict[str, Any], source: str) -> None:
    """Weights, optimizer, scaler, guard and progress of ``state`` into the session."""
    try:
        session.model.load_state_dict(state["model"])
        restore_optimizer(session.optimizer, state["optimizer"])
    except (RuntimeError, ValueError, KeyError) as e:
        raise CheckpointError(
            f"{source} is a checkpoint of another model or optimizer",
            got=str(e).splitlines()[0],
            expected=f"{session.config.model}, {session.data.num_classes - 1} classes, {session.config.optimizer}",
            fix="give the same --model, --optimizer and data as before, or start from its weights with --weights",
        ) from e
    if session.scaler is not None and state["scaler"] is not None:
        session.scaler.load_state_dict(state["scaler"])
    session.guard.load_state_dict(state["guard"])
    if session.ema is not None:
        # A run that only now begins to average starts from the weights it goes on with.
        session.ema.load_state_dict(state.get("ema") or {"updates": 0, "weights": state["model"]})
    loop = dict(state["loop"])
    # Checkpoints of before this was counted were written after the epoch's end, or within an epoch.
    loop.setdefault("closed_epochs", loop.pop("epoch", 0))
    session.progress = Progress(**loop)
    session.resumed_from = source
    put_in_force(session)


def put_in_force(session: Session) -> None:
    """What recovery decided, from `Progress`, on model, optimizer and data; doing it twice changes nothing."""
    decided = session.progress
    for name in decided.fp32_modules:
        keep_fp32(session.model, name)
    run_eagerly(session.model, decided.eager_modules)
    if not decided.libraries:
        use_libraries(False)
    if decided.weight_decay is not None:
        lower_weight_decay(session.optimizer, decided.weight_decay)
    session.plan.quarantine([entry["id"] for entry in decided.quarantine if "index" not in entry])
    for entry in decided.quarantine:
        if "index" in entry:
            session.plan.quarantine_at(entry["index"])
    session.train_source.quarantine([entry["id"] for entry in decided.quarantine_annotations])
