"""A loss with another weight, and loops that handle their gradients themselves: what replays say of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco import attach


def mlp() -> list[nn.Module]:
    return [nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)]


class Loop:
    """A small run with a guard that finds causes; ``weight`` of the step multiplies the loss."""

    def __init__(self, make: Callable[[Any], Any], weight: Callable[[int], float] = lambda step: 1.0) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(*mlp())
        self.optimizer, self.weight, self.step = make(self.model.parameters()), weight, 0
        self.guard: Any = attach(self.model, self.optimizer, diagnose=True, forward=self.loss, logdir=None, say=False)

    def loss(self, model: nn.Module, given: Any) -> torch.Tensor:
        return self.weight(self.step) * nn.functional.cross_entropy(model(given[0]), given[1])

    def run(self, steps: int, handle: Callable[[], None] = lambda: None, *, late: bool = False) -> list[str]:
        for self.step in range(steps):
            x = torch.randn(16, 12)
            given = self.guard.batch((x, x[:, :8].argmax(1)))
            self.optimizer.zero_grad()
            loss = self.loss(self.model, given)
            if not late:
                self.guard.see(loss)
            loss.backward()
            if late:
                self.guard.see(loss)
            handle()
            self.optimizer.step()
        return [i.cause for i in self.guard.incidents]


@pytest.mark.parametrize("weight", [lambda s: 30.0 if s >= 50 else 1.0, lambda s: 1.06**s])
def test_another_weight_is_told_from_a_divergence_and_stops_nobody(weight: Callable[[int], float]) -> None:
    loop = Loop(lambda p: torch.optim.Adagrad(p, 0.05), weight)
    causes = loop.run(80)
    assert 1 <= len(causes) <= 2 and set(causes) == {"LOSS_MATH"}
    first = loop.guard.incidents[0]
    assert first.action.kind == "skip" and first.detail["weighed"] > 1.5 and not loop.guard.instruments.lowered.factors


HEAVY: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05),
    "momentum": lambda p: torch.optim.SGD(p, 0.05, momentum=0.9),
    "asgd": lambda p: torch.optim.ASGD(p, 0.05),
}


@pytest.mark.parametrize("factor", [1e3, 1e4])
@pytest.mark.parametrize("kind", HEAVY)
def test_a_weight_that_the_rate_does_not_stand_is_to_blame_and_the_rate_comes_down(kind: str, factor: float) -> None:
    loop = Loop(HEAVY[kind], lambda s: factor if s >= 50 else 1.0)
    assert set(loop.run(60)) == {"LOSS_MATH"}
    assert "lower_lr" in [i.action.kind for i in loop.guard.incidents]
    assert all(f < 0.5 for f in loop.guard.instruments.lowered.factors.values())


def test_a_rate_that_rises_is_to_blame_whatever_the_loss_counts() -> None:
    loop = Loop(lambda p: torch.optim.SGD(p, 0.05), lambda s: 20.0 if s >= 40 else 1.0)

    def rise() -> None:
        loop.optimizer.param_groups[0]["lr"] = 50.0 if loop.step >= 50 else 0.05

    assert loop.run(60, rise)[-1] == "LR_TOO_HIGH"


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9),
    "centered": lambda p: torch.optim.RMSprop(p, 1e-3, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, 2e-3),
    "adadelta": lambda p: torch.optim.Adadelta(p),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
    "asgd": lambda p: torch.optim.ASGD(p, 0.01),
}


@pytest.mark.parametrize("over", [1, 20, 100])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_weight_that_rises_thirtyfold_is_refused_once_at_most_and_named(kind: str, over: int) -> None:
    def weight(step: int) -> float:
        return 1.0 + 29.0 * min(1.0, max(0, step - 59) / over)

    loop = Loop(OPTIMIZERS[kind], weight)
    causes = loop.run(200)
    assert (
        causes in ([], ["LOSS_MATH"]) and loop.guard.refused_steps <= 1 and not loop.guard.instruments.lowered.factors
    )
    torch.manual_seed(0)
    model = nn.Sequential(*mlp())
    optimizer = OPTIMIZERS[kind](model.parameters())
    guard = attach(model, optimizer, say=False)
    for step in range(200):
        x = torch.randn(16, 12)
        optimizer.zero_grad()
        guard.see(weight(step) * nn.functional.cross_entropy(model(x), x[:, :8].argmax(1))).backward()
        optimizer.step()
    assert guard.refused_steps <= 1


def test_a_weight_that_the_rate_does_not_stand_is_a_rate_too_high() -> None:
    causes = Loop(lambda p: torch.optim.SGD(p, 0.1, 0.9), lambda s: 1000.0 if s >= 30 else 1.0).run(34)
    assert causes and causes[0] in ("LR_TOO_HIGH", "LOSS_MATH") and "TRANSIENT" not in causes


def test_a_loop_that_clips_each_tensor_has_a_rate_too_high() -> None:
    loop = Loop(lambda p: torch.optim.SGD(p, 0.1, 0.9, nesterov=True))

    def handle() -> None:
        for p in loop.model.parameters():
            assert p.grad is not None
            p.grad.mul_((0.04 * p.detach().norm().clamp(min=1e-3) / p.grad.norm().clamp(min=1e-6)).clamp(max=1.0))
        loop.optimizer.param_groups[0]["lr"] = 100.0 if loop.step >= 30 else 0.1

    loop.run(34, handle)
    assert loop.guard.incidents[0].cause == "LR_TOO_HIGH" and loop.guard.incidents[0].confidence < 0.9


def test_a_loss_may_be_shown_after_its_backward_pass() -> None:
    assert Loop(lambda p: torch.optim.Adam(p, 2e-3)).run(5, late=True) == []


def test_a_glitch_where_holes_are_meant_is_one() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)

    def loss_of(m: nn.Module, given: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(m(given[0].nan_to_num()), given[1])

    guard: Any = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=None, say=False)
    for step in range(15):
        x = torch.randn(16, 8)
        y = x[:, :3].argmax(1)
        given = guard.batch((torch.where(torch.rand(16, 8) < 0.1, torch.nan, x), y))
        optimizer.zero_grad()
        guard.see(loss_of(model, given) * (torch.nan if step == 12 else 1.0)).backward()
        optimizer.step()
    assert [(i.step, i.cause) for i in guard.incidents] == [(12, "TRANSIENT")]


def test_a_rate_too_high_for_sparse_gradients_breaks_no_loop() -> None:
    """The rows of a sparse gradient are fewer than the weights' own; a loop goes on when its losses leave the rest."""
    torch.manual_seed(0)
    table = nn.EmbeddingBag(30, 8, sparse=True)
    optimizer = torch.optim.SparseAdam(table.parameters(), 0.02)
    guard: Any = attach(table, optimizer, logdir=None, say=False)
    for step in range(60):
        if step == 30:
            optimizer.param_groups[0]["lr"] = 2.0
        words = torch.randint(0, 30, (6, 2))
        optimizer.zero_grad()
        loss = (table(words) - words.float().mean(1, keepdim=True) / 30).square().mean()
        guard.see(loss).backward()
        optimizer.step()
    assert len(guard.records) == 60 and table.weight.isfinite().all()
