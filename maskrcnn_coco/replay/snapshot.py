"""Verified copies of a run's whole state in memory, and the tape that lets each recent batch be made again."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.replay.state import digest, nonfinite_names, rng_state, scalar_finite, set_rng_state, state_tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskrcnn_coco.records import StepRecord

__all__ = ["Ring", "Snapshot", "Tape", "TapeEntry", "digest", "is_finite", "restore", "take"]


@dataclass
class Snapshot:
    """The state before planned step ``step``: enough to go on from there bit for bit.

    ``model`` holds parameters and buffers (also non-persistent ones) under their state-dict names, without the prefix
    that `torch.compile` adds; ``optimizer`` has the layout of ``optimizer.state_dict()``. Every tensor is a private
    copy on the device it came from. ``verified`` says that no entry is non-finite.
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
) -> Snapshot:
    """Copy the state before planned step ``step`` and verify the copy.

    Args:
        guard: a `Guard`: what its alarms have learned is part of the state, and it must find the state sound.
        extra: the loop's own plain data (learning-rate factors, quarantined images …), copied deeply.
        inspected: the guard has just looked at this state and found it sound; it is not asked again.
    """
    memo: dict[int, Tensor] = {}
    snapshot = Snapshot(
        step=step,
        epoch=epoch,
        model={name: _clone(t, memo) for name, t in state_tensors(model).items()},
        optimizer=_clone(optimizer.state_dict(), memo),
        scaler=scaler.state_dict() if scaler is not None and scaler.is_enabled() else None,
        guard=copy.deepcopy(guard.state_dict()) if guard is not None else {},
        extra=copy.deepcopy(extra) if extra else {},
        rng=rng_state(),
    )
    snapshot.verified = not is_finite(snapshot) and (guard is None or inspected or guard.inspect() is None)
    return snapshot


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


def is_finite(snapshot: Snapshot) -> list[str]:
    """The names of the snapshot's entries that hold a NaN or an infinity; an empty list means it is sound."""
    state = {
        f"optimizer state {index}.{key}": value
        for index, entry in snapshot.optimizer.get("state", {}).items()
        for key, value in entry.items()
        if isinstance(value, Tensor)
    }
    bad = nonfinite_names({**snapshot.model, **state})
    for i, group in enumerate(snapshot.optimizer.get("param_groups", [])):
        bad += [f"param_groups[{i}].{k}" for k, v in group.items() if k != "params" and not scalar_finite(v)]
    scale = (snapshot.scaler or {}).get("scale", 1.0)
    if not scalar_finite(scale) or scale <= 0:
        bad.append("scaler.scale")
    return bad


class Ring:
    """At most ``capacity`` verified snapshots in at most ``max_bytes``, at ages that double: 1, 2, 4, 8 … additions.

    The newest is always kept, even where it alone exceeds ``max_bytes``.
    """

    def __init__(self, capacity: int = 4, max_bytes: int | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"a ring of snapshots needs a capacity of 1 or more, got {capacity}")
        self.capacity = capacity
        self.max_bytes = max_bytes
        self._items: list[tuple[int, Snapshot]] = []
        self._count = 0

    @property
    def items(self) -> list[Snapshot]:
        """The snapshots held, newest first."""
        return [s for _, s in reversed(self._items)]

    @property
    def nbytes(self) -> int:
        """Bytes held by all snapshots together."""
        return sum(s.nbytes for _, s in self._items)

    def add(self, snapshot: Snapshot) -> bool:
        """Keep ``snapshot``, thinning the older ones. A snapshot that is not verified is not kept: returns False."""
        if not snapshot.verified:
            return False
        self._items.append((self._count, snapshot))
        self._count += 1
        while len(self._items) > self.capacity or self._too_big():
            self._items.pop(self._redundant())
        return True

    def newest(self, before_step: int | None = None) -> Snapshot | None:
        """The newest snapshot, or the newest with ``step < before_step``; None where there is none."""
        held = (s for _, s in reversed(self._items) if before_step is None or s.step < before_step)
        return next(held, None)

    def clear(self) -> None:
        """Forget every snapshot."""
        self._items = []

    def drop_after(self, step: int) -> None:
        """Forget the snapshots taken after planned step ``step``, as after a rollback to it."""
        self._items = [(n, s) for n, s in self._items if s.step <= step]

    def _too_big(self) -> bool:
        return self.max_bytes is not None and len(self._items) > 1 and self.nbytes > self.max_bytes

    def _redundant(self) -> int:
        """The position whose loss opens the smallest ratio between its neighbours' ages; of equals the oldest."""
        ages = [self._count - n for n, _ in self._items]  # oldest first; the newest is 1
        if len(ages) == 2 or ages[0] > 2**self.capacity:
            return 0
        return min(range(1, len(ages) - 1), key=lambda i: ages[i - 1] / ages[i + 1])


