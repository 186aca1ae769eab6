"""A step that an optimizer spoils is undone: weights, state and settings as they were."""

from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco.guard.joined import each
from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.guard.undo import Undo, may_fault


def parts_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    return SimpleNamespace(layout=Layout(model, optimizer, None), optimizer=optimizer)


def stepped(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.mark.parametrize("steps_before", [0, 2])
def test_put_back_bit_for_bit_with_state_and_settings(steps_before: int) -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(steps_before):
        stepped(model, optimizer)
    undo = Undo(parts_of(model, optimizer))
    undo.take()
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    stepped(model, optimizer)
    optimizer.param_groups[0]["lr"] = 9.0
    undo.put_back()
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    now = optimizer.state_dict()
    assert now["param_groups"] == state["param_groups"] and now["state"].keys() == state["state"].keys()
    for index, entry in state["state"].items():
        assert all(torch.equal(now["state"][index][k], v) for k, v in entry.items())


def test_weights_made_nan_are_named() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    undo = Undo(parts_of(model, optimizer))
    undo.take()
    with torch.no_grad():
        model.bias[0] = math.nan
    verdict = undo.fault()
    assert verdict is not None and verdict.symptom == "param_nonfinite" and verdict.measured["parameters"] == ["bias"]


def test_a_leap_of_finite_weights_is_a_divergence() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    undo = Undo(parts_of(model, optimizer))
    undo.take()
    assert undo.fault() is None
    with torch.no_grad():
        model.weight.mul_(1e9)
    verdict = undo.fault()
    assert verdict is not None and verdict.symptom == "diverged"


class Own(torch.optim.SGD):
    """Somebody's own optimizer."""


WEIGHTS = [nn.Parameter(torch.ones(2))]
HALF = [nn.Parameter(torch.ones(2, dtype=torch.float16))]


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (torch.optim.SGD(WEIGHTS, 0.1), False),
        (torch.optim.AdamW(WEIGHTS, 0.1), False),
        (torch.optim.Adam(WEIGHTS, 0.1, eps=0.0), True),
        (torch.optim.RMSprop(WEIGHTS, 0.1, centered=True), True),
        (torch.optim.SGD(HALF, 0.1), True),
        (Own(WEIGHTS, 0.1), True),
    ],
    ids=["sgd", "adamw", "eps 0", "centred", "half precision", "own"],
)
def test_which_optimizers_are_watched(optimizer: torch.optim.Optimizer, expected: bool) -> None:
    assert may_fault(optimizer) is expected


def test_an_optimizer_inside_another_is_seen() -> None:
    outer = Own(WEIGHTS, 0.1)
    outer.base = torch.optim.SGD(WEIGHTS, 0.1)  # type: ignore[attr-defined]
    assert [type(o).__name__ for o in each(outer)] == ["Own", "SGD"]
