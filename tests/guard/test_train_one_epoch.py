"""`train_one_epoch` says what it refused, and never gives a lost epoch a healthy-looking loss."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import train_one_epoch
from maskrcnn_coco.errors import GuardWarning


class Detector(nn.Module):
    """A regression in the clothes of a detector."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        aim = torch.stack([t["aim"] for t in targets])
        return {"loss": (self.body(torch.stack(images))[:, 0] - aim).square().mean()}


def loader(steps: int = 20, bad: tuple[int, ...] = ()) -> list[Any]:
    g = torch.Generator().manual_seed(0)
    out = []
    for i in range(steps):
        x = torch.rand(8, 4, generator=g)
        aims = x.sum(1) + (math.nan if i in bad else 0.0)
        out.append((list(x), [{"aim": a} for a in aims]))
    return out


def run(lr: float, **kw: Any) -> tuple[float, list[str]]:
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        loss = train_one_epoch(model, loader(**kw), optimizer, "cpu")
    assert all(w.category is GuardWarning for w in said)
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    return loss, [str(w.message) for w in said]


def test_a_healthy_epoch_says_nothing() -> None:
    loss, said = run(0.05)
    assert said == [] and loss < 3


@pytest.mark.parametrize("lr", [50.0, 1e3, 1e6])
def test_an_epoch_that_diverges_has_no_loss(lr: float) -> None:
    loss, said = run(lr)
    assert math.isnan(loss)
    assert "the epoch is lost" in said[-1]


def test_bad_batches_are_counted_and_the_rest_has_its_mean() -> None:
    loss, said = run(0.05, bad=(3, 7))
    assert loss < 3
    assert said[-1].startswith("2 of 20 steps were refused (input_nonfinite 2)")
    assert len(said) == 1
    assert math.isnan(run(0.05, bad=tuple(range(15, 20)))[0]), "it does not go on"


def test_a_second_epoch_knows_what_the_first_one_learned() -> None:
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    train_one_epoch(model, loader(), optimizer, "cpu")
    with torch.no_grad():
        model.body[2].bias += 1e4  # somebody's mistake between the epochs
    assert math.isnan(train_one_epoch(model, loader(), optimizer, "cpu"))
    assert not hasattr(copy.deepcopy(optimizer), "_epoch_guard")
