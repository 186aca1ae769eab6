"""What a checkpoint says: copies that training cannot change, and nothing non-finite or foreign in it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from maskrcnn_coco.checkpoint.content import epoch_name, nonfinite, plain_copy
from maskrcnn_coco.errors import CheckpointError


def test_a_copy_is_new_all_the_way_down() -> None:
    weight = torch.ones(2, 3)
    state = {"model": {"w": weight, "view": weight[0]}, "loop": {"steps": [1, 2], "best": np.float32(0.5)}}
    copied = plain_copy(state)
    weight.fill_(9)
    state["loop"]["steps"].append(3)
    assert float(copied["model"]["w"].sum()) == 6 and copied["loop"] == {"steps": [1, 2], "best": 0.5}
    assert type(copied["loop"]["best"]) is float
    assert copied["model"]["view"].untyped_storage().nbytes() == 12, "compact: not the whole of what it is a view of"


def test_spare_memory_is_used_again_and_keeps_nothing_of_before() -> None:
    spare: dict[str, torch.Tensor] = {}
    first = plain_copy({"model": {"w": torch.ones(4)}}, spare)
    place = first["model"]["w"].data_ptr()
    second = plain_copy({"model": {"w": torch.full((4,), 2.0)}}, spare)
    assert second["model"]["w"].data_ptr() == place and second["model"]["w"].tolist() == [2.0] * 4


@pytest.mark.parametrize("odd", [object(), {1, 2}, torch.nn.Linear(1, 1), lambda: None], ids=lambda v: type(v).__name__)
def test_what_is_no_plain_data_is_refused_by_place(odd: Any) -> None:
    with pytest.raises(CheckpointError, match="loop"):
        plain_copy({"loop": {"deep": [odd]}})


@pytest.mark.parametrize(
    ("state", "places"),
    [
        ({"model": {"w": torch.tensor([1.0, math.nan])}}, ["model.w"]),
        ({"optimizer": {"state": {0: {"momentum_buffer": torch.tensor([math.inf])}}}}, ["optimizer.state.0"]),
        ({"optimizer": {"param_groups": [{"lr": math.nan}]}}, ["param_groups[0].lr"]),
        ({"loop": {"best": -math.inf, "steps": [1]}}, []),
        ({"model": {"n": torch.tensor([3]), "none": torch.zeros(0)}}, []),
    ],
    ids=["weight", "moment", "rate", "a best that is none yet", "whole numbers and nothing"],
)
def test_where_it_is_not_finite(state: dict[str, Any], places: list[str]) -> None:
    found = nonfinite(state)
    assert len(found) == len(places) and all(p in f for p, f in zip(places, found, strict=True))


def test_names_sort_by_epoch() -> None:
    assert [epoch_name(n) for n in (1, 20)] == ["epoch_001.pth", "epoch_020.pth"]
