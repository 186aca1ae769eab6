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
from maskrcnn_coco.errors import DataError
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


WORDS = {
    "words": lambda n: f"frame_{n:03}",
    "hashes": lambda n: f"{n}e4",
    "beyond 64 bits": lambda n: 10**25 + n,
    "beyond 63 bits": lambda n: 2**63 + n,
    "uuids": lambda n: f"3f2a-{n}-77",
    "some": lambda n: n if n % 2 else f"frame_{n}",
}


@pytest.mark.parametrize("kind", WORDS)
def test_image_ids_that_are_no_numbers_are_read_noted_and_numbered(tmp_path: Path, kind: str):
    data = OddSet(tmp_path)
    wanted = [a["bbox"] for a in data.annotations]
    for entry, key in [(i, "id") for i in data.images] + [(a, "image_id") for a in data.annotations]:
        entry[key] = WORDS[kind](entry[key])
    table = data.table()
    assert [table.file_name(int(r)) for r in table.ann_image] == [f"{n}.png" for n in range(1, 9) for _ in range(3)]
    (found,) = [f for f in audit(table) if f.severity != "info"]
    assert found.code == "IMAGE_ID_TEXT" and f"{4 if kind == 'some' else 8} image ids" in found.message
    repair(table, [found], tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert (
        fixed.boxes.tolist() == wanted and audit(fixed) == [] and fixed.image_ids.tolist() == table.image_ids.tolist()
    )
    assert fixed.ann_image.tolist() == table.ann_image.tolist()


def test_category_ids_that_are_words(tmp_path: Path):
    data = OddSet(tmp_path)
    for entry, key in [(c, "id") for c in data.categories] + [(a, "category_id") for a in data.annotations]:
        entry[key] = {1: "c-cat", 2: "c-dog"}[entry[key]]
    table = data.table()
    assert table.class_names == ("background", "cat", "dog")
    assert table.labels.tolist() == [1 + n % 2 for n in range(1, 9) for _ in range(3)]
    assert [f.code for f in audit(table)] == ["CATEGORY_ID_TEXT"]
    repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert fixed.labels.tolist() == table.labels.tolist() and audit(fixed) == []


def test_a_word_that_no_image_has_costs_its_annotation(tmp_path: Path):
    data = OddSet(tmp_path)
    for entry, key in [(i, "id") for i in data.images] + [(a, "image_id") for a in data.annotations]:
        entry[key] = f"frame_{entry[key]}"
    data.annotations[3]["image_id"] = "frame_77"
    errors = [f for f in audit(data.table()) if f.severity == "error"]
    assert [(f.code, f.annotation_id) for f in errors] == [("ANN_IMAGE_UNKNOWN", data.annotations[3]["id"])]
    assert "frame_77" in errors[0].message


def test_images_without_usable_ids_are_said_to_be_there(tmp_path: Path):
    data = OddSet(tmp_path)
    for image in data.images:
        image["id"] = None
    with pytest.raises(DataError, match="no entry of `images`") as caught:
        data.table()
    assert "images[0].id is null" in str(caught.value.got)


def test_a_copy_without_anything_is_not_written(tmp_path: Path):
    data = OddSet(tmp_path)
    for ann in data.annotations:
        ann["segmentation"] = [[1, 2, 3, 4]]
    table = data.table()
    with pytest.raises(DataError, match="nothing was written: no annotation") as caught:
        repair(table, audit(table), tmp_path / "out.json")
    assert "24 annotations, with POLYGON_SHORT (24)" in str(caught.value.got)
    assert not (tmp_path / "out.json").exists() and not (tmp_path / "out.changes.json").exists()


def a_class_at_a_time(data: OddSet) -> None:
    """Each image listed once a class, as merged exports have it: what is of the other class is background in it."""
    entries = data.images
    data.images = [entry | {"id": entry["id"] + 100 * c} for c in (0, 1) for entry in entries]
    for n, ann in enumerate(data.annotations):
        ann["image_id"] += 100 * (n % 2)


def test_entries_of_one_file_become_one(tmp_path: Path):
    data = OddSet(tmp_path)
    a_class_at_a_time(data)
    table = data.table()
    repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert fixed.image_ids.tolist() == list(range(1, 9)) and np.bincount(fixed.ann_image).tolist() == [3] * 8
    assert audit(fixed) == []


def test_entries_of_one_file_in_two_sizes_are_left_as_they_are(tmp_path: Path):
    data = OddSet(tmp_path)
    data.images.append(data.images[0] | {"id": 50, "width": 60, "height": 40})
    data.annotations[0]["image_id"] = 50
    table = data.table()
    repair(table, [f for f in audit(table) if f.code == "IMAGE_NAME_DUPLICATE"], tmp_path / "out.json")
    assert 50 in load_coco(tmp_path / "out.json", tmp_path).image_ids


@pytest.mark.parametrize("shift", [1, -1])
def test_category_ids_that_are_one_off_are_written_as_they_were_meant(tmp_path: Path, shift: int):
    data = OddSet(tmp_path)
    meant = [a["category_id"] for a in data.annotations]
    for ann in data.annotations:
        ann["category_id"] -= shift
    table = data.table()
    changes = repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert fixed.category_ids.tolist() == meant and len(changes) == len(meant)


def test_one_unknown_category_moves_no_other(tmp_path: Path):
    data = OddSet(tmp_path)
    data.annotations[0]["category_id"] = 7
    table = data.table()
    repair(table, audit(table), tmp_path / "out.json")
    fixed = load_coco(tmp_path / "out.json", tmp_path)
    assert fixed.category_ids.tolist() == [a["category_id"] for a in data.annotations[1:]]


@pytest.mark.parametrize("shift", [1, -1])
def test_image_ids_that_are_one_off_are_said_and_nothing_is_made_of_them(tmp_path: Path, shift: int):
    data = OddSet(tmp_path)
    for ann in data.annotations:
        ann["image_id"] -= shift
    table = data.table()
    found = audit(table)
    (said,) = [f for f in found if f.code == "IMAGE_ID_SHIFT"]
    assert f"from {1 - shift} to {8 - shift}, id of the images from 1 to 8" in said.message
    with pytest.raises(DataError, match="nothing was written"):
        repair(table, found, tmp_path / "out.json")


def test_annotations_of_an_image_that_was_removed_are_no_shift(tmp_path: Path):
    data = OddSet(tmp_path)
    del data.images[0]
    assert not [f for f in audit(data.table()) if f.code == "IMAGE_ID_SHIFT"]


@pytest.mark.parametrize(
    ("names", "alike"),
    [
        (("cat", "Cat "), True), (("tree_frog", "tree frog"), True), (("T-Shirt", "tshirt"), True),
        (("a", "A"), False), (("ab", "AB"), False), (("cat", "cats"), False), (("1_0", "10"), False),
        (("猫", "犬"), False),
    ],
)  # fmt: skip
def test_names_that_differ_in_case_or_blanks_are_said(tmp_path: Path, names: tuple[str, str], alike: bool):
    data = OddSet(tmp_path)
    for category, name in zip(data.categories, names, strict=True):
        category["name"] = name
    assert bool([f for f in audit(data.table()) if f.code == "CATEGORY_NAME_ALIKE"]) == alike
