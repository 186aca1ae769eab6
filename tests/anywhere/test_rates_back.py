"""A rate that a spike brought down comes back within the training once the spike is over, whatever the spike was."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.errors import GuardWarning

AT, STEPS = 80, 240
RATE = 0.05


class Net(nn.Module):
    """A body and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU())
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    if y.is_floating_point():
        return nn.functional.mse_loss(model(x), y)
    return nn.functional.cross_entropy(model(x), y)


def batch_of(step: int, *, classes: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    drawn = torch.Generator().manual_seed(step % 60)
    x = torch.randn(16, 8, generator=drawn)
    weight = torch.randn(8, 4, generator=torch.Generator().manual_seed(99))
    y = x @ weight + 0.3 * torch.randn(16, 4, generator=drawn)
    return x, y.argmax(1) if classes else torch.tanh(y)


class Loop:
    """An attached loop; ``spoil(loop, step)`` changes what the next step meets, and gives the batch that it is of."""

    def __init__(self, schedule: Callable[[Any], Any] | None = None) -> None:
        torch.manual_seed(0)
        self.model = Net()
        self.optimizer = torch.optim.SGD(self.model.parameters(), RATE, momentum=0.9)
        self.scheduler = schedule(self.optimizer) if schedule else None
        self.guard: Any = attach(self.model, self.optimizer, diagnose=True, forward=loss_of, logdir=None, say=False)
        self.losses: list[float] = []
        self.times = 1.0
        throw: Any = lambda _module, _inputs, output: output * self.times  # noqa: E731
        self.model.body.register_forward_hook(throw)

    def run(self, first: int, last: int, spoil: Callable[[Loop, int], Any] | None = None) -> Loop:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", GuardWarning)
            for step in range(first, last):
                planned = [g["lr"] for g in self.optimizer.param_groups]
                batch = (spoil(self, step) if spoil else None) or batch_of(step)
                self.optimizer.zero_grad()
                loss = self.guard.see(loss_of(self.model, self.guard.batch(batch)))
                loss.backward()
                self.optimizer.step()
                self.losses.append(loss.item())
                for group, rate in zip(self.optimizer.param_groups, planned, strict=True):
                    group["lr"] = rate
                if self.scheduler is not None:
                    self.scheduler.step()
        return self

    @property
    def shares(self) -> set[float]:
        """What is in force of each group's own rate."""
        before = [g["lr"] for g in self.optimizer.param_groups]
        with self.guard.instruments.lowered_rates():
            return {round(g["lr"] / b, 6) for g, b in zip(self.optimizer.param_groups, before, strict=True)}


def glitch(loop: Loop, step: int) -> Any:
    """A hook of somebody's has the body give a thousand times too much, for ten batches."""
    loop.times = 1e3 if AT <= step < AT + 10 else 1.0
    return batch_of(step, classes=True)


def loud(loop: Loop, step: int) -> Any:
    """One batch whose inputs are thirty times too large."""
    x, y = batch_of(step)
    return (30 * x, y) if step == AT else None


def leap(loop: Loop, step: int) -> None:
    """A rate a thousand times too high, for three steps, in a schedule that goes on rising."""
    for group in loop.optimizer.param_groups:
        group["lr"] *= 1e3 if AT <= step < AT + 3 else 1.0


def one_cycle(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS + 1, pct_start=0.9)


def restarts(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 60)


@pytest.mark.parametrize("schedule", [one_cycle, restarts])
def test_a_schedule_that_goes_on_after_a_leap_is_not_held_to_what_it_was(schedule: Any) -> None:
    """Steps at a rate below the schedule's: that of the leap alone, and of no step that rises by and by."""
    loop = Loop(schedule).run(0, STEPS, leap)
    assert [i.action.kind for i in loop.guard.incidents] == ["lower_lr"]
    plain = Loop(schedule).run(0, STEPS)
    pairs = list(zip(loop.guard.records, plain.guard.records, strict=True))[AT + 3 :]
    assert [r.step for r, p in pairs if r.lr != p.lr] == []


@pytest.mark.parametrize(("spoil", "schedule"), [(glitch, None), (loud, None)])
def test_a_rate_comes_back_once_the_spike_is_over(spoil: Any, schedule: Any) -> None:
    loop = Loop(schedule).run(0, STEPS, spoil)
    lowered = [i for i in loop.guard.incidents if i.action.kind == "lower_lr"]
    assert lowered, "else this test tells nothing"
    assert loop.shares == {1.0}
    assert set(lowered[-1].detail["rates_back"]) == set(loop.guard.responder.groups.names)
    assert len(loop.guard.incidents) == len(lowered), "it came back for good"


def test_a_rate_that_is_too_high_stays_lowered() -> None:
    """Steps taken again at the schedule's own rate diverge, however long ago it was that it was lowered."""

    def high(loop: Loop, step: int) -> None:
        for group in loop.optimizer.param_groups:
            group["lr"] = 3.0 if step >= AT else RATE

    loop = Loop().run(0, 2 * STEPS, high)
    assert len([i for i in loop.guard.incidents if i.action.kind == "lower_lr"]) == 1
    for group in loop.optimizer.param_groups:
        group["lr"] = 3.0
    assert max(loop.shares) < 0.1


def test_a_resumed_run_gives_back_what_was_lowered_before() -> None:
    loop = Loop().run(0, AT + 8, loud)
    assert max(loop.shares) < 0.1
    later = Loop()
    later.model.load_state_dict(loop.model.state_dict())
    later.optimizer.load_state_dict(loop.optimizer.state_dict())
    later.guard.load_state_dict(loop.guard.state_dict())
    assert later.shares == loop.shares
    assert later.run(AT + 8, STEPS).shares == {1.0} and not later.guard.incidents


@pytest.mark.parametrize("over", [True, False])
def test_samples_that_were_left_out_without_a_cause_come_back_once_they_are_sound(over: bool) -> None:
    """What failed on healthy weights may have failed because its source was broken for a while; or it is bad."""
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9)
    guard: Any = Guard(model, optimizer, forward=loss_of, diagnose=True, logdir=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", GuardWarning)
        for step in range(STEPS):
            x, y = batch_of(step)
            if step == AT or (not over and step % 60 == AT % 60):
                y = 1e3 * y
            first = step % 60 * 16
            guard.step((x, y), list(range(first, first + 16)))
    left = {i for incident in guard.incidents for i in incident.action.detail.get("image_ids", [])}
    assert left, "else this test tells nothing"
    assert bool(guard.responder.left_out) is not over
