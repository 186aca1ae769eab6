"""Batches of any kind, cut along their samples."""

from __future__ import annotations

from collections import UserDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from maskrcnn_coco.anywhere.samples import cut, leaves, size_of


class Pair(NamedTuple):
    x: Tensor
    y: Tensor


@dataclass
class Named:
    x: Tensor
    scale: float


X, Y = torch.arange(12.0).reshape(4, 3), torch.arange(4)


@pytest.mark.parametrize(
    "batch",
    [
        X,
        (X, Y),
        [X, Y],
        {"x": X, "y": Y},
        {"x": X, "deep": [X, {"y": Y}], "mask": torch.zeros(3, 3), "t": torch.tensor(0.1)},
        ((X,), {"labels": Y, "flag": True, "none": None}),
        Pair(X, Y),
        Named(X, 2.0),
        UserDict(x=X, y=Y),
        ([X[i] for i in range(4)], [{"boxes": torch.zeros(i, 4)} for i in range(4)]),
        (X, ["a", "b", "c", "d"]),
    ],
    ids=lambda b: type(b).__name__,
)
def test_every_form_is_cut(batch: Any) -> None:
    assert size_of(batch) == 4
    part = cut(batch, [2, 0], 4)
    assert size_of(part) == 2
    assert any(torch.equal(t, X[[2, 0]]) or torch.equal(t, X[2]) for t in leaves(part))


def test_what_is_not_per_sample_stays() -> None:
    mask = torch.zeros(3, 3)
    part = cut({"x": X, "mask": mask, "t": 0.1}, [1], 4)
    assert part["mask"] is mask and part["t"] == 0.1
    assert cut((X, ["a", "b", "c", "d"]), [3], 4)[1] == ["d"]
    assert size_of({"t": 0.1}) == 1
