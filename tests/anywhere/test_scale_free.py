"""Losses that do not feel how long weights are: of angles, behind norms. An absurd update shows in its length alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from maskrcnn_coco import attach

X = torch.randn(128, 8, generator=torch.Generator().manual_seed(2))
Y = X @ torch.randn(8, 8, generator=torch.Generator().manual_seed(4))
Change = Callable[[torch.optim.Optimizer], None]


class Angles(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, 8))

    def forward(self, x: Tensor, wanted: Tensor) -> Tensor:
        return (1 - (normalize(self.body(x), dim=1) * normalize(wanted, dim=1)).sum(1)).mean()


def run(
    change: Change | None, at: int, kind: Any = torch.optim.SGD, steps: int = 50, **options: Any
) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = Angles()
    optimizer = kind(model.parameters(), **{"lr": 0.5, **options})
    guard = attach(model, optimizer, diagnose=True, logdir=None)
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(steps):
            if step == at and change is not None:
                change(optimizer)
            ids = torch.randperm(128)[:16]
            optimizer.zero_grad()
            loss = model(X[ids], Y[ids])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return guard, losses


def rate(factor: float) -> Change:
    def change(optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= factor

    return change


@pytest.mark.parametrize("at", [0, 15])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(torch.optim.SGD, {}), (torch.optim.SGD, {"momentum": 0.9, "lr": 0.1}), (torch.optim.Adam, {"lr": 3e-3})],
    ids=["sgd", "momentum", "adam"],
)
def test_an_absurd_rate_is_proved_by_the_length_of_its_update(kind: Any, options: Any, at: int) -> None:
    guard, losses = run(rate(1e6), at, kind, **options)
    assert guard.incidents and {i.cause for i in guard.incidents} == {"LR_TOO_HIGH"}, guard.incidents
    assert guard.incidents[0].confidence >= 0.9 and guard.incidents[0].action.kind == "lower_lr"
    assert losses[-1] < 0.7 * losses[0]


def test_a_momentum_that_somebody_blew_up_is_no_rate() -> None:
    def blown(optimizer: torch.optim.Optimizer) -> None:
        for state in optimizer.state.values():
            state["momentum_buffer"].mul_(1e9)

    guard, _ = run(blown, 15, momentum=0.9, lr=0.1)
    assert guard.incidents and not [i for i in guard.incidents if i.cause == "LR_TOO_HIGH" and i.confidence >= 0.9]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
def test_an_honest_one_is_let_be(kind: Any) -> None:
    guard, losses = run(None, 0, kind, lr=0.5 if kind is torch.optim.SGD else 3e-3)
    assert not guard.incidents and guard.refused_steps == 0 and losses[-1] < losses[0]
