"""Losses written by hand, whose logarithm meets 0 once a sample is learned to the last bit."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import attach


@pytest.mark.parametrize("rate", [3e-3, 1e-2])
def test_a_logarithm_of_0_is_the_loss_s_own_and_no_learning_rate(rate: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 8) * torch.linspace(0.3, 3, 128)[:, None]
    y = (x[:, :1] > 0).float()
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))

    def loss_of(m: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        p = m(batch[0]).sigmoid()
        return -(batch[1] * p.log() + (1 - batch[1]) * (1 - p).log()).mean()

    optimizer = torch.optim.Adam(model.parameters(), rate)
    guard = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        while len(guard.incidents) < 3:
            ids = torch.randperm(128)[:16]
            batch = guard.batch((x[ids], y[ids]), ids.tolist())
            optimizer.zero_grad()
            guard.see(loss_of(model, batch)).backward()
            optimizer.step()
    assert {i.cause for i in guard.incidents} == {"LOSS_MATH"}
    assert all("log" in i.fix and "test_saturated.py" in i.fix for i in guard.incidents)
    assert {i.action.kind for i in guard.incidents} == {"skip"}
    assert [g["lr"] for g in optimizer.param_groups] == [rate]
