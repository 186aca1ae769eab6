"""When the loop saves, and what a checkpoint of a run holds. How it reaches the disk is `checkpoint.py`'s business."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from maskrcnn_coco import environment
from maskrcnn_coco.checkpoint import FORMAT
from maskrcnn_coco.session import Session


def state_of(session: Session) -> dict[str, Any]:
    """Everything from which the run goes on as if it had never stopped. Tensors are the live ones; the saver copies."""
    return {
        "format": FORMAT,
        "model": session.bare_model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "scaler": None if session.scaler is None else session.scaler.state_dict(),
        "guard": session.guard.state_dict(),
        "loop": session.progress_dict(),
        "config": msgspec.to_builtins(session.config),
        "classes": list(session.data.class_names),
        "quick": session.quick,
        "environment": environment.fingerprint(session.ranks.world),
    }


def save_epoch(session: Session, epoch: int, *, better: bool) -> None:
    """``epoch_NNN.pth``, ``last.pth`` and, after the best epoch so far, ``best.pth``."""
    if not session.ranks.is_main:
        return
    with session.saving():
        session.saver.save_epoch(epoch + 1, state_of(session), best=better)
    session.saved(session.saver.wait() if session.last_epoch(epoch) else None)


def save_now(session: Session) -> None:
    """``last.pth`` now, and wait until it is on the disk."""
    if not session.ranks.is_main:
        return
    with session.saving():
        session.saver.save_last(state_of(session))
        session.saver.wait()


def save_if_due(session: Session) -> None:
    """``last.pth`` every N steps or seconds, where --checkpoint-every asks for it."""
    every = session.config.checkpoint_every
    if every is None or not session.ranks.is_main:
        return
    if every.endswith("s"):
        due = time.monotonic() - session.last_save >= float(every[:-1])
    else:
        due = session.progress.step % int(every) == 0
    if due:
        with session.saving():
            session.saver.save_last(state_of(session))
