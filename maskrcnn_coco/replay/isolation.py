"""What keeps a replay private: its own module patches, its own micro-batch counter, forked random generators."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn_coco.replay.case import Rig
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.state import state_tensors
from maskrcnn_coco.system.precision import keep_fp32

MOST = 1 << 20
"""Entries of a buffer that is copied: statistics and counters, no tables."""


class FixedScale:
    """Stands in for a GradScaler in a replay: the recorded scale, never searched."""

    def __init__(self, scale: float) -> None:
        self.value = scale

    def scale(self, loss: Tensor) -> Tensor:
        return loss if self.value == 1.0 else loss * self.value


class Counted:
    """The rig's forward for the micro-batches of one step, in order."""

    def __init__(
        self,
        rig: Rig,
        model: nn.Module,
        step: int,
        precision: str | None,
        *,
        reference: bool = False,
        again: bool = False,
    ) -> None:
        self.model, self.step, self.precision = model, step, precision
        other = rig.forward_again if again else rig.reference_forward if reference else None
        self.forward = other or rig.forward
        self.micro = 0

    def __call__(self, batch: Any) -> dict[str, Tensor]:
        losses = self.forward(self.model, batch, self.step, self.micro, self.precision)
        self.micro += 1
        return losses


def own(model: nn.Module, fp32_modules: Sequence[str] = ()) -> nn.Module:
    """``model`` without patched forwards that point into the run's model; ``fp32_modules`` are kept in float32 anew."""
    kept = [name for name, m in model.named_modules() if m.__dict__.pop("_kept_fp32", False)]
    for name in kept:
        model.get_submodule(name).__dict__.pop("forward", None)
    for name in dict.fromkeys([*kept, *fp32_modules]):
        keep_fp32(model, name)
    return model


@contextmanager
def untouched(model: nn.Module, state: Snapshot) -> Iterator[None]:
    """The run's ``model`` is in ``state``, and is so after the block too.

    A function of the caller's own may hold on to it by ways that no copy can follow (a loss with a running mean).
    """
    before = {name: (t, t._version) for name, t in state_tensors(model).items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, tensor in state_tensors(model).items():
                was, version = before.get(name, (None, -1))
                if name in state.model and (tensor is not was or tensor._version != version):
                    tensor.copy_(state.model[name])


class LiveBuffers:
    """The buffers of the run's own model, put back between replays; see `untouched`, which puts back all at the end.

    One replay's running mean would be the next one's, and two replays of one step two different steps.
    """

    def __init__(self, model: Any) -> None:
        self._kept: list[tuple[nn.Module, str, Tensor, int, Tensor]] = []
        for module in model.modules() if isinstance(model, nn.Module) else ():  # not of one that is made anew
            for name, held in module._buffers.items():
                if held is not None and held.numel() <= MOST and not held.is_inference() and not held.is_meta:
                    self._kept.append((module, name, held, held._version, held.detach().clone()))

    @torch.no_grad()
    def back(self) -> None:
        """As they were."""
        for i, (module, name, held, version, copied) in enumerate(self._kept):
            if module._buffers.get(name) is not held or held._version != version:
                held.copy_(copied)
                module._buffers[name] = held
                self._kept[i] = (module, name, held, held._version, copied)


@contextmanager
def kept_fp32(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    new = [n for n in names if not getattr(model.get_submodule(n), "_kept_fp32", False)]
    for name in new:
        keep_fp32(model, name)
    try:
        yield
    finally:
        for name in new:
            module = model.get_submodule(name)
            module.__dict__.pop("forward", None)
            module.__dict__.pop("_kept_fp32", None)


@contextmanager
def forked_random(cuda: bool) -> Iterator[None]:
    """Every random generator that training may draw from is, after the block, as it was before."""
    states = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if cuda else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def share_of(batches: Sequence[Any], whole: Sequence[Any] | None) -> float:
    """Cost of a replay as a share of the failing step, in images."""
    total = sum(len(b) for b in whole or []) or sum(len(b) for b in batches) or 1
    return sum(len(b) for b in batches) / total
