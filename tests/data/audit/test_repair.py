"""A repaired copy: what is plain is written as COCO writes it, and nothing is lost without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.masks import decode_mask
from tests.helpers.odd_sets import OddSet


def flat(part: list[float]) -> Any:
    return part


def points(part: list[float]) -> Any:
    return [[part[i : i + 2] for i in range(0, len(part), 2)]]


def list_of_points(part: list[float]) -> Any:
    return points(part)[0]


@pytest.mark.parametrize("some", [1, 2])
@pytest.mark.parametrize("form", [flat, points, list_of_points])
def test_polygons_in_another_form_are_read_noted_and_written_as_usual(tmp_path: Path, form, some: int):
    data = OddSet(tmp_path)
    wanted = [data.mask(a) for a in data.annotations]
    usual = [a["segmentation"] for a in data.annotations]
    for ann in data.annotations[::some]:
        ann["segmentation"] = form(ann["segmentation"][0])
    table = data.table()
    (found,) = audit(table)
    assert (found.code, found.severity) == ("POLYGON_FORM", "info")
    assert f"{24 // some} of 24 objects" in found.message
    repair(table, [found], tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert [json.loads(fixed.segmentation_raw(n)) for n in range(24)] == usual
    for n, mask in enumerate(wanted):
        assert np.array_equal(decode_mask(fixed.segmentation_raw(n), *mask.shape), mask)
    assert audit(fixed) == []
