"""Batches on their way out of a worker: all tensors of a step in one piece of shared memory.

torch sends each tensor as a file descriptor of its own, over a connection of its own; a step of 16 images would have a
hundred. One buffer a step is one descriptor, and one copy where memory is page-locked.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from maskrcnn_coco.batch import Batch

_ALIGN = 64


class _Slot(NamedTuple):
    """Where a tensor lies in the buffer."""

    start: int
    size: int
    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Parcel:
    """A step's micro-batches with their tensors replaced by slots of ``buffer`` (uint8, one dimension)."""

    buffer: Tensor
    batches: list[Batch]

    def pin_memory(self) -> Parcel:
        """In page-locked memory; torch's DataLoader calls this."""
        return replace(self, buffer=self.buffer.pin_memory())

    def open(self) -> list[Batch]:
        """The batches; their tensors are views of the buffer."""
        return [_mapped(batch, self._take) for batch in self.batches]

    def _take(self, value: Any) -> Any:
        if not isinstance(value, _Slot):
            return value
        piece = self.buffer[value.start : value.start + value.size]
        return piece.view(value.dtype).view(value.shape)


def pack(batches: list[Batch]) -> Parcel:
    """Move the tensors of ``batches`` into one shared buffer. Subclasses and nested values travel as they are."""
    tensors: list[tuple[_Slot, Tensor]] = []
    end = 0

    def put(value: Any) -> Any:
        nonlocal end
        if type(value) is not Tensor or value.device.type != "cpu" or value.layout != torch.strided:
            return value
        slot = _Slot(end, value.numel() * value.element_size(), tuple(value.shape), value.dtype)
        tensors.append((slot, value.detach()))
        end += -(-slot.size // _ALIGN) * _ALIGN
        return slot

    emptied = [_mapped(batch, put) for batch in batches]
    buffer = torch.empty(0, dtype=torch.uint8)
    if end:
        buffer.set_(torch.UntypedStorage._new_shared(end, device="cpu"), 0, (end,), (1,))  # type: ignore[call-overload]
    for slot, tensor in tensors:
        if slot.size:
            buffer[slot.start : slot.start + slot.size].view(slot.dtype).view(slot.shape).copy_(tensor)
    return Parcel(buffer, emptied)


def _mapped(batch: Batch, change: Any) -> Batch:
    targets = [{k: change(v) for k, v in t.items()} for t in batch.targets]
    return replace(batch, images=[change(i) for i in batch.images], targets=targets)
