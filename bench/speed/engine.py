"""torchvision's references/detection/engine.py, restated once: what it does with the losses of an iteration."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

LR = 1e-5
"""So small that networks which are timed side by side stay the same."""


def reference_optimizer(net: nn.Module, *, fused: bool | None = None) -> torch.optim.SGD:
    """The reference's SGD; without ``fused`` as torch makes it by default."""
    params = [p for p in net.parameters() if p.requires_grad]
    return torch.optim.SGD(params, lr=LR, momentum=0.9, weight_decay=1e-4, fused=fused)


def reference_update(
    optimizer: torch.optim.Optimizer,
    losses: Mapping[str, Tensor],
    scaler: torch.amp.GradScaler | None = None,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> None:
    """From the losses to the new weights: the host reads their sum, and a loss that is not finite ends the run."""
    total = torch.stack(list(losses.values())).sum()
    if not math.isfinite(total.item()):
        raise SystemExit("loss is not finite")
    optimizer.zero_grad()
    if scaler is None:
        backward(total)
        optimizer.step()
        return
    backward(scaler.scale(total))
    scaler.step(optimizer)
    scaler.update()
