"""One gradient that is a thousand times too long at a calm loss: Adam remembers its square for thousands of steps."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import attach

KINDS = {
    "adam": lambda p: torch.optim.Adam(p, 1e-2),
    "rmsprop": lambda p: torch.optim.RMSprop(p, 1e-3),
    "adagrad": lambda p: torch.optim.Adagrad(p, 0.05),
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, x: Tensor, y: Tensor, steep: Tensor) -> Tensor:
        made = self.body(x)[:, 0]
        # ``steep``: as much more gradient at the same loss, as a root near 0 has.
        return (made - y).square().mean() + (steep * (made - made.detach())).mean()


def run(
    kind: str, *, times: float = 1.0, at: int = 25, steep: float = 0.0, every: int = 999
) -> tuple[Any, list[float]]:
    torch.manual_seed(0)
    model = Net()
    optimizer = KINDS[kind](model.parameters())
    guard = attach(model, optimizer, diagnose=True, logdir=None)
    losses = []
    draw = torch.Generator().manual_seed(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(200):
            x = torch.randn(16, 8, generator=draw)
            y = x.sum(1).sin()
            added = torch.full((16,), steep if step % every == min(at, 24) else 0.0)
            optimizer.zero_grad()
            loss = model(x, y, added)
            loss.backward()
            if step == at and times != 1.0:
                for p in model.parameters():
                    assert p.grad is not None
                    p.grad.mul_(times)
            optimizer.step()
            losses.append(loss.item())
    return guard, losses


@pytest.mark.parametrize("times", [1e4, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_multiplied_once_is_refused_and_costs_one_step(kind: str, times: float) -> None:
    guard, losses = run(kind, times=times)
    assert [(i.step, i.cause) for i in guard.incidents] == [(25, "TRANSIENT")], guard.incidents
    _, clean = run(kind)
    assert sum(losses[-40:]) < 1.3 * sum(clean[-40:])


@pytest.mark.parametrize("times", [1e4, 1e6])
@pytest.mark.parametrize("kind", KINDS)
def test_the_first_gradient_multiplied_is_found_at_the_second_step(kind: str, times: float) -> None:
    guard, losses = run(kind, times=times, at=0)
    found = [(i.step, i.cause, i.action.kind) for i in guard.incidents]
    assert found == [(1, "TRANSIENT", "rollback")], guard.incidents
    assert guard.incidents[0].onset_step == 0
    _, clean = run(kind)
    assert sum(losses[-40:]) < 1.3 * sum(clean[-40:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_first_one_that_the_loss_has_is_let_be(kind: str) -> None:
    guard, _ = run(kind, steep=2e4, at=0)
    assert not guard.incidents and guard.refused_steps == 0, guard.incidents


@pytest.mark.parametrize("kind", KINDS)
def test_one_that_the_loss_has_is_let_be(kind: str) -> None:
    guard, _ = run(kind, steep=2e4, every=50)
    assert not guard.incidents and guard.refused_steps == 0, guard.incidents


def test_a_calm_run_is_never_asked() -> None:
    guard, _ = run("adam")
    assert not guard.incidents and guard.refused_steps == 0
