"""Whether the tensors of a checkpoint are those that the run saved, each under its own name.

The SHA-256 of a file says that it is whole, whoever wrote it. A program that loads a checkpoint, exchanges or zeroes a
layer and saves it again leaves a whole file, finite, whose losses may hardly move. So the run writes down a number for
each tensor beside it (`DIGESTS`): who changes the tensor does not know that number.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import torch

DIGESTS = "digests"
"""Key of a state: name of a tensor → CRC-32 of its bytes, shape and dtype."""
_COVERED = ("model", "optimizer", "ema")


def digests_of(state: dict[str, Any]) -> dict[str, int]:
    """Name → digest of every tensor that training goes on from; ``state`` is on the CPU."""
    return {name: _digest(tensor) for name, tensor in _tensors(state)}


def changed_since_saved(state: dict[str, Any]) -> list[str]:
    """Tensors that are not what the run saved, or that came or went since; [] for files that tell no digests."""
    saved = state.get(DIGESTS)
    if not isinstance(saved, dict):
        return []
    found = digests_of(state)
    return [n for n in {**saved, **found} if saved.get(n) != found.get(n)]


def _tensors(state: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    todo = [(key, state.get(key)) for key in reversed(_COVERED)]
    while todo:
        name, value = todo.pop()
        if isinstance(value, torch.Tensor):
            yield name, value
        elif isinstance(value, dict):
            todo += [(f"{name}.{k}", v) for k, v in reversed(value.items())]
        elif isinstance(value, (list, tuple)):
            todo += [(f"{name}[{i}]", v) for i, v in reversed(list(enumerate(value)))]


def _digest(tensor: torch.Tensor) -> int:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    form = f"{tensor.dtype}{list(tensor.shape)}".encode()
    return zlib.crc32(flat.view(torch.uint8).numpy().data, zlib.crc32(form)) if flat.numel() else zlib.crc32(form)
