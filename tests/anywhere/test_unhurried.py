"""Weights thrown about where nothing is learned: no loss rises, and long steps cost no more than short ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import attach


class Clicks(nn.Module):
    """A bag of embeddings and a small network whose logits saturate."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = nn.EmbeddingBag(50, 8)
        self.top = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1), nn.Tanh())

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.top(self.seen(x))[:, 0], y)


def run(rate: float, seed: int) -> Any:
    torch.manual_seed(seed)
    model = Clicks()
    groups = [{"params": model.seen.parameters()}, {"params": model.top.parameters()}]
    optimizer = torch.optim.Adam(groups, rate)
    guard = attach(model, optimizer, diagnose=True, logdir=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(40):
            x, y = torch.randint(0, 50, (16, 4)), torch.rand(16).round()
            optimizer.zero_grad()
            model(x, y).backward()
            optimizer.step()
    return guard


@pytest.mark.parametrize(("rate", "seed"), [(0.1, 1), (0.1, 2), (0.2, 1), (0.5, 2)])
def test_a_rate_that_throws_weights_about_for_nothing_is_named(rate: float, seed: int) -> None:
    found = run(rate, seed).incidents
    assert found and {i.cause for i in found} == {"LR_TOO_HIGH"}
    last = found[-1]
    assert last.confidence == 0.75, "short steps cost no more, which does not show that the long ones were needed"
    assert last.action.kind == "lower_lr" and 0.05 < last.action.detail["factor"] < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_a_rate_that_is_none_too_high_is_let_be(seed: int) -> None:
    assert not run(0.05, seed).incidents
