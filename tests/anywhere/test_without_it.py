"""A target of another scale some steps before the alarm: the same steps without that sample, at the same rate."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach

AT = 30


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    x, y, _ = batch
    return F.binary_cross_entropy_with_logits(model(x), y.float())


def run(value: float, *, whole: bool, spare: float = 1.0, rises: float = 1.0) -> Any:
    """Targets of 0 and 1; those of sample 3 of step `AT` are ``value``, and what nobody reads of it is ``spare``. The
    rate is ``rises`` times as high from then on."""
    rate = 0.5
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4))
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    guard: Any = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step in range(45):
            x = torch.randn(8, 8)
            y, z = (x[:, :4] + 0.5 * torch.randn(8, 4) > 0).float(), torch.ones(8)
            if step == AT:
                y[3], z[3] = value, spare
                optimizer.param_groups[0]["lr"] = rises * rate
            y, z = (y.long(), z.long()) if whole else (y, z)
            batch = guard.batch((x, y, z), [8 * step + i for i in range(8)])
            optimizer.zero_grad()
            guard.see(loss_of(model, batch)).backward()
            optimizer.step()
    return guard


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("value", [255.0, 1e4])
def test_the_sample_is_to_blame_where_the_steps_are_sound_without_it(value: float, whole: bool) -> None:
    guard = run(value, whole=whole)
    first = guard.incidents[0]
    assert (first.cause, first.culprit.image_ids) == ("DATA_LABEL", [8 * AT + 3])
    assert {i.cause for i in guard.incidents} == {"DATA_LABEL"} and not guard.instruments.lowered.factors


@pytest.mark.parametrize("whole", [True, False])
def test_a_rate_that_diverges_without_it_too_is_to_blame(whole: bool) -> None:
    guard = run(1.0, whole=whole, spare=1e4, rises=9.0)
    assert {i.cause for i in guard.incidents} == {"LR_TOO_HIGH"}
    assert guard.incidents[0].detail["beside"] == [8 * AT + 3, AT, whole], "that sample was asked about"
