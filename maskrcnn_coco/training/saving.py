"""When the loop saves, and what a checkpoint of a run holds. How it reaches the disk: `checkpoint.saver`."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.replay.state import nonfinite_names, state_tensors
from maskrcnn_coco.system import environment
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.wording import size

_SLACK = 1 << 16


def state_of(session: Session) -> dict[str, Any]:
    """Everything from which the run goes on as if it had never stopped. Tensors are the live ones; the saver copies."""
    return {
        "model": session.model.state_dict(),
        "optimizer": session.optimizer.state_dict(),
        **({} if session.ema is None else {"ema": session.ema.state_dict(), "use_ema": session.progress.use_ema}),
        "scaler": None if session.scaler is None else session.scaler.state_dict(),
        "guard": session.guard.state_dict(),
        "loop": {**session.progress.plain(), "epoch": session.epoch_of(session.progress.step)},
        "config": msgspec.to_builtins(session.config),
        "classes": list(session.data.class_names),
        "data": session.data.identity,
        "plan": {"images": len(session.plan), "steps_per_epoch": session.plan.steps_per_epoch},
        "category_ids": session.data.category_ids,
        "image_size": usual_size(session.data.train, session.train_source),
        "bit_range": session.data.bit_range,
        "as_stored": session.data.train is not None and session.data.train.as_stored,
        "quick": session.small,
        "environment": environment.fingerprint(session.ranks.world, device=session.device),
    }


def usual_size(table: CocoTable | None, source: object = None) -> list[int] | None:
    """[height, width], pixels: the medians of the training images, the size that tiles are cut to (``--tile auto``).

    Args:
        source: what a run trains on; where it cuts images into tiles, those are what the model knows.
    """
    if isinstance(source, CocoDataset) and source.tiles is not None:
        return [source.tiles.side, source.tiles.side]
    if table is None or len(table) == 0:
        return None
    return [int(np.median(table.heights)), int(np.median(table.widths))]


def checkpoint_bytes(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Size of a checkpoint of this run, about: weights and buffers, and what the optimizer keeps beside each weight."""
    kept = 2 if "betas" in optimizer.defaults else int(optimizer.defaults.get("momentum", 0) > 0)
    trained = sum(p.nbytes for group in optimizer.param_groups for p in group["params"])
    return sum(t.nbytes for t in model.state_dict().values()) + kept * trained


def require_space(session: Session) -> None:
    """Raise ConfigError where the disk cannot hold the first checkpoints; say where it may not hold all of them."""
    folder = Path(session.config.checkpoint_dir)
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return  # a file system that does not tell
    one = checkpoint_bytes(session.model, session.optimizer)
    # While a file is written the one that it replaces is still there; two independent ones are there at any time.
    first, files = 2 * one + _SLACK, min(session.config.keep or session.epochs, session.epochs) + 3
    if free < first:
        raise ConfigError(
            f"the disk of {folder} is too small for this run's checkpoints",
            got=f"{size(free)} free",
            expected=f"at least {size(first)}: a checkpoint takes {size(one)}, and two are there at any time",
            fix="free some space, or choose another disk with --checkpoint-dir",
        )
    if free < files * one:
        session.console.warn(
            f"{size(free)} are free for checkpoints of {size(one)} each: not enough for one of every epoch "
            "(--keep 3 keeps the newest three)"
        )


def save_epoch(session: Session, epoch: int, *, better: bool) -> None:
    """``epoch_NNN.pth``, ``last.pth`` and, after the best epoch so far, ``best.pth``."""
    if session.ranks.is_main and may_save(session):
        before(session)
        session.saver.save_epoch(epoch + 1, state_of(session), best=better)
        after(session)


def save_before_evaluation(session: Session) -> None:
    """``last.pth`` at the end of an epoch, in the background, unless this very step was saved already."""
    if session.ranks.is_main and session.val_source is not None and session.saved_step != session.progress.step:
        save_last(session)


def save_now(session: Session) -> None:
    """``last.pth`` now, and wait until it is on the disk."""
    if session.ranks.is_main and may_save(session):
        before(session)
        session.saver.save_last(state_of(session))
        after(session, session.saver.wait())


def save_without_copy(session: Session) -> None:
    """`save_now` where memory has run out."""
    if session.ranks.is_main and may_save(session):
        before(session)
        after(session, session.saver.save_last_itself(state_of(session)))


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
    session.last_save, session.saved_step = time.monotonic(), session.progress.step
    for sentence in session.saver.warnings() if warnings is None else warnings:
        session.console.warn(sentence)


def weights_finite(model: torch.nn.Module) -> bool:
    """Every parameter and buffer of ``model`` is finite."""
    return not nonfinite_names(state_tensors(model))
