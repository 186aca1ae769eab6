"""Weights that a loop moves before the step: back where the step would have moved them, left alone elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import attach
from maskrcnn_coco.replay.state import digest

AT = 8


class Climber(torch.optim.SGD):
    """Two calls: up by `climb`, back and down by `step`."""

    @torch.no_grad()
    def climb(self) -> None:
        for p in (p for g in self.param_groups for p in g["params"]):
            self.state[p]["up"] = 0.05 * p.grad / (p.grad.norm() + 1e-12)
            p.add_(self.state[p]["up"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for p in (p for g in self.param_groups for p in g["params"]):
            p.sub_(self.state[p].pop("up"))
        super().step()


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 1))


def loss_of(model: nn.Module, step: int, factor: float = 1.0) -> Tensor:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
    return (model(x)[:, 0] - x.sum(1)).square().mean() * factor


@pytest.mark.parametrize("first", [1.0, math.nan])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_climb_whose_second_half_is_refused_is_taken_back(momentum: float, first: float) -> None:
    """``first``: what the loss of the climb is multiplied by at the bad step; along NaN all weights become NaN."""
    model = net()
    optimizer = Climber(model.parameters(), lr=0.02, momentum=momentum)
    guard = attach(model, optimizer, say=False)
    for step in range(AT + 4):
        before = digest(model)
        optimizer.zero_grad()
        loss_of(model, step, first if step == AT else 1.0).backward()
        optimizer.climb()
        optimizer.zero_grad()
        guard.see(loss_of(model, step, math.nan if step == AT else 1.0)).backward()
        optimizer.step()
        assert guard.refused == (step == AT)
        assert (digest(model) == before) == (step == AT)
        assert all("up" not in s for s in optimizer.state.values())


@pytest.mark.parametrize("how", ["binary", "clamped", "never"])
def test_a_loop_that_puts_its_own_weights_back_keeps_them(how: str) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    guard = attach(model, optimizer, say=False)
    for step in range(AT + 4):
        full = [p.detach().clone() for p in model.parameters()]
        with torch.no_grad():
            for p in model.parameters() if how == "binary" else []:
                p.copy_(p.sign() * p.abs().mean())
        optimizer.zero_grad()
        guard.see(loss_of(model, step, math.nan if step == AT else 1.0)).backward()
        with torch.no_grad():
            for p, kept in zip(model.parameters(), full, strict=True):
                if how == "binary":
                    p.copy_(kept)
                elif how == "clamped":
                    p.clamp_(-0.3, 0.3)
        found = digest(model)
        optimizer.step()
        assert guard.refused == (step == AT)
        assert (digest(model) == found) == (step == AT)
