"""A resume in a loop of one's own that brings back a part of the state is told, once; a whole one is not."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco import FindingWarning, Guard

MAKERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": lambda params, lr: torch.optim.SGD(params, lr, momentum=0.9),
    "adamw": lambda params, lr: torch.optim.AdamW(params, lr),
}


def network(seed: int) -> nn.Module:
    """Biases begin at 0, as those of detectors do."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(6, 12), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 12))
    for layer in (net[0], net[3]):
        nn.init.zeros_(layer.bias)
    return net


def steps(guard: Guard, scheduler: Any, first: int, count: int) -> list[str]:
    """The findings of so many steps."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for n in range(first, first + count):
            x = torch.randn(16, 6, generator=torch.Generator().manual_seed(n))
            guard.step(lambda b: (guard.model(b) - b.sum(1, keepdim=True)).square().mean(), x)
            scheduler.step()
    return [str(w.message) for w in seen if isinstance(w.message, FindingWarning)]


def run(kind: str, lr: float = 0.01, seed: int = 0, falls: Any = None) -> tuple[Guard, Any]:
    net = network(seed)
    optimizer = MAKERS[kind](net.parameters(), lr)
    falls = falls or (lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda n: 0.9**n))
    return Guard(net, optimizer), falls(optimizer)


def checkpoint(kind: str, count: int = 30, **how: Any) -> dict[str, Any]:
    guard, scheduler = run(kind, **how)
    assert steps(guard, scheduler, 0, count) == []
    parts = {"model": guard.model, "optimizer": guard.optimizer, "scheduler": scheduler, "guard": guard}
    return copy.deepcopy({name: part.state_dict() for name, part in parts.items()})


def resume(kind: str, saved: dict[str, Any], parts: Sequence[str], lr: float = 0.01, **how: Any) -> list[str]:
    guard, scheduler = run(kind, lr, seed=1, **how)
    known = {"model": guard.model, "optimizer": guard.optimizer, "scheduler": scheduler, "guard": guard}
    for name in parts:
        known[name].load_state_dict(saved[name])
    return steps(guard, scheduler, 30, 8)


ALL = ("model", "optimizer", "scheduler", "guard")


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("parts", [ALL, ALL[::-1], ALL[:3], ("model",), ("model", "scheduler"), ()])
def test_what_is_whole_or_begins_anew_is_not_accused(kind, parts):
    """Weights alone are a fine-tuning: nothing tells it from a resume."""
    assert resume(kind, checkpoint(kind), parts) == []


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        ("model", "the weights are not those it had then"),
        ("optimizer", "the optimizer has no state"),
        ("scheduler", "the rate is back at 0.009"),
    ],
)
def test_what_did_not_come_back_with_the_guard_is_named(kind, left_out, words):
    found = resume(kind, checkpoint(kind), [p for p in ALL if p != left_out])
    assert any(words in f and f"{left_out}.load_state_dict" in f for f in found)
    assert all(f.startswith("NOT_TRAINED: ") for f in found)


@pytest.mark.parametrize("kind", MAKERS)
def test_an_optimizer_that_has_moved_what_still_is_as_it_was_made(kind):
    (found,) = resume(kind, checkpoint(kind), ("optimizer", "scheduler"))
    assert "hold one value in all places" in found and "0.bias" in found and "model.load_state_dict" in found


@pytest.mark.parametrize("kind", MAKERS)
def test_a_new_rate_that_the_checkpoint_takes_back_is_told_and_can_be_set(kind):
    saved = checkpoint(kind)
    (found,) = resume(kind, saved, ("model", "optimizer", "scheduler"), lr=0.002)
    assert "built with lr 0.002 and goes on from 0.01" in found
    guard, _ = run(kind, 0.002)
    guard.model.load_state_dict(saved["model"])
    guard.optimizer.load_state_dict(saved["optimizer"])
    line = found.partition("before the scheduler: ")[2].partition(";")[0]
    exec(line.replace(": g[", ":\n    g["), {"optimizer": guard.optimizer})
    scheduler = torch.optim.lr_scheduler.LambdaLR(guard.optimizer, lambda n: 0.9**n)
    assert guard.optimizer.param_groups[0]["lr"] == 0.002
    assert steps(guard, scheduler, 30, 8) == []


def one_cycle(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=200)


def cosine(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 60)


def warm_up(optimizer: torch.optim.Optimizer) -> Any:
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min(1.0, 0.001 + n / 35))


def by_hand(optimizer: torch.optim.Optimizer) -> Any:
    class Manual:
        n = 0

        def step(self) -> None:
            self.n += 1
            for group in optimizer.param_groups:
                group["lr"] = 0.01 * 0.9**self.n

        def state_dict(self) -> dict[str, int]:
            return {"n": self.n}

        def load_state_dict(self, state: dict[str, int]) -> None:
            self.n = state["n"]

    return Manual()


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("falls", [one_cycle, cosine, warm_up, by_hand])
def test_no_schedule_is_taken_for_half_a_resume(kind, falls):
    assert resume(kind, checkpoint(kind, falls=falls), ALL, falls=falls) == []


def test_rates_of_its_own_for_each_group_are_no_old_rate():
    def grouped(params: Any, lr: float) -> torch.optim.Optimizer:
        first, *rest = list(params)
        return torch.optim.SGD([{"params": [first], "lr": lr / 10}, {"params": rest}], lr, momentum=0.9)

    MAKERS["grouped"] = grouped
    try:
        assert resume("grouped", checkpoint("grouped"), ALL) == []
    finally:
        del MAKERS["grouped"]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_groups_that_bring_their_rate_leave_the_optimizers_default_to_nobody(kind: Any):
    def grouped(params: Any, lr: float) -> torch.optim.Optimizer:
        first, *rest = list(params)
        return kind([{"params": [first], "lr": 3 * lr}, {"params": rest, "lr": 3 * lr, "weight_decay": 0.0}])

    MAKERS["grouped"] = grouped
    try:
        assert resume("grouped", checkpoint("grouped"), ALL) == []
    finally:
        del MAKERS["grouped"]


def test_weights_in_half_precision_are_the_same_weights():
    saved = checkpoint("adamw")
    saved["model"] = {n: v.half().float() for n, v in saved["model"].items()}
    assert resume("adamw", saved, ALL) == []


def test_the_guard_of_a_run_keeps_its_own_books():
    net = network(0)
    quiet = Guard(net, MAKERS["sgd"](net.parameters(), 0.01), say=False)
    assert set(quiet.state_dict()) == {"divergence", "scale", "taken"}
