"""Buffers that are to blame, one that grows with every pass and one with NaN, and those that are not."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.errors import MaskRCNNError


class Summed(nn.Module):
    """A running mean that forgets to take a share of what it had."""

    def __init__(self, times: float = 30.0) -> None:
        super().__init__()
        self.times = times
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.get_buffer("mean")
        mean.mul_(self.times).add_(x.detach().abs().mean(0))
        return x - 1e-9 * mean


class Marked(nn.Module):
    """A scale that is NaN as long as nobody has set it; ``asked``: the forward pass goes by it all the same."""

    def __init__(self, asked: bool) -> None:
        super().__init__()
        self.asked = asked
        self.register_buffer("scale", torch.full((8,), math.nan))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale") if self.asked else x


def loop(inner: nn.Module, *, rate: float = 1e-2, bad: int | None = None, steps: int = 30, raises: bool = False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), inner, nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    weights = torch.randn(6, 3)
    guard = attach(model, optimizer, diagnose=True, forward=lambda m, batch: F.cross_entropy(m(batch[0]), batch[1]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for step in range(steps):
                x = torch.randn(16, 6)
                y = (x @ weights).argmax(1)
                if step == bad:
                    x[3] = math.nan
                x, y = guard.batch((x, y), list(range(16 * step, 16 * step + 16)))
                optimizer.zero_grad()
                guard.see(F.cross_entropy(model(x), y)).backward()
                optimizer.step()
        except MaskRCNNError:
            assert raises
    return guard


@pytest.mark.parametrize("times", [10.0, 30.0, 300.0])
@pytest.mark.parametrize("rate", [1e-2, 1e-1])
def test_a_buffer_that_grows_with_every_pass_is_no_rates_doing(times: float, rate: float) -> None:
    guard = loop(Summed(times), rate=rate, raises=True)
    assert guard.incidents and {i.cause for i in guard.incidents} == {"LOSS_MATH"}
    assert {i.culprit.module for i in guard.incidents} == {"1"} and "1.mean" in guard.incidents[0].fix


@pytest.mark.parametrize("rate", [30.0, 1000.0])
def test_a_buffer_that_grows_along_does_not_take_the_blame_of_a_rate(rate: float) -> None:
    guard = loop(Summed(1.0), rate=rate, raises=True)
    assert guard.incidents and {i.cause for i in guard.incidents} <= {"LR_TOO_HIGH"}


def test_a_buffer_with_nan_that_a_module_goes_by_is_the_states_fault() -> None:
    guard = loop(Marked(asked=True), raises=True)
    assert {(i.cause, i.culprit.module) for i in guard.incidents} == {("POISONED_STATE", "1")}


def test_a_mark_of_nan_that_nobody_asks_is_not_blamed_for_a_sample() -> None:
    assert not loop(Marked(asked=False)).incidents
    guard = loop(Marked(asked=False), bad=20)
    assert [(i.cause, i.culprit.image_ids) for i in guard.incidents] == [("DATA_PIXEL", [323])]