@dataclass
class TapeEntry:
    """What it takes to make one planned step again. ``keys`` are the sample keys of each micro-batch."""

    step: int
    epoch: int
    keys: list[list[Any]]
    lr: dict[str, float]
    loss_scale: float | None
    applied: bool
    record: StepRecord | None = None


class Tape:
    """The last ``length`` planned steps, oldest first."""

    def __init__(self, length: int = 256) -> None:
        self._entries: deque[TapeEntry] = deque(maxlen=length)

    def add(self, entry: TapeEntry) -> None:
        """Append one planned step."""
        self._entries.append(entry)

    def complete(self, record: StepRecord) -> None:
        """What became of a step, which a guard that reads late says after the step was added."""
        for entry in reversed(self._entries):
            if entry.step == record.step:
                entry.applied, entry.loss_scale = record.applied, record.loss_scale
                return

    def since(self, step: int) -> list[TapeEntry]:
        """The entries of planned steps ``step`` and later."""
        return [e for e in self._entries if e.step >= step]

    def drop_from(self, step: int) -> None:
        """Forget planned steps ``step`` and later, as after a rollback to it."""
        kept = [e for e in self._entries if e.step < step]
        self._entries.clear()
        self._entries.extend(kept)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[TapeEntry]:
        return iter(self._entries)


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put a saved optimizer state back in place, bit for bit.

    Not `load_state_dict`: that one casts state to the parameters' dtype and gives every tensor a new identity and
    the file's memory layout. Fused kernels walk parameter and momentum side by side in memory: with weights in
    channels_last and momentum as it came from the file, they would pair the wrong numbers.

    Raises:
        KeyError: the state is of an optimizer with other groups.
    """
    groups: Sequence[dict[str, Any]] = saved["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups]:
        raise KeyError("not the optimizer of this snapshot: its parameter groups differ")
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        for key in [k for k in group if k not in kept]:
            del group[key]
        for key, value in kept.items():
            if key != "params":
                group[key] = _put(group.get(key), value)
        for parameter, index in zip(group["params"], kept["params"], strict=True):
            entry = saved["state"].get(index)
            if entry is None:
                optimizer.state.pop(parameter, None)
                continue
            state = optimizer.state[parameter]
            for key in [k for k in state if k not in entry]:
                del state[key]
            for key, value in entry.items():
                state[key] = _put(state.get(key), value)


def _put(live: Any, value: Any) -> Any:
    if isinstance(value, Tensor):
        if isinstance(live, Tensor) and live.shape == value.shape and live.dtype == value.dtype:
            return live.copy_(value)
        return value.clone()
    return copy.deepcopy(value)


def _clone(value: Any, memo: dict[int, Tensor]) -> Any:
    """A deep copy in which a tensor that occurs twice is copied once."""
    if isinstance(value, Tensor):
        if id(value) not in memo:
            memo[id(value)] = value.detach().clone()
        return memo[id(value)]
    if isinstance(value, dict):
        return {k: _clone(v, memo) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_clone(v, memo) for v in value)
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
