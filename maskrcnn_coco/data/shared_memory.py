"""Batches on their way out of a worker: all tensors of a step in one piece of shared memory, masks without their zeros.

torch sends each tensor as a file descriptor of its own, over a connection of its own; a step of 16 images would have a
hundred, and each new page of shared memory costs more than computing what is in it. Here a step is one descriptor, one
copy where memory is page-locked, and of a mask only the window around the object travels.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.outlines import Outlines

_ALIGN = 64
_SPARSE_FROM = 1 << 16
"""Bytes of masks from which looking for windows pays."""


class _Slot(NamedTuple):
    """Where a tensor lies in the buffer."""

    start: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class _Windows:
    """A (N, H, W) tensor that is zero outside of ``windows``: rows (index, top, left), and a slot each."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    windows: list[tuple[int, int, int, _Slot]]


@dataclass
class Parcel:
    """A step's micro-batches with their tensors replaced by slots of ``buffer`` (uint8, one dimension)."""

    buffer: Tensor
    batches: list[Batch]

    def pin_memory(self) -> Parcel:
        """In page-locked memory; torch's DataLoader calls this."""
        return replace(self, buffer=self.buffer.pin_memory())

    def open(self) -> list[Batch]:
        """The batches as they were packed; most tensors are views of the buffer."""
        return [_mapped(batch, self._take) for batch in self.batches]

    def _take(self, value: Any) -> Any:
        if isinstance(value, _Slot):
            piece = self.buffer[value.start : value.start + value.size]
            return piece.view(value.dtype).view(value.shape)
        if isinstance(value, _Windows):
            pinned = self.buffer.device.type == "cpu" and torch.cuda.is_available() and self.buffer.is_pinned()
            whole = torch.zeros(value.shape, dtype=value.dtype, pin_memory=pinned)
            for index, top, left, slot in value.windows:
                whole[index, top : top + slot.shape[0], left : left + slot.shape[1]] = self._take(slot)
            return whole
        return value


class _Packer:
    """Gives each tensor its place, then copies all of them at once."""

    def __init__(self) -> None:
        self.placed: list[tuple[_Slot, Tensor]] = []
        self.end = 0

    def put(self, value: Any) -> Any:
        """A slot, or windows, instead of a plain CPU tensor; anything else as it is."""
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return value
        value = value.detach()
        small = value.numel() < _SPARSE_FROM
        if small or value.ndim != 3 or value.dtype not in (torch.uint8, torch.bool) or value.shape[0] == 3:
            return self._slot(value)
        return _Windows(tuple(value.shape), value.dtype, [self._window(n, mask) for n, mask in enumerate(value)])

    def _window(self, index: int, mask: Tensor) -> tuple[int, int, int, _Slot]:
        filled = mask.numpy()
        rows = np.flatnonzero(filled.any(axis=1))
        if len(rows) == 0:
            return index, 0, 0, self._slot(mask[:0, :0])
        top, bottom = int(rows[0]), int(rows[-1]) + 1
        cols = np.flatnonzero(filled[top:bottom].any(axis=0))
        left, right = int(cols[0]), int(cols[-1]) + 1
        return index, top, left, self._slot(mask[top:bottom, left:right])

    def _slot(self, tensor: Tensor) -> _Slot:
        slot = _Slot(self.end, tensor.numel() * tensor.element_size(), tuple(tensor.shape), tensor.dtype)
        self.placed.append((slot, tensor))
        self.end += -(-slot.size // _ALIGN) * _ALIGN
        return slot

    def buffer(self) -> Tensor:
        """All tensors in one new shared buffer."""
        buffer = torch.empty(0, dtype=torch.uint8)
        if self.end:
            storage = torch.UntypedStorage._new_shared(self.end, device="cpu")
            buffer.set_(storage, 0, (self.end,), (1,))  # type: ignore[call-overload]
        for slot, tensor in self.placed:
            if slot.size:
                buffer[slot.start : slot.start + slot.size].view(slot.dtype).view(slot.shape).copy_(tensor)
        return buffer


def pack(batches: list[Batch]) -> Parcel:
    """Move the tensors of ``batches`` into one shared buffer. Subclasses and nested values travel as they are."""
    packer = _Packer()
    emptied = [_mapped(batch, packer.put) for batch in batches]
    return Parcel(packer.buffer(), emptied)


def _mapped(batch: Batch, change: Any) -> Batch:
    targets = [
        {k: v.mapped(change) if isinstance(v, Outlines) else change(v) for k, v in t.items()} for t in batch.targets
    ]
    return replace(batch, images=[change(i) for i in batch.images], targets=targets)
