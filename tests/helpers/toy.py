"""Models whose stability limits are known in closed form, for the tests of measured advice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.advice.trials import Task
from maskrcnn_coco.model.optim import build_optimizer


class Bowl(nn.Module):
    """One weight, started at 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def quadratic(
    curvatures: dict[str, float], *, momentum: float = 0.0, clip: float = 0.0, kind: str = "sgd", noise: float = 0.3
) -> Task:
    """Components with loss ½ λ (w - target)², where each batch has its own target: without that noise a weight comes to
    rest at the minimum and nothing shows for long that it would not stay there.

    Gradient descent without momentum is stable below a learning rate of 2 / λ.
    """

    def make_model() -> nn.Module:
        return nn.ModuleDict({name: Bowl() for name in curvatures})

    def forward(model: nn.Module, batch: Any, step: int, micro: int) -> dict[str, Tensor]:
        assert isinstance(model, nn.ModuleDict)
        names = {"rpn": "loss_objectness", "box_head": "loss_classifier", "mask_head": "loss_mask"}
        return {
            names.get(c, f"loss_{c}"): 0.5 * lam * ((model[c].weight - batch) ** 2).sum()
            for c, lam in curvatures.items()
        }

    def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(model, kind=kind, momentum=momentum, weight_decay=0.0)

    generator = torch.Generator().manual_seed(0)
    batches = list(noise * torch.randn(16, generator=generator))
    return Task(make_model, make_optimizer, forward, batches, max_grad_norm=clip)
