"""Targets that grow a hundredfold, as the returns of a policy that gets better: nothing is refused for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco import attach

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "sgd": lambda p: torch.optim.SGD(p, 1e-4, 0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 7e-4),
}


def value_loss(model: nn.Module, batch: Any) -> torch.Tensor:
    return nn.functional.mse_loss(model(batch[0])[:, 0], batch[1])


@pytest.mark.parametrize("diagnose", [False, True])
@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_value_loss_that_grows_with_its_targets(kind: str, clip: float, diagnose: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer, worth = OPTIMIZERS[kind](model.parameters()), torch.randn(6)
    more: dict[str, Any] = {"diagnose": True, "forward": value_loss, "logdir": None} if diagnose else {}
    guard: Any = attach(model, optimizer, say=False, **more)
    for step in range(520):
        x = torch.randn(64, 6)
        batch = (x, 100 ** (min(step, 500) / 500) * ((x @ worth).tanh() + 0.2 * torch.randn(64) + 0.3))
        batch = guard.batch(batch) if diagnose else batch
        optimizer.zero_grad()
        guard.see(value_loss(model, batch)).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    assert guard.refused_steps == 0


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_rate_that_creeps_up_too_high_is_none(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer, worth = OPTIMIZERS[kind](model.parameters()), torch.randn(6)
    guard = attach(model, optimizer, say=False)
    rate = optimizer.param_groups[0]["lr"]
    for step in range(300):
        optimizer.param_groups[0]["lr"] = rate * 1.1 ** max(0, step - 100)
        x = torch.randn(64, 6)
        optimizer.zero_grad()
        guard.see(value_loss(model, (x, (x @ worth).tanh()))).backward()
        optimizer.step()
        if guard.alarms:
            break
    assert guard.alarms and not guard.regimes
