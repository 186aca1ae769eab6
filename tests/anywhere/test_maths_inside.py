"""Maths inside a model that fails before any step: named with its line, whichever batch comes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import attach
from maskrcnn_coco.records import Incident


class Mixing(nn.Module):
    """An invertible layer and the logarithm of its determinant, as flows have it."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(matrix)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.matrix, self.matrix.logdet().expand(len(x))


class Scaling(nn.Module):
    """A scale of exp, with nothing that bounds it: ``steep`` times what its layer gives."""

    def __init__(self, steep: float) -> None:
        super().__init__()
        self.layer, self.steep = nn.Linear(2, 2), steep

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scale = self.steep * self.layer(x).tanh()
        return x * scale.exp(), scale.sum(1)


class Flow(nn.Module):
    """Gives its own loss."""

    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.first, self.last = first, Scaling(1.0)

    def forward(self, x: Tensor) -> Tensor:
        x, a = self.first(x)
        x, b = self.last(x)
        return (x.square().sum(1) / 2 - a - b).mean()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def trained(model: nn.Module, steps: int = 2) -> list[Incident]:
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None)
    for i in range(steps):
        optimizer.zero_grad()
        model(torch.randn(16, 2, generator=torch.Generator().manual_seed(i))).backward()
        optimizer.step()
    return guard.incidents


@pytest.mark.parametrize("matrix", [[[0.0, 0.0], [0.0, 0.0]], [[0.0, 1.0], [1.0, 0.0]]])
def test_the_logarithm_of_a_determinant_of_0_or_less_is_named_with_its_line(matrix: list[list[float]]) -> None:
    for found in trained(Flow(Mixing(torch.tensor(matrix)))):
        assert (found.cause, found.culprit.module) == ("LOSS_MATH", "first") and found.confidence > 0.9
        assert "test_maths_inside.py" in found.fix


@pytest.mark.parametrize("steep", [40.0, 1e3])
def test_an_exponent_that_is_not_bounded_is_named_with_its_line(steep: float) -> None:
    """Of 40 the loss is finite and beyond sense, of 1000 infinite: at all batches, if not at each sample alone."""
    found = trained(Flow(Scaling(steep)))
    assert {i.cause for i in found} == {"LOSS_MATH"} and found[-1].confidence > 0.9
    assert all("exp (test_maths_inside.py" in i.fix for i in found)


def test_weights_that_begin_enormous_are_no_maths() -> None:
    model = Flow(Mixing(1e12 * torch.eye(2)))
    model.last.layer.weight.data.fill_(0.0)
    assert "LOSS_MATH" not in [i.cause for i in trained(model, 1)]


def test_a_flow_that_is_sound_is_left_alone() -> None:
    assert not trained(Flow(Mixing(torch.eye(2))), 20)


class Matching(nn.Module):
    """Pairs by a learned temperature, an exponent whose value is bounded and whose slope is not."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(2, 4), nn.Linear(2, 4)
        self.scale = nn.Parameter(torch.tensor(2.66))

    def forward(self, x: Tensor) -> Tensor:
        left, right = (nn.functional.normalize(f(x), dim=1) for f in (self.left, self.right))
        return nn.functional.cross_entropy(self.scale.exp().clamp(max=30) * left @ right.T, torch.arange(len(x)))


def test_a_decay_that_threw_the_weights_to_where_a_slope_overflows_is_the_decay_s_fault() -> None:
    """The loss is as usual: of directions it does not feel how long weights are."""
    model = Matching()
    optimizer = torch.optim.AdamW(model.parameters(), 5e-3, weight_decay=1e4)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None, say=False)
    for i in range(30):
        optimizer.zero_grad()
        model(torch.randn(16, 2, generator=torch.Generator().manual_seed(i))).backward()
        optimizer.step()
    assert [i.cause for i in guard.incidents] == ["LR_TOO_HIGH"] and "weight_decay" in guard.incidents[0].fix


class Exposure(nn.Module):
    """Gain by how bright a sample is, as an exponential: of a white one it is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(x * (60 * x.mean(1, keepdim=True).relu()).exp().clamp(min=1.0)).tanh()


def test_an_exponent_that_one_honest_sample_takes_beyond_range_is_the_codes_fault() -> None:
    model = Exposure()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None, forward=lambda m, b: m(b[0]).square().mean())
    for i in range(20):
        x = 0.1 * torch.randn(8, 6)
        if i == 12:
            x[5] = 2.0
        batch = guard.batch((x,), list(range(8 * i, 8 * i + 8)))
        optimizer.zero_grad()
        guard.see(model(batch[0]).square().mean()).backward()
        optimizer.step()
    assert [(i.cause, i.culprit.image_ids) for i in guard.incidents] == [("LOSS_MATH", [101])]
    assert "exp" in guard.incidents[0].fix and "test_maths_inside.py" in guard.incidents[0].fix
