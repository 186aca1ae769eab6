"""Verified copies of a run's whole state in memory."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.replay.optimizer import restore_optimizer
from maskrcnn_coco.replay.optimizer_state import entries_of, saved_state, states_of
from maskrcnn_coco.replay.state import nonfinite_names, rng_state, scalar_finite, set_rng_state, state_tensors


@dataclass
class Snapshot:
    """The state before planned step ``step``: enough to go on from there bit for bit.

    ``model`` holds parameters and buffers (also non-persistent ones) under their state-dict names, without the prefix
    that `torch.compile` adds; ``optimizer`` has the layout of ``optimizer.state_dict()``. Every tensor is a private
    copy, on the device it came from or, where that is short, in main memory. ``verified``: no entry is non-finite.
    """

    step: int
    epoch: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    scaler: dict[str, Any] | None = None
    guard: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    rng: dict[str, Any] = field(default_factory=dict)
    verified: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes held by the tensors of this snapshot."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in _leaves(vars(self))}
        return sum(storages.values())


def take(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler | None,
    *,
    step: int,
    epoch: int,
    guard: Any = None,
    extra: dict[str, Any] | None = None,
    inspected: bool = False,
    host: bool = False,
) -> Snapshot:
    """Copy the state before planned step ``step`` and verify the copy.

    Args:
        guard: a `Guard`: what its alarms have learned is part of the state, and it must find the state sound.
        extra: the loop's own plain data (learning-rate factors, quarantined images …), copied deeply.
        inspected: the guard has just looked at this state and found it sound; it is not asked again.
        host: copy into main memory: the device has no room.
    """
    memo: dict[int, Tensor] = {}
    to = torch.device("cpu") if host else None
    snapshot = Snapshot(
        step=step,
        epoch=epoch,
        model={name: _clone(t, memo, to) for name, t in state_tensors(model).items()},
        optimizer=_clone(saved_state(optimizer), memo, to),
        scaler=scaler.state_dict() if scaler is not None and scaler.is_enabled() else None,
        guard=copy.deepcopy(guard.learned()) if guard is not None else {},
        extra=copy.deepcopy(extra) if extra else {},
        rng=rng_state(),
    )
    meant = guard.buffers.by_design if guard is not None else set()
    bad = [name for name in nonfinite_entries(snapshot) if name not in meant]
    snapshot.verified = not bad and (guard is None or inspected or guard.inspect() is None)
    return snapshot


def state_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes that a snapshot of them holds."""
    return sum(t.nbytes for t in (*state_tensors(model).values(), *states_of(optimizer)))


def restore(
    snapshot: Snapshot,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    scaler: torch.amp.GradScaler | None = None,
    guard: Any = None,
    *,
    rng: bool = True,
) -> None:
    """Put ``snapshot`` back, bit for bit and in place: every tensor keeps its identity, so compiled code stays valid.

    Raises:
        KeyError: the model or the optimizer is not the one that the snapshot was taken from.
    """
    live = state_tensors(model)
    if live.keys() != snapshot.model.keys():
        raise KeyError(f"not the model of this snapshot: {sorted(live.keys() ^ snapshot.model.keys())[:5]} differ")
    with torch.no_grad():
        for name, tensor in live.items():
            tensor.copy_(snapshot.model[name])
        if optimizer is not None:
            restore_optimizer(optimizer, snapshot.optimizer)
    if scaler is not None and scaler.is_enabled() and snapshot.scaler is not None:
        scaler.load_state_dict(snapshot.scaler)
    if guard is not None:
        if snapshot.guard:
            guard.load_state_dict(snapshot.guard)
        guard.reset(snapshot.step)
    if rng:
        set_rng_state(snapshot.rng)


def nonfinite_entries(snapshot: Snapshot) -> list[str]:
    """The names of the snapshot's entries that hold a NaN or an infinity; an empty list means it is sound."""
    state = {
        f"optimizer state {index}.{key}": value
        for index, entry in entries_of(snapshot.optimizer)
        for key, value in entry.items()
    }
    bad = nonfinite_names({**snapshot.model, **state})
    for i, group in enumerate(snapshot.optimizer.get("param_groups", [])):
        bad += [f"param_groups[{i}].{k}" for k, v in group.items() if k != "params" and not scalar_finite(v)]
    scale = (snapshot.scaler or {}).get("scale", 1.0)
    if not scalar_finite(scale) or scale <= 0:
        bad.append("scaler.scale")
    return bad


def _clone(value: Any, memo: dict[int, Tensor], to: torch.device | None) -> Any:
    """A deep copy in which a tensor that occurs twice is copied once; on device ``to``, None: where it is."""
    if isinstance(value, Tensor):
        if id(value) not in memo:
            value, key = value.detach(), id(value)
            memo[key] = value.clone() if to is None else value.to(to, copy=True)
            return memo[key]
        return memo[id(value)]
    if isinstance(value, dict):
        return {k: _clone(v, memo, to) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_clone(v, memo, to) for v in value)
    return copy.deepcopy(value)


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for v in value.values():
            yield from _leaves(v)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _leaves(v)
