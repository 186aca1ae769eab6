"""Boxes and masks written in another way: one finding names the way, and the repaired copy is what was meant."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.masks import decode_mask, encode_rle
from maskrcnn_coco.records import DataFinding
from tests.helpers.odd_sets import OddSet

SIZES = {
    "one size": ((120, 80),),
    "upright": ((80, 130),),
    "many sizes": ((120, 80), (90, 100), (200, 64)),
    "square": ((96, 96),),
}


def xyxy(data: OddSet, ann: dict[str, Any]) -> None:
    x, y, w, h = ann["bbox"]
    ann["bbox"] = [x, y, x + w, y + h]


def center(data: OddSet, ann: dict[str, Any]) -> None:
    x, y, w, h = ann["bbox"]
    ann["bbox"] = [x + w / 2, y + h / 2, w, h]


def swapped_box(data: OddSet, ann: dict[str, Any]) -> None:
    x, y, w, h = ann["bbox"]
    ann["bbox"] = [y, x, h, w]


def corners_yx(data: OddSet, ann: dict[str, Any]) -> None:
    x, y, w, h = ann["bbox"]
    ann["bbox"] = [y, x, y + h, x + w]


def unit_box(data: OddSet, ann: dict[str, Any]) -> None:
    ann["bbox"] = [v / s for v, s in zip(ann["bbox"], data.size_of(ann) * 2, strict=True)]


def yolo(data: OddSet, ann: dict[str, Any]) -> None:
    center(data, ann)
    unit_box(data, ann)


def box_of_larger_image(data: OddSet, ann: dict[str, Any]) -> None:
    ann["bbox"] = [3.2 * v for v in ann["bbox"]]


def box_of_image_640(data: OddSet, ann: dict[str, Any]) -> None:
    unit_box(data, ann)
    ann["bbox"] = [640 * v for v in ann["bbox"]]


def swapped_polygon(data: OddSet, ann: dict[str, Any]) -> None:
    ann["segmentation"] = [np.array(p).reshape(-1, 2)[:, ::-1].ravel().tolist() for p in ann["segmentation"]]


def unit_polygon(data: OddSet, ann: dict[str, Any]) -> None:
    ann["segmentation"] = [
        (np.array(p).reshape(-1, 2) / data.size_of(ann)).ravel().tolist() for p in ann["segmentation"]
    ]


def polygon_of_larger_image(data: OddSet, ann: dict[str, Any]) -> None:
    ann["segmentation"] = [[2.5 * v for v in p] for p in ann["segmentation"]]


def all_unit(data: OddSet, ann: dict[str, Any]) -> None:
    unit_box(data, ann)
    unit_polygon(data, ann)


def all_swapped(data: OddSet, ann: dict[str, Any]) -> None:
    swapped_box(data, ann)
    swapped_polygon(data, ann)


def row_major(data: OddSet, ann: dict[str, Any]) -> None:
    mask = data.mask(ann)
    ann["segmentation"] = encode_rle(mask.T) | {"size": list(mask.shape)}


def row_major_lists(data: OddSet, ann: dict[str, Any]) -> None:
    flat = data.mask(ann).ravel()
    change = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *change.tolist(), flat.size]).tolist()
    ann["segmentation"] = {"size": list(data.mask(ann).shape), "counts": [0, *runs] if flat[0] else runs}


def turned_sides(data: OddSet, ann: dict[str, Any]) -> None:
    rle = encode_rle(data.mask(ann))
    ann["segmentation"] = rle | {"size": rle["size"][::-1]}


def transposed_mask(data: OddSet, ann: dict[str, Any]) -> None:
    ann["segmentation"] = encode_rle(data.mask(ann).T)


WAYS = {
    xyxy: "BOX_XYXY",
    center: "BOX_CENTER",
    swapped_box: "BOX_SWAPPED",
    corners_yx: "BOX_SWAPPED",
    unit_box: "BOX_UNIT",
    yolo: "BOX_UNIT",
    box_of_larger_image: "BOX_SCALED",
    box_of_image_640: "BOX_SCALED",
    swapped_polygon: "MASK_SWAPPED",
    unit_polygon: "MASK_UNIT",
    polygon_of_larger_image: "MASK_SCALED",
    all_unit: "ALL_UNIT",
    all_swapped: "ALL_SWAPPED",
    row_major: "MASK_ROW_MAJOR",
    row_major_lists: "MASK_ROW_MAJOR",
    turned_sides: "MASK_SIDES",
    transposed_mask: "MASK_ROW_MAJOR",
}
SQUARE_TIES = {swapped_box, swapped_polygon, row_major, row_major_lists, transposed_mask}
"""On square pictures a mask turned over its diagonal looks like a box with x and y swapped, and the reverse."""
SQUARE_SOUND = {all_swapped, turned_sides}
"""On square pictures nothing shows it."""


def telling(found: list[DataFinding]) -> list[DataFinding]:
    return [f for f in found if f.severity != "info"]


def same_masks(a: CocoTable, b: OddSet) -> None:
    for n, ann in enumerate(b.annotations):
        width, height = b.size_of(ann)
        assert np.array_equal(decode_mask(a.segmentation_raw(n), height, width), b.mask(ann))


@pytest.mark.parametrize("sizes", [s for s in SIZES if s != "square"])
@pytest.mark.parametrize("way", WAYS)
def test_one_finding_names_the_way_and_the_copy_is_what_was_meant(tmp_path: Path, way, sizes):
    meant = OddSet(tmp_path, images=10, sizes=SIZES[sizes])
    data = copy.deepcopy(meant)
    for ann in data.annotations:
        way(data, ann)
    table = data.table()
    found = audit(table, images=False, gathered=True)
    assert [f.code for f in telling(found)] == [WAYS[way]], [f.message for f in telling(found)]
    repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert len(fixed.ann_ids) == 30
    assert np.allclose(fixed.boxes, [a["bbox"] for a in meant.annotations], atol=0.5)
    same_masks(fixed, meant)
    assert telling(audit(fixed)) == []


@pytest.mark.parametrize("way", WAYS)
def test_what_cannot_be_told_on_square_pictures_is_left_alone(tmp_path: Path, way):
    data = OddSet(tmp_path, images=10, sizes=SIZES["square"])
    before = copy.deepcopy(data)
    for ann in data.annotations:
        way(data, ann)
    table = data.table()
    found = audit(table, images=False, gathered=True)
    wanted = [] if way in SQUARE_SOUND else ["READINGS_TIE" if way in SQUARE_TIES else WAYS[way]]
    assert [f.code for f in telling(found)] == wanted, [f.message for f in telling(found)]
    repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    if wanted == ["READINGS_TIE"] or not wanted:
        assert np.array_equal(fixed.boxes, table.boxes)
        assert [fixed.segmentation_raw(n) for n in range(30)] == [table.segmentation_raw(n) for n in range(30)]
    else:
        assert np.allclose(fixed.boxes, [a["bbox"] for a in before.annotations], atol=0.5)


def test_crowds_are_mended_with_their_set(tmp_path: Path):
    """They come from the tool that wrote all other boxes as corners; one whose mask says that it is right stays."""
    meant = OddSet(tmp_path, images=12, sizes=((300, 200),))
    for n in (4, 20):
        meant.annotations[n]["iscrowd"] = 1
    data = copy.deepcopy(meant)
    for n, ann in enumerate(data.annotations):
        if n != 20:
            xyxy(data, ann)
    table = data.table()
    repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert np.allclose(fixed.boxes, [a["bbox"] for a in meant.annotations], atol=0.5)


@pytest.mark.parametrize("noise", [0.0, 2.0])
def test_a_part_of_the_set_written_in_another_way(tmp_path: Path, noise: float):
    """Two exports in one file: a third of the boxes are corners. Those are named and mended, the others stay."""
    meant = OddSet(tmp_path, images=12, sizes=((300, 200),))
    rng = np.random.default_rng(1)
    data = copy.deepcopy(meant)
    for n, ann in enumerate(data.annotations):
        ann["bbox"] = [float(v) for v in np.array(ann["bbox"]) + rng.uniform(-noise, noise, 4)]
        if n % 3 == 0:
            xyxy(data, ann)
    table = data.table()
    assert [f.code for f in telling(audit(table, images=False, gathered=True))] == ["BOX_XYXY"]
    repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert np.allclose(fixed.boxes, [a["bbox"] for a in meant.annotations], atol=4 * noise + 0.01)


def test_unrelated_boxes_are_one_sentence_and_are_not_overwritten(tmp_path: Path):
    data = OddSet(tmp_path, images=10)
    rng = np.random.default_rng(0)
    for ann in data.annotations:
        ann["bbox"] = [float(v) for v in (*rng.uniform(0, 60, 2), *rng.uniform(5, 15, 2))]
    table = data.table()
    assert [f.code for f in telling(audit(table, images=False))] == ["MASK_BOX_UNRELATED"]
    repair(table, audit(table), tmp_path / "out.json")
    assert np.array_equal(load_coco(tmp_path / "out.json", tmp_path).boxes, table.boxes)


@pytest.mark.parametrize("seed", range(8))
def test_honest_sets_are_not_accused(tmp_path: Path, seed: int):
    """Loose boxes, boxes around what is hidden, tiny objects, one stray box: none of it is a way of writing."""
    rng = np.random.default_rng(seed)
    data = OddSet(tmp_path, images=10, seed=seed, sizes=SIZES[list(SIZES)[seed % 4]])
    for ann in data.annotations:
        x, y, w, h = ann["bbox"]
        width, height = data.size_of(ann)
        grow = rng.uniform(0, (0, 0.1, 0.5, 2.0)[seed // 2], 4)
        x1, y1 = max(x - grow[0] * w, 0), max(y - grow[1] * h, 0)
        x2, y2 = min(x + w + grow[2] * w, width), min(y + h + grow[3] * h, height)
        ann["bbox"] = [x1, y1, x2 - x1, y2 - y1]
    data.annotations[3]["bbox"] = [0, 0, 12, 9]
    codes = {f.code for f in telling(audit(data.table(), images=False))}
    assert codes <= {"MASK_BOX_DISAGREE"}


@pytest.mark.parametrize(
    "name", ["dsb2018/train", "dsb2018/valid", "parts_train", "damage_train", "parts_val", "damage_val"]
)
def test_real_sets_are_read_as_they_are(shared_data: Path, name: str):
    if "/" in name:
        table = load_coco(shared_data / name / "_annotations.coco.json", shared_data / name)
    else:
        root = shared_data / "car_damage"
        table = load_coco(root / f"annotations/{name}.json", root)
    codes = {f.code for f in audit(table, images=False)}
    assert not codes & {"READINGS_TIE", "MASK_BOX_UNRELATED"} and not {c for c in codes if c.startswith("ALL_")}
    assert not any(c.endswith(("SWAPPED", "SCALED", "UNIT", "CENTER", "XYXY", "ROW_MAJOR", "SIDES")) for c in codes)
