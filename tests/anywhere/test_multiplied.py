"""A loss that the loop multiplies once the guard has seen it: every gradient is one number times what it should be."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.replay.gradients import times_of

FROM = 40


class OwnSGD(torch.optim.Optimizer):
    """Nobody knows how long its steps are."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            p.sub_(self.param_groups[0]["lr"] * p.grad)


class Net(nn.Module):
    """Gives its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.cross_entropy(self.body(x), x[:, :3].argmax(1))


def trained(
    kind: Any, steps: range, by: float = 1e5, rate: float = 0.3, *, after: bool = False
) -> tuple[Any, list[float]]:
    """A guard behind 120 steps, whose losses count ``by`` times as much in ``steps``; and the model's losses.

    ``after``: their gradients are multiplied, behind the backward pass.
    """
    torch.manual_seed(0)
    model = Net()
    optimizer = kind(model.parameters(), lr=rate)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None, say=False)
    losses = []
    for step in range(120):
        optimizer.zero_grad()
        loss = model(torch.randn(16, 4))
        losses.append(loss.item())
        (loss * (by if step in steps and not after else 1.0)).backward()
        for p in model.parameters() if step in steps and after else ():
            assert p.grad is not None
            p.grad.mul_(by)
        optimizer.step()
    return guard, losses


@pytest.mark.parametrize("kind", [torch.optim.SGD, OwnSGD])
def test_steps_that_grow_with_the_gradient_are_made_as_long_as_they_were(kind: Any) -> None:
    guard, losses = trained(kind, range(FROM, 120))
    assert [(i.step, i.cause, i.action.kind) for i in guard.incidents] == [
        (FROM, "LOSS_MATH", "skip"),
        (FROM + 1, "LOSS_MATH", "lower_lr"),
    ]
    assert guard.incidents[0].confidence > 0.9 and "1e+05 times" in guard.incidents[0].evidence[0].outcome
    _, plain = trained(kind, range(0))
    assert sum(losses[-20:]) < 1.25 * sum(plain[-20:])


def test_steps_of_one_size_go_on_as_they_are() -> None:
    guard, losses = trained(torch.optim.Adam, range(FROM, 120), rate=0.01)
    assert {i.cause for i in guard.incidents} == {"LOSS_MATH"} and len(guard.incidents) == 2
    _, plain = trained(torch.optim.Adam, range(0), rate=0.01)
    assert sum(losses[-20:]) < 1.25 * sum(plain[-20:])


@pytest.mark.parametrize(("kind", "rate"), [(torch.optim.SGD, 0.3), (OwnSGD, 0.3), (torch.optim.Adam, 0.01)])
@pytest.mark.parametrize("by", [30.0, 100.0, 1e4, 1e8])
def test_gradients_multiplied_behind_the_backward_pass_are_answered_once(kind: Any, rate: float, by: float) -> None:
    # sums over processes or micro-batches that nobody divided, a scale that was taken off twice
    guard, losses = trained(kind, range(FROM, 120), by, rate, after=True)
    found = [(i.cause, i.action.kind) for i in guard.incidents]
    answer = "skip" if kind is torch.optim.Adam else "lower_lr"
    # Small factors are seen by what a few steps did to the weights, and proved by the gradients of those.
    assert found in ([("LOSS_MATH", answer)], [("TRANSIENT", "rollback"), ("LOSS_MATH", answer)], [])
    assert found or kind is torch.optim.Adam
    assert all(i.confidence < 0.9 for i in guard.incidents if i.cause == "TRANSIENT")
    _, plain = trained(kind, range(0), rate=rate)
    assert sum(losses[-20:]) < 1.25 * sum(plain[-20:])


def test_once_is_a_step_lost_and_no_more() -> None:
    guard, _ = trained(torch.optim.SGD, range(FROM, FROM + 1))
    assert [(i.step, i.cause, i.action.kind) for i in guard.incidents] == [(FROM, "LOSS_MATH", "skip")]


def test_rates_come_back_where_nobody_multiplies_any_more() -> None:
    guard, losses = trained(torch.optim.SGD, range(FROM, 60))
    assert not guard.instruments.lowered.factors
    assert sum(losses[-20:]) < 0.9 * sum(losses[40:60])


def test_a_hook_on_one_weight_is_no_factor_of_the_loss() -> None:
    model = Net()
    model(torch.randn(16, 4)).backward()
    own = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert times_of({n: 7.0 * g for n, g in own.items()}, model) == pytest.approx(7.0)
    assert times_of({n: g * (7.0 if n == "body.0.bias" else 1.0) for n, g in own.items()}, model) is None
    assert times_of({n: g.clamp(-1e-3, 1e-3) for n, g in own.items()}, model) is None
    assert times_of({}, model) is None and times_of({n: -0.5 * g for n, g in own.items()}, model) == pytest.approx(-0.5)
