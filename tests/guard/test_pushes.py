"""Weights that somebody changes a little after every step: what it amounts to is seen, what loops mean is let be."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco.guard.attached import Attached
from maskrcnn_coco.guard.outside_changes import Pushes

Change = Callable[[nn.Sequential], Any]


def weight(model: Any) -> torch.Tensor:
    return model[2].weight.data


def run(change: Change | None, kind: Any = torch.optim.SGD, steps: int = 60, every: int = 1, lr: float = 0.05) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = kind(model.parameters(), lr=lr)
    guard = Attached(model, [optimizer], say=False)
    for step in range(steps):
        x = torch.randn(12, 6)
        optimizer.zero_grad()
        loss = guard.see((model(x)[:, 0] - x.sum(1)).square().mean())
        loss.backward()
        optimizer.step()
        if change is not None and step % every == 0:
            change(model)
    return guard


def scaled(by: float) -> Change:
    return lambda model: weight(model).mul_(by)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize(("change", "every"), [(scaled(1.3), 1), (scaled(1.1), 1), (scaled(2.0), 3)])
def test_small_changes_that_add_up_are_an_alarm(change: Change, every: int, kind: Any) -> None:
    guard = run(change, kind, every=every, lr=0.05 if kind is torch.optim.SGD else 1e-3)
    found = [a for a in guard.alarms if a.measured.get("changed_outside") == ["2.weight"]]
    assert found and found[0].measured["component"] == "2" and found[0].step <= 24, [a.message for a in guard.alarms]
    assert "outside the step" in found[0].message


HONEST: dict[str, Change] = {
    "clamped": lambda model: weight(model).clamp_(-0.2, 0.2),
    "of length 1": lambda model: weight(model).div_(weight(model).norm()),
    "rows of length 1": lambda model: model[0].weight.data.div_(model[0].weight.data.norm(dim=1, keepdim=True)),
    "noise": lambda model: weight(model).add_(0.02 * torch.randn_like(weight(model))),
    "decayed by hand": scaled(0.99),
    "pruned": lambda model: weight(model).mul_(torch.arange(16) % 4 == 0),
    "rounded": lambda model: weight(model).copy_((weight(model) * 64).round() / 64),
}


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam])
@pytest.mark.parametrize("name", HONEST)
def test_what_loops_mean_is_let_be(name: str, kind: Any) -> None:
    guard = run(HONEST[name], kind, steps=120, lr=0.05 if kind is torch.optim.SGD else 1e-3)
    assert not guard.alarms and guard.refused_steps == 0, [a.message for a in guard.alarms]
    assert guard.instruments.health.changed_outside


class One:
    """The layout of one component of four entries."""

    sizes, components = [4], ["a"]


def summed(changes: list[tuple[float, float]]) -> list[int]:
    """The changes, (norm before, now), that were too much."""
    pushes: Any = Pushes()
    return [i for i, (a, b) in enumerate(changes) if pushes.add([a], [b], One(), exact=True) is not None]


def test_weights_beyond_range_have_no_growth_and_break_nothing() -> None:
    assert summed([(math.inf, 3.0), (3.0, math.inf), (math.inf, math.inf), (1.0, 1.1), (1.1, 1.2)]) == []
    assert summed([(1e-30, 1e38)] * 4) == [2], "nor does a growth that no number holds"
    assert summed([(1.0, 1.5)] * 3) == [2]


def test_a_leap_that_was_an_alarm_of_its_own_is_not_counted_on() -> None:
    """What the loop goes on to do with the weights is honest."""

    def change(model: Any) -> None:
        steps[0] += 1
        scaled(1e3 if steps[0] == 2 else 1.001)(model)

    steps = [0]
    guard = run(change, torch.optim.Adam, steps=60, lr=1e-3)
    assert [a.step for a in guard.alarms if "changed_outside" in a.measured] == [2], [a.message for a in guard.alarms]
