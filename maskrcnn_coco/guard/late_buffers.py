"""Buffers that a forward pass changes, judged on the device: a late guard's share of what `buffers` knows."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from maskrcnn_coco.guard.buffers import LEAP, Buffers
from maskrcnn_coco.guard.norms import stacked_norms

REFRESH = 10
"""Steps after which the limits are made anew, of sizes that have arrived since: they are a million times those."""


class LateBuffers:
    """Norms of changing buffers against limits that are on the device already.

    As `Buffers.wrong` has it, but for what takes a read to know: what no step of ours has made has no limit.
    """

    def __init__(self, buffers: Buffers) -> None:
        self.buffers = buffers
        self._learned: set[int] = set()
        self._limits: tuple[tuple[int, ...], int, Tensor] = ((), REFRESH, torch.zeros(0))

    def measure(self, device: torch.device) -> tuple[list[int], Tensor, Tensor]:
        """After a forward pass: which buffers, their norms float32 (n,), and whether one is wrong, bool ()."""
        found = self.buffers.active_floats()
        slots = [i for i, _ in found]
        if not found:
            return slots, torch.zeros(0, device=device), torch.zeros((), dtype=torch.bool, device=device)
        sizes = stacked_norms([t for _, t in found]).to(device).float()
        wrong = (~sizes.isfinite() | (sizes > self._limit(found, device))).any()
        own = [t.detach() for i, t in found if self.buffers.is_variance(i) and not t.dtype.is_complex]
        variances = [t.reshape(-1).float().to(device) for t in own]
        if variances:
            wrong = wrong | (torch.cat(variances).amin() < 0)
        return slots, sizes, wrong

    def learn(self, slots: Sequence[int], sizes: Sequence[float]) -> None:
        """Of a step that stands: so large are they when all is well."""
        self.buffers.sizes.update((i, s) for i, s in zip(slots, sizes, strict=True) if math.isfinite(s))
        self._learned.update(slots)

    def _limit(self, found: Sequence[tuple[int, Tensor]], device: torch.device) -> Tensor:
        slots, age, limits = self._limits
        now = tuple(i for i, _ in found)  # which can change: a norm is put into eval mode
        if now != slots or age >= REFRESH or limits.device != device:
            most = [self._most(i, t) for i, t in found]
            limits = torch.tensor(most, dtype=torch.float32).to(device, non_blocking=True)
            age = 0 if self._learned.issuperset(now) else REFRESH  # until all have arrived once
        self._limits = now, age + 1, limits
        return limits

    def _most(self, slot: int, tensor: Tensor) -> float:
        if slot not in self._learned or self.buffers.is_a_count(slot, tensor):
            return math.inf  # what its constructor, or a file, put there is no measure of the data
        return LEAP * max(self.buffers.sizes.get(slot, 0.0), 1e-3 * math.sqrt(tensor.numel()))
