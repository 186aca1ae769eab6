"""What only a first pass fills, and is divided by before that: its step is lost, what it put there is not."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach


class Debiased(nn.Module):
    """A running mean in buffers, divided by how much of it there is: 0 / 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        mean, count = self.get_buffer("mean"), self.get_buffer("count")
        shift = mean / (1 - 0.9**count)
        mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        count.add_(1)
        return x - 0.1 * shift


class Ranged(nn.Module):
    """Features by the range that was seen so far, in plain attributes: of nothing that is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high = torch.zeros(8), torch.zeros(8)

    def forward(self, x: Tensor) -> Tensor:
        scaled = (x - self.low) / (self.high - self.low)
        self.low = torch.minimum(self.low, x.detach().amin(0))
        self.high = torch.maximum(self.high, x.detach().amax(0))
        return scaled


class Scaled(nn.Module):
    """By a largest value so far that is a plain number."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0.0

    def forward(self, x: Tensor) -> Tensor:
        scaled = (x - x.detach()) / torch.tensor(self.most) + x
        self.most = max(self.most, float(x.detach().abs().max()))
        return scaled


class Queue(nn.Module):
    """Similarities to keys of a queue that begins with zeros, brought to length 1 without an eps."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("queue", torch.zeros(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        queue = self.get_buffer("queue")
        keys = queue / queue.norm(dim=1, keepdim=True)
        queue.copy_(x.detach()[:16])
        return x + 0.1 * x @ keys.T @ keys


class Observed(nn.Module):
    """Fake-quantised by an observer that starts at ±inf, which the forward pass asks before it tells it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("low", torch.full((), torch.inf))
        self.register_buffer("high", torch.full((), -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.get_buffer("low"), self.get_buffer("high")
        scale = (high - low) / 255
        rounded = x + ((x / scale).round() * scale - x).detach()
        low.copy_(torch.minimum(low, x.detach().min()))
        high.copy_(torch.maximum(high, x.detach().max()))
        return rounded


class Dead(nn.Module):
    """The same with a range that never fills: every pass is as bad as the first."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        seen = self.get_buffer("seen")
        shift = seen / (seen * 0)
        seen.add_(x.detach().mean(0).abs())
        return x + shift


def loop(inner: nn.Module, steps: int = 40, change: Callable[[nn.Module, int], None] | None = None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), inner, nn.ReLU(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    weights = torch.randn(6, 3)
    batches = []
    for _ in range(steps):
        x = torch.randn(16, 6)
        batches.append((x, (x @ weights).argmax(1)))
    guard = attach(model, optimizer, diagnose=True, forward=lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]))
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, given in enumerate(batches):
            if change is not None:
                change(model, step)
            x, y = guard.batch(given)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            guard.see(loss).backward()
            optimizer.step()
            losses.append(loss.item())
    return guard, losses


@pytest.mark.parametrize("inner", [Debiased, Ranged, Scaled, Queue, Observed])
def test_it_trains_on_behind_the_first_pass(inner: type[nn.Module]) -> None:
    guard, losses = loop(inner())
    assert [(i.cause, i.step, i.action.kind) for i in guard.incidents] == [("LOSS_MATH", 0, "skip")]
    assert guard.incidents[0].action.detail["passed"] and guard.refused_steps == 1
    assert "buffer" in guard.incidents[0].fix and losses[-1] < 0.8 * losses[1]


def test_it_is_filled_anew_where_somebody_emptied_it() -> None:
    def emptied(model: nn.Module, step: int) -> None:
        if step == 20:
            with torch.no_grad():
                for buffer in model.buffers():
                    buffer.zero_()

    guard, losses = loop(Debiased(), change=emptied)
    assert [i.step for i in guard.incidents] == [0, 20] and guard.refused_steps == 2 and losses[-1] < 0.8 * losses[1]


def test_what_stays_as_bad_is_no_such_thing() -> None:
    with pytest.raises(Exception, match="LOSS_MATH"):
        loop(Dead())
