"""An optimizer's state that somebody changes between two steps: no absurd update stands, honest changes do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.errors import GuardWarning
from maskrcnn_coco.guard.foreign_state import UsualUpdates

OPTIM = torch.optim
KINDS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: OPTIM.SGD(p, 0.05, 0.9),
    "fused sgd": lambda p: OPTIM.SGD(p, 0.05, 0.9, fused=True),
    "adam": lambda p: OPTIM.Adam(p, 2e-3),
    "adamw": lambda p: OPTIM.AdamW(p, 2e-3, foreach=True),
    "amsgrad": lambda p: OPTIM.AdamW(p, 2e-3, amsgrad=True, fused=True),
    "nadam": lambda p: OPTIM.NAdam(p, 2e-3),
    "radam": lambda p: OPTIM.RAdam(p, 2e-3),
    "adamax": lambda p: OPTIM.Adamax(p, 2e-3),
    "rmsprop": lambda p: OPTIM.RMSprop(p, 1e-3, momentum=0.9),
    "adagrad": lambda p: OPTIM.Adagrad(p, 0.05),
    "adadelta": lambda p: OPTIM.Adadelta(p),
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(16, 8)
    return x, x[:, :3].argmax(1)


def loss_of(model: nn.Module, given: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return nn.functional.cross_entropy(model(given[0]), given[1])


class Loop:
    """A small run with one guard behind it."""

    def __init__(self, kind: str, steps: int = 24) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
        self.optimizer = KINDS[kind](self.model.parameters())
        self.guard = attach(self.model, self.optimizer, say=False)
        self.steps(steps)

    def steps(self, count: int) -> list[int]:
        refused = []
        for i in range(count):
            self.optimizer.zero_grad()
            self.guard.see(loss_of(self.model, batch())).backward()
            self.optimizer.step()
            refused += [i] if self.guard.refused else []
        return refused

    def scale(self, key: str, by: float) -> None:
        for entry in self.optimizer.state.values():
            entry[key].mul_(by)


def same(one: Any, other: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(
    ("kind", "key", "by"),
    [
        *((k, "momentum_buffer", by) for k in ("sgd", "fused sgd") for by in (1e6, 1e4)),
        *((k, "exp_avg", by) for k in ("adam", "adamw", "amsgrad", "nadam", "radam", "adamax") for by in (1e6, 1e4)),
        *(("adam", "exp_avg_sq", 0.0), ("adamax", "exp_inf", 0.0)),
        *(("rmsprop", "momentum_buffer", 1e4), ("adadelta", "acc_delta", 1e6)),
    ],
)
def test_no_absurd_update_stands(kind: str, key: str, by: float) -> None:
    loop = Loop(kind)
    before, state = copy.deepcopy(loop.model), copy.deepcopy(loop.optimizer.state_dict()["state"])
    loop.scale(key, by)
    assert loop.steps(1) == [0] and same(loop.model, before)
    assert loop.guard.alarm is not None and loop.guard.alarm.symptom == "optimizer_nonfinite"
    loop.scale(key, 1.0 / by if by else 1.0)
    loop.optimizer.load_state_dict({**loop.optimizer.state_dict(), "state": state})
    assert loop.steps(10) == []


@pytest.mark.parametrize("kind", KINDS)
def test_states_that_are_cleared_damped_or_loaded_are_no_fault(kind: str) -> None:
    loop = Loop(kind)
    kept = copy.deepcopy(loop.optimizer.state_dict())
    loop.optimizer.load_state_dict(kept)
    assert loop.steps(4) == []
    for entry in loop.optimizer.state.values():
        for key in ("momentum_buffer", "exp_avg"):
            if key in entry:
                entry[key].mul_(0.5)
    assert loop.steps(4) == []
    loop.optimizer.state.clear()
    if kind != "adagrad":  # whose step needs the state that its constructor made
        assert loop.steps(4) == []


@pytest.mark.parametrize("kind", ["sgd", "adam", "adadelta"])
def test_a_state_that_was_loaded_is_judged_at_its_first_step(kind: str) -> None:
    old = Loop(kind)
    old.scale({"sgd": "momentum_buffer", "adam": "exp_avg", "adadelta": "acc_delta"}[kind], 1e8)
    fresh = Loop(kind, steps=0)
    fresh.model.load_state_dict(old.model.state_dict())
    fresh.optimizer.load_state_dict(old.optimizer.state_dict())
    assert fresh.steps(1) == [0] and same(fresh.model, old.model)


def test_a_bare_guard_refuses_it_too() -> None:
    torch.manual_seed(0)
    model = nn.Linear(8, 3)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    guard = Guard(model, optimizer, max_grad_norm=None)
    assert all(guard.step(lambda b: loss_of(model, b), batch()).applied for _ in range(12))
    optimizer.state[model.weight]["exp_avg"].mul_(1e6)
    with pytest.warns(GuardWarning, match="exp_avg of weight"):
        assert not guard.step(lambda b: loss_of(model, b), batch()).applied


def test_what_is_usual_follows_the_rate() -> None:
    usual = UsualUpdates(torch.optim.SGD([nn.Parameter(torch.ones(1))], 1.0))
    sizes = {"a": 1.0}
    assert usual.most({"a": 0.1}, sizes, sure=True)["a"] == pytest.approx(1.0)
    usual.add({"a": 0.1}, {"a": 0.01})
    assert usual.most({"a": 0.1}, {"a": 0.0}, sure=True)["a"] == pytest.approx(15.0)
    assert usual.most({"a": 0.001}, {"a": 0.0}, sure=True)["a"] == pytest.approx(1.5)
    assert usual.most({"a": 0.001}, {"a": 1e6}, sure=False)["a"] == pytest.approx(1.5)
