"""Settings of the optimizer beside the rate: named where one alone is to blame, and put right; odd ones left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco import attach

STEPS, LATE = 60, 25
Make = Callable[[Any], torch.optim.Optimizer]


class Trained:
    """A regression of eight numbers, watched from its first step."""

    def __init__(self, make: Make, *, late: dict[str, Any] | None = None, group: int | None = None) -> None:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        worth, self.losses = torch.randn(8), list[float]()
        groups = [{"params": [*model[0].parameters()]}, {"params": [*model[2].parameters()]}]
        optimizer = make(groups)

        def forward(model: nn.Module, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.mse_loss(model(x)[:, 0], (x @ worth).tanh())

        self.guard: Any = attach(model, optimizer, diagnose=True, forward=forward, logdir=None, say=False)
        for step in range(STEPS):
            if step == LATE and late:
                for g in optimizer.param_groups if group is None else [optimizer.param_groups[group]]:
                    g.update(late)
            x = self.guard.batch(torch.randn(32, 8))
            optimizer.zero_grad()
            loss = self.guard.see(forward(model, x))
            self.losses.append(loss.item())
            loss.backward()
            optimizer.step()

    @property
    def ends(self) -> float:
        """The level of its last losses, times that of its first."""
        return sum(self.losses[-8:]) / sum(self.losses[:8])


OPTIM = torch.optim
FROM_THE_START: dict[str, tuple[Make, str]] = {
    "adam's squares forgotten": (
        lambda p: OPTIM.Adam(p, 0.05, betas=(0.9, 0.0)),
        "betas=(0.9, 0.999) in the optimizer",
    ),
    "adamax": (lambda p: OPTIM.Adamax(p, 0.02, betas=(0.9, 0.0)), "betas=(0.9, 0.999) in the optimizer"),
    "rprop's growth": (lambda p: OPTIM.Rprop(p, 1e-3, etas=(0.5, 30.0)), "etas=(0.5, 1.2) in the optimizer"),
    "rprop's sizes": (
        lambda p: OPTIM.Rprop(p, 1e-3, step_sizes=(30.0, 50.0)),
        "step_sizes=(1e-06, 50) in the optimizer",
    ),
    "dampening": (lambda p: OPTIM.SGD(p, 0.05, momentum=0.9, dampening=30.0), "dampening=0 in the optimizer"),
}


@pytest.mark.parametrize("name", FROM_THE_START)
def test_one_that_nothing_holds_with_from_the_start_is_named_and_put_right(name: str) -> None:
    make, fix = FROM_THE_START[name]
    run = Trained(make)
    first = run.guard.incidents[0]
    assert (first.cause, first.action.kind, first.fix) == ("LR_TOO_HIGH", "lower_lr", fix)
    assert first.confidence >= 0.9 and "stays bounded" in first.evidence[0].outcome
    assert run.ends < 0.7 and len(run.guard.incidents) <= 2


UNDER_WAY: dict[str, tuple[Make, dict[str, Any]]] = {
    "betas": (lambda p: OPTIM.AdamW(p, 0.03), {"betas": (0.9, 0.0)}),
    "dampening": (lambda p: OPTIM.SGD(p, 0.05, momentum=0.9), {"dampening": -30.0}),
    "step sizes": (lambda p: OPTIM.Rprop(p, 1e-3), {"step_sizes": (30.0, 50.0)}),
}


@pytest.mark.parametrize("group", [None, 1])
@pytest.mark.parametrize("name", UNDER_WAY)
def test_one_that_somebody_sets_under_way_is_named_with_its_step_and_group(name: str, group: int | None) -> None:
    make, late = UNDER_WAY[name]
    run = Trained(make, late=late, group=group)
    first = run.guard.incidents[0]
    (setting,) = late
    assert first.cause == "LR_TOO_HIGH" and first.step >= LATE
    assert f'optimizer.param_groups[{group or 0}]["{setting}"]' in first.fix and f"since step {LATE}" in first.fix
    assert run.ends < 0.7, run.losses


HONEST: dict[str, Make] = {
    "no memory of gradients": lambda p: OPTIM.Adam(p, 0.01, betas=(0.0, 0.9)),
    "of a generator": lambda p: OPTIM.Adam(p, 0.003, betas=(0.5, 0.999)),
    "short memories": lambda p: OPTIM.AdamW(p, 0.003, betas=(0.8, 0.9)),
    "a large eps": lambda p: OPTIM.Adam(p, 0.01, eps=1e-2),
    "a tiny eps": lambda p: OPTIM.Adam(p, 0.01, eps=1e-15),
    "maxima": lambda p: OPTIM.Adam(p, 0.01, amsgrad=True),
    "nesterov": lambda p: OPTIM.SGD(p, 0.02, momentum=0.95, nesterov=True),
    "dampened": lambda p: OPTIM.SGD(p, 0.05, momentum=0.9, dampening=0.9),
    "quick growth": lambda p: OPTIM.Rprop(p, 1e-3, etas=(0.5, 1.5)),
    "decayed": lambda p: OPTIM.AdamW(p, 0.01, weight_decay=1.0),
    "centred": lambda p: OPTIM.RMSprop(p, 1e-3, alpha=0.9, centered=True, momentum=0.5),
}


@pytest.mark.parametrize("name", HONEST)
def test_odd_ones_that_learn_are_left_alone(name: str) -> None:
    run = Trained(HONEST[name])
    assert not run.guard.incidents and not run.guard.alarms and run.ends < 1.0


def test_a_setting_that_changes_under_way_on_purpose_is_left_alone() -> None:
    run = Trained(lambda p: OPTIM.AdamW(p, 0.005), late={"betas": (0.85, 0.99), "weight_decay": 0.1, "eps": 1e-6})
    assert not run.guard.incidents and not run.guard.alarms
