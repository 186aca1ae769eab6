"""Masks of which the wrong side is filled, parts that were meant as holes, a background that is annotated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.whole_set import facts_of
from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.findings.judge import judge
from maskrcnn_coco.records import DataFinding
from tests.helpers.odd_sets import OddSet


def found(data: OddSet) -> dict[str, DataFinding]:
    return {f.code: f for f in audit(data.table())}


def around(data: OddSet, *, boxes: bool) -> None:
    """Each mask is all but its object; ``boxes``: they are those of such masks."""
    for ann in data.annotations:
        mask = 1 - data.mask(ann)
        ann["segmentation"] = encode_rle(mask.astype(np.uint8))
        if boxes:
            ann["bbox"], ann["area"] = [0, 0, *data.size_of(ann)], int(mask.sum())


@pytest.mark.parametrize("boxes", [True, False])
@pytest.mark.parametrize("objects", [1, 3])
def test_masks_of_all_that_is_around_their_objects_are_told(tmp_path: Path, boxes: bool, objects: int) -> None:
    data = OddSet(tmp_path, objects=objects)
    around(data, boxes=boxes)
    codes = found(data)
    if boxes and objects == 1:  # an object that fills its image may be one
        assert "MASK_INVERTED" not in codes
        return
    assert codes["MASK_INVERTED"].count == 8 * objects
    assert not {"MASK_BOX_UNRELATED", "MASK_AREA_DISAGREE", "MASK_IS_BOX"} & codes.keys()
    (whole,) = judge(facts_of(data.table(), list(codes.values())))
    assert whole.code == "GEOMETRY" and "1 - mask" in whole.fix


def test_large_objects_are_not_said_to_be_inside_out(tmp_path: Path) -> None:
    data = OddSet(tmp_path)
    for n, ann in enumerate(data.annotations):
        width, height = data.size_of(ann)
        x, w = (0, 0.7 * width) if n % 3 == 0 else (0.7 * width, 0.3 * width)
        ann["bbox"], ann["area"] = [x, 0, w, height], w * height
        ann["segmentation"] = [[x, 0, x + w, 0, x + w, height, x, height]]
    assert "MASK_INVERTED" not in found(data)


def ring(data: OddSet, share: int = 1) -> None:
    """In each ``share``-th object a square is cut out by a part of its own."""
    for ann in data.annotations[::share]:
        x, y, w, h = 10.0, 10.0, 40.0, 40.0
        ann["bbox"], ann["area"] = [x, y, w, h], w * h - 400
        outer = [x, y, x + w, y, x + w, y + h, x, y + h]
        ann["segmentation"] = [outer, [20.0, 20.0, 40.0, 20.0, 40.0, 40.0, 20.0, 40.0]]


def test_a_part_within_another_is_told_for_it_is_filled(tmp_path: Path) -> None:
    data = OddSet(tmp_path)
    ring(data)
    hole = found(data)["POLYGON_HOLE"]
    assert hole.severity == "warning" and hole.count == 24 and "their `area` leaves it out" in hole.message
    data = OddSet(tmp_path, images=40)
    ring(data, 60)
    assert found(data)["POLYGON_HOLE"].severity == "info"


def beside(parts: list[list[float]]) -> list[list[float]]:
    return [parts[0], [v + 60 if n % 2 == 0 else v for n, v in enumerate(parts[0])]]


def over(parts: list[list[float]]) -> list[list[float]]:
    return [parts[0], [v + 2 for v in parts[0]]]


@pytest.mark.parametrize("change", [beside, over, lambda p: [p[0], p[0]]])
def test_parts_that_lie_beside_or_over_each_other_are_no_holes(
    tmp_path: Path, change: Callable[[list[list[float]]], list[list[float]]]
) -> None:
    data = OddSet(tmp_path)
    for ann in data.annotations:
        ann["segmentation"] = change(ann["segmentation"])
    assert "POLYGON_HOLE" not in found(data)


@pytest.mark.parametrize("name", ["background", "__background__", "BG", "Background "])
def test_a_background_with_annotations_is_told(tmp_path: Path, name: str) -> None:
    data = OddSet(tmp_path)
    data.categories[1]["name"] = name
    assert found(data)["CATEGORY_BACKGROUND"].count == sum(a["category_id"] == 2 for a in data.annotations)
    for ann in data.annotations:
        ann["category_id"] = 1
    assert "CATEGORY_BACKGROUND" not in found(data)


def test_no_repair_is_named_that_would_leave_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = OddSet(tmp_path)
    for n, ann in enumerate(data.annotations):
        ann["segmentation"] = f"masks/{n}.png"
    assert main(["check", "--data", str(data.write()), "--images", str(tmp_path)]) == 3
    said = capsys.readouterr().out
    assert "--fix" not in said.strip().splitlines()[-1]
    assert "export the set again" in said[said.index("NO_TARGETS") : said.index("more:")]
    data.annotations[0] = OddSet(tmp_path / "sound").annotations[0]
    assert main(["check", "--data", str(data.write()), "--images", str(tmp_path)]) == 3
    assert "--fix" in capsys.readouterr().out.strip().splitlines()[-1]


def test_an_outline_of_thousands_of_parts_is_not_held_against_itself(tmp_path: Path) -> None:
    data = OddSet(tmp_path)
    ring(data)
    part = data.annotations[0]["segmentation"][1]
    data.annotations[0]["segmentation"] += [part] * 20_000
    assert found(data)["POLYGON_HOLE"].count == 23


def test_a_page_and_its_table_are_both_large_and_no_fault(tmp_path: Path) -> None:
    data = OddSet(tmp_path, objects=2)
    for n, ann in enumerate(data.annotations):
        width, height = data.size_of(ann)
        margin = 2.0 + 6 * (n % 2)
        x, y, w, h = margin, margin, width - 2 * margin, height - 2 * margin
        ann["category_id"], ann["bbox"], ann["area"] = 1 + n % 2, [x, y, w, h], w * h
        ann["segmentation"] = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    assert "MASK_INVERTED" not in found(data)
