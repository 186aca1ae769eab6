"""Settings that no training can mean are answered before what they do is in every copy of the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskrcnn_coco import attach

STEPS = 60
Make = Callable[[Any], torch.optim.Optimizer]


class Around(torch.optim.Optimizer):
    """Steps another one, whose groups are its own."""

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, dict(settings))
        self.base = torch.optim.SGD(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.base.step()


def trained(make: Make, *, at: Callable[[torch.optim.Optimizer, int], None] | None = None) -> tuple[Any, list[float]]:
    """A guard behind a loop of a small classifier whose scores are bounded: no loss of it is ever extreme."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3), nn.Tanh())
    optimizer, losses = make(model.parameters()), list[float]()

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(4 * model(x), x[:, :3].argmax(1))

    guard: Any = attach(model, optimizer, diagnose=True, forward=forward, logdir=None, say=False)
    for step in range(STEPS):
        if at is not None:
            at(optimizer, step)
        x = guard.batch(torch.randn(32, 8))
        optimizer.zero_grad()
        loss = guard.see(forward(model, x))
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
    return guard, losses


FAULTS: dict[str, tuple[Make, str]] = {
    "momentum": (lambda p: torch.optim.SGD(p, 0.1, momentum=1.1), "momentum=0.9 in the optimizer"),
    "nesterov": (lambda p: torch.optim.SGD(p, 0.1, momentum=1.2, nesterov=True), "momentum=0.9 in the optimizer"),
    "within another": (lambda p: Around(p, lr=0.1, momentum=1.15), "momentum=0.9 in the optimizer"),
    "rmsprop": (lambda p: torch.optim.RMSprop(p, 1e-3, momentum=1.1), "momentum=0.9 in the optimizer"),
    "decay": (lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=10), "weight_decay=0.0001 in the optimizer"),
    "adam's decay": (lambda p: torch.optim.AdamW(p, 0.01, weight_decay=80), "weight_decay=0.0001 in the optimizer"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_it_is_named_in_the_first_steps_and_the_run_learns(name: str) -> None:
    make, fix = FAULTS[name]
    guard, losses = trained(make)
    assert [(i.cause, i.action.kind, i.fix) for i in guard.incidents] == [("LR_TOO_HIGH", "lower_lr", fix)]
    assert guard.incidents[0].step <= 6 and guard.incidents[0].confidence >= 0.7
    assert sum(losses[-10:]) / 10 < 0.7 * losses[0]


def test_of_several_optimizers_too() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3), nn.Tanh())
    optimizers = [torch.optim.SGD(model[0].parameters(), 0.1), torch.optim.SGD(model[2].parameters(), 0.1, 1.1)]

    def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(4 * model(x), x[:, :3].argmax(1))

    guard: Any = attach(model, optimizers, diagnose=True, forward=forward, logdir=None, say=False)
    for _ in range(STEPS):
        x = guard.batch(torch.randn(32, 8))
        for optimizer in optimizers:
            optimizer.zero_grad()
        guard.see(forward(model, x)).backward()
        for optimizer in optimizers:
            optimizer.step()
    assert [i.fix for i in guard.incidents] == ["momentum=0.9 in the optimizer"]


def test_one_that_comes_under_way_is_answered_from_then() -> None:
    def set_at(optimizer: torch.optim.Optimizer, step: int) -> None:
        optimizer.param_groups[0]["momentum"] = 0.9 if step < 30 else 1.1

    guard, losses = trained(lambda p: torch.optim.SGD(p, 0.05, momentum=0.9), at=set_at)
    assert {(i.cause, i.fix) for i in guard.incidents} == {("LR_TOO_HIGH", "momentum=0.9 in the optimizer")}
    assert 30 <= guard.incidents[0].step <= 36 and sum(losses[-5:]) < 1.5 * sum(losses[25:30])


HONEST: dict[str, Make] = {
    "high": lambda p: torch.optim.SGD(p, 0.003, momentum=0.99, nesterov=True),
    "decay": lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=5.0),
    "strong": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=0.1),
    "a rate of its own": lambda p: torch.optim.SGD(p, 0.05, dampening=0.5, momentum=0.9),
}


@pytest.mark.parametrize("name", HONEST)
def test_odd_ones_are_left_alone(name: str) -> None:
    guard, _ = trained(HONEST[name])
    assert not guard.incidents


def test_one_cycle_of_both_is_left_alone() -> None:
    schedules: list[Any] = []

    def cycle(optimizer: torch.optim.Optimizer, step: int) -> None:
        if not schedules:
            schedules.append(torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, total_steps=STEPS + 1))
        elif step:
            schedules[0].step()

    guard, _ = trained(lambda p: torch.optim.SGD(p, 0.01, momentum=0.9), at=cycle)
    assert not guard.incidents
