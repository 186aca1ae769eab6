"""Whether a run that goes on is still the same one: its classes, optimizer, data and plan, and what is converted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import msgspec

from maskrcnn_coco.config.settings import Config, flag
from maskrcnn_coco.data.fingerprint import changes
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import environment
from maskrcnn_coco.training.session import Session


def require_same_run(state: dict[str, Any], path: Path | None, config: Config, class_names: tuple[str, ...]) -> None:
    """Raise CheckpointError where the weights or the optimizer's state would mean something else from here on.

    A label is a place in the list of classes: two names that changed places would be trained into each other.
    """
    before, now = list(state.get("classes") or class_names), list(class_names)
    if before != now:
        moved = sorted(set(before) & set(now)) == sorted(set(before) | set(now))
        raise CheckpointError(
            f"{path} was trained on other classes" + (": the same names, in another order" if moved else ""),
            got=", ".join(now[1:])[:300],
            expected=", ".join(before[1:])[:300],
            fix=f"give the data that it was trained on, or begin a new run from its weights: --weights {path}",
        )
    _require_same_model(state["config"], path, config)
    kind = state["config"].get("optimizer", config.optimizer)
    if kind != config.optimizer:
        raise CheckpointError(
            f"{path} holds the state of another optimizer",
            got=f"--optimizer {config.optimizer}",
            expected=kind,
            fix=f"leave --optimizer away, or begin a new run from its weights: --weights {path}",
        )
    was, is_now = state["config"].get("fpn_lr_multiplier") or 1.0, config.fpn_lr_multiplier or 1.0
    if (was == 1.0) != (is_now == 1.0):
        raise CheckpointError(
            f"{path} holds the state of an optimizer in which the FPN "
            + ("learns at the backbone's rate" if was == 1.0 else "has a rate of its own"),
            got=f"--fpn-lr-multiplier {is_now:g}",
            expected="1" if was == 1.0 else f"another number than 1, as {was:g}",
            fix=f"leave --fpn-lr-multiplier away, or begin a new run from its weights: --weights {path}",
        )


_PLACES = ("resume", "checkpoint_dir", "logdir", "workers", "device", "track")
"""Settings that are of this start, not of the run."""


def _require_same_model(saved: dict[str, Any], path: Path | None, config: Config) -> None:
    """Raise CheckpointError where a flag asks for a model, or for weights, that the checkpoint's state is not of."""
    for name, meaning in (
        ("model", "is of another model"),
        ("weights", "brings its own weights, and others were asked for"),
        ("backbone_weights", "brings its own weights, and others were asked for"),
    ):
        before, now = saved.get(name), getattr(config, name)
        # A file may be named from another folder now.
        if now is not None and Path(now).name != Path(before or "").name and (before or name == "backbone_weights"):
            flag = "--" + name.replace("_", "-")
            raise CheckpointError(
                f"{path} {meaning}",
                got=f"{flag} {now}",
                expected=f"{flag} {before}" if before else f"no {flag}",
                fix=f"leave {flag} away, or begin a new run: --resume none"
                + (f" --weights {path}" if name == "model" else ""),
            )


def changed_settings(session: Session, state: dict[str, Any]) -> list[str]:
    """What this start changes of the run that it goes on with, as ``--seed 7 (0 before)``."""
    now = msgspec.to_builtins(session.config)
    before = {k: v for k, v in state["config"].items() if k in now and k not in _PLACES}
    return [
        f"{flag(name)} {now[name]} ({value} before)"
        for name, value in before.items()
        if msgspec.json.encode(now[name]) != msgspec.json.encode(value)
    ]


def inexact(session: Session, state: dict[str, Any]) -> list[str]:
    """Why the bits of this run may differ from those of one that never stopped; empty where they do not."""
    now = environment.fingerprint(session.ranks.world, device=session.device)
    other = changes(state.get("data") or {}, session.data.identity)
    return [*environment.differs(state["environment"], now), *(f"changed since: {what}" for what in other)]


def convert_plan(session: Session, state: dict[str, Any]) -> str | None:
    """Where an epoch has another number of steps now (more processes, another batch), put the run at the same share of
    its epochs; returns what was done, in a sentence.

    An epoch is cut anew, so the images of the rest of this one are not exactly those not seen yet.
    """
    before, now, step = (
        steps_per_epoch_of(state, len(session.plan)),
        session.plan.steps_per_epoch,
        session.progress.step,
    )
    if before is None or before == now:
        return None
    epoch, within = divmod(step, before)
    session.progress.step = epoch * now + within * now // before
    session.guard.reset(session.progress.step)
    rest = " (the rest of this epoch is drawn anew)" if within else ""
    return (
        f"an epoch has {now} steps now, {before} before: step {step} is counted as step {session.progress.step} of "
        f"{session.total_steps}, at the same share of the epochs{rest}; the learning rate follows the new count"
    )


def steps_per_epoch_of(state: dict[str, Any], images: int) -> int | None:
    """Steps of an epoch in the run that saved ``state``; for older checkpoints from its settings and ``images``."""
    plan = state.get("plan")
    if isinstance(plan, dict) and isinstance(plan.get("steps_per_epoch"), int):
        return plan["steps_per_epoch"]
    batch, parts = state["config"].get("batch_size"), state["config"].get("accumulate")
    world = state["environment"].get("world", 1)
    if not all(isinstance(n, int) and n > 0 for n in (batch, parts, world)):
        return None
    return math.ceil(images / (batch * parts * world))
