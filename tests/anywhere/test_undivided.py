"""Micro-batches whose losses nobody divided, in a run that is NaN before anybody asks."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach

PARTS = 4


def fit(model: nn.Module, batch: Any) -> Tensor:
    """A loss that leaves float32 within two steps that are too long."""
    return F.mse_loss((5 * model(batch[0])).sinh() / 5, batch[1])


def trained(rate: float, spoilt: int | None = None, once: int | None = None) -> Any:
    """A guard behind 40 steps; ``spoilt``: the step that has a NaN input, ``once``: whose loss is NaN once."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    guard: Any = attach(model, optimizer, forward=fit, diagnose=True, logdir=None, say=False)
    for step in range(40):
        optimizer.zero_grad()
        for part in range(PARTS):
            x = torch.randn(8, 6)
            batch = (x, x.sum(1, keepdim=True).sin())
            if step == spoilt and part == 2:
                x[3, 1] = math.nan
            first = 8 * (PARTS * step + part)
            loss = fit(model, guard.batch(batch, range(first, first + 8)))
            guard.see(loss * (math.nan if step == once and part == 2 else 1.0)).backward()
        optimizer.step()
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    return guard


def test_a_sum_that_ends_in_nan_is_told_by_the_norms_of_steps_before() -> None:
    guard = trained(0.1)
    assert {i.cause for i in guard.incidents} == {"ACCUMULATION"}
    assert (guard.incidents[0].symptom, guard.incidents[0].action.kind) == ("loss_nonfinite", "lower_lr")


def test_other_faults_of_a_loop_that_sums_on_purpose_keep_their_names() -> None:
    assert not trained(0.001).incidents
    assert [i.cause for i in trained(0.001, spoilt=20).incidents] == ["DATA_PIXEL"]
    assert [i.cause for i in trained(0.001, once=20).incidents] == ["TRANSIENT"]
