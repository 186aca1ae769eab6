"""Rates that are too high from the first step on, where next to nothing is known of healthy steps."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskrcnn_coco import attach


class Pairs(nn.Module):
    """Two views of a thing are to be alike: a rate a thousand times too high for the last layer alone."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(16, 64), nn.ReLU()), nn.Linear(64, 16)
        self.scale = nn.Parameter(torch.tensor(2.6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.head(self.body(x)), dim=1)


@pytest.mark.parametrize("rate", [1.0, 100.0])
def test_weights_that_are_thrown_about_from_the_first_step_on_are_a_rate(rate: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 16)
    model = Pairs()
    groups = [{"params": [*model.body.parameters(), model.scale], "lr": 1e-3}, {"params": model.head.parameters()}]
    optimizer = torch.optim.Adam(groups, rate)

    def loss_of(m: nn.Module, b: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return F.cross_entropy(m(b[0]) @ m(b[1]).T * model.scale.exp(), torch.arange(len(b[0])))

    guard = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(40):
            ids = [(16 * step + n) % 128 for n in range(16)]
            batch = guard.batch((x[ids], x[ids] + 0.1 * torch.randn(16, 16)), ids)
            optimizer.zero_grad()
            guard.see(loss_of(model, batch)).backward()
            optimizer.step()
    assert {(i.cause, i.culprit.component) for i in guard.incidents} == {("LR_TOO_HIGH", "head")}
    assert len(guard.incidents) == 1
