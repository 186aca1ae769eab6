"""When the loop saves, and what a checkpoint of a run holds. How it reaches the disk is `checkpoint.py`'s business."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import numpy as np
import torch

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.replay.state import nonfinite_names, state_tensors
from maskrcnn_coco.system import environment
from maskrcnn_coco.training.session import Session


def state_of(session: Session) -> dict[str, Any]:
    """Everything from which the run goes on as if it had never stopped. Tensors are the live ones; the saver copies."""
    return {
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        "scaler": None if session.scaler is None else session.scaler.state_dict(),
        "guard": session.guard.state_dict(),
        "loop": {**session.progress.plain(), "epoch": session.epoch_of(session.progress.step)},
        "config": msgspec.to_builtins(session.config),
        "classes": list(session.data.class_names),
        "category_ids": session.data.category_ids,
        "image_size": usual_size(session.data.train),
        "quick": session.quick,
        "environment": environment.fingerprint(session.ranks.world, device=session.device),
    }


def usual_size(table: CocoTable | None) -> list[int] | None:
    """[height, width], pixels: the medians of the training images, the size that tiles are cut to (``--tile auto``)."""
    if table is None or len(table) == 0:
        return None
    return [int(np.median(table.heights)), int(np.median(table.widths))]


def save_epoch(session: Session, epoch: int, *, better: bool) -> None:
    """``epoch_NNN.pth``, ``last.pth`` and, after the best epoch so far, ``best.pth``."""
    if session.ranks.is_main and may_save(session):
        before(session)
        session.saver.save_epoch(epoch + 1, state_of(session), best=better)
        after(session)


def save_now(session: Session) -> None:
    """``last.pth`` now, and wait until it is on the disk."""
    if session.ranks.is_main and may_save(session):
        before(session)
        session.saver.save_last(state_of(session))
        after(session, session.saver.wait())


def save_is_due(session: Session) -> bool:
    """Every N steps or seconds, where --checkpoint-every asks for it."""
    every = session.config.checkpoint_every
    if every is None or not session.ranks.is_main:
        return False
    if every.endswith("s"):
        return time.monotonic() - session.last_save >= float(every[:-1])
    return session.progress.step % int(every) == 0


def save_last(session: Session) -> None:
    """``last.pth``, in the background."""
    if may_save(session):
        before(session)
        session.saver.save_last(state_of(session))
        after(session)


def may_save(session: Session) -> bool:
    """Nothing non-finite is ever written: with the guard off the weights may have died."""
    if session.config.guard in ("recover", "stop") or weights_finite(session.model):
        return True
    session.console.warn("the weights are not finite: no checkpoint is written, the older ones stay as they are")
    return False


def before(session: Session) -> None:
    """What happened before a checkpoint is on the disk before it: a resumed run does not write it again."""
    session.log.write_due(session.progress)
    session.log.flush()


def after(session: Session, warnings: list[str] | None = None) -> None:
    """Note the time, and say what went wrong with saves (a full disk, say); the run goes on."""
    session.last_save = time.monotonic()
    for sentence in session.saver.warnings() if warnings is None else warnings:
        session.console.warn(sentence)


def weights_finite(model: torch.nn.Module) -> bool:
    """Every parameter and buffer of ``model`` is finite."""
    return not nonfinite_names(state_tensors(model))
