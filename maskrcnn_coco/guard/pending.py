"""A step whose numbers are on their way from the device, and how they are sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.guard import forward_backward
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord


@dataclass
class Pending:
    """A step whose numbers are on their way.

    [refused, optimizer state, buffers, scale, total norm, losses…, norms…, bounds…, sizes of buffers…, and, where
    measured, update ratios…]; norms, bounds and ratios for each component.
    """

    record: StepRecord
    names: list[str]
    without: list[str]
    """Losses that have no graph."""
    slots: list[int]
    """Positions of the buffers whose sizes are told."""
    numbers: Tensor
    arrived: Any
    suspicion: Verdict | None
    aside: list[Any] = field(default_factory=list)
    """What modules kept before it that is no tensor."""


def run_unread(
    forward: forward_backward.Forward, batches: Sequence[Any], scaler: Any
) -> tuple[list[str], list[str], Tensor]:
    """Forward and backward of every micro-batch; loss names, those without a graph, means float32 (n,), not read."""
    sums: dict[str, Tensor] = {}
    graphs: set[str] = set()
    for batch in batches:
        terms: Mapping[str, Tensor] = forward_backward.as_terms(forward(batch))
        for name, term in terms.items():
            value = term.detach().reshape(()).float() / len(batches)
            sums[name] = sums[name] + value if name in sums else value
            graphs |= {name} if term.requires_grad else set()
        forward_backward.backward(list(terms.values()), len(batches), scaler)
    return list(sums), [n for n in sums if n not in graphs], torch.stack(list(sums.values()))


def send(numbers: Tensor) -> tuple[Tensor, Any]:
    """One non-blocking copy to the host, and the event that says it has arrived (None: it is there)."""
    if numbers.device.type != "cuda":
        return numbers.cpu(), None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(numbers.device))  # not of whichever device is current
    return host, event
