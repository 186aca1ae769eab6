"""Columns equal what pycocotools reads; what is wrong with one annotation never fails the load."""

from __future__ import annotations

import copy
import gzip
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO

from maskrcnn_coco.data.coco.table import Category, CocoTable, load_coco
from maskrcnn_coco.errors import DataError

SQUARE = [[4, 4, 14, 4, 14, 14, 4, 14]]


def small() -> dict[str, Any]:
    images = [{"id": i, "file_name": f"{i}.png", "height": 24, "width": 32} for i in (30, 10, 20)]
    anns = [
        {"id": 100 + n, "image_id": i, "category_id": c, "bbox": [4.5, 4, 10, 10 + n], "area": 99.5, "iscrowd": n % 2}
        for n, (i, c) in enumerate([(10, 7), (30, 3), (10, 3), (20, 90), (30, 7)])
    ]
    for ann in anns:
        ann["segmentation"] = SQUARE
    names = {7: "dog", 3: "cat", 90: "bird"}
    return {"images": images, "annotations": anns, "categories": [{"id": k, "name": v} for k, v in names.items()]}


def load(folder: Path, document: dict[str, Any]) -> CocoTable:
    path = folder / "a.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    return load_coco(path, folder)


def test_columns(tmp_path):
    t = load(tmp_path, small())
    assert t.class_names == ("background", "cat", "dog", "bird") and t.num_classes == 4
    assert t.categories[0] == Category(3, "cat")
    assert t.image_ids.tolist() == [30, 10, 20] and len(t) == 3
    assert t.labels.tolist() == [2, 1, 1, 3, 2]
    assert t.ann_image.tolist() == [1, 0, 1, 2, 0]
    assert t.iscrowd.tolist() == [False, True, False, True, False]
    assert t.boxes[3].tolist() == [4.5, 4, 10, 13] and t.area[0] == 99.5
    assert (t.boxes.dtype, t.labels.dtype, t.heights.dtype, t.iscrowd.dtype) == (np.float64, np.int64, np.int32, bool)
    assert t.annotations_of(0).tolist() == [1, 4] and t.annotations_of(1).tolist() == [0, 2]
    assert t.row_of(20) == 2 and t.file_name(2) == "20.png"
    assert json.loads(t.segmentation_raw(0)) == SQUARE
    with pytest.raises(KeyError):
        t.row_of(11)


@pytest.mark.parametrize("name", ["car_damage/annotations/parts_train.json", "dsb2018/valid/_annotations.coco.json"])
def test_real_sets_equal_pycocotools(shared_data, name, capsys):
    path = shared_data / name
    ours, theirs = load_coco(path, path.parent), COCO(str(path))
    assert sorted(ours.image_ids.tolist()) == sorted(theirs.imgs)
    for row, image_id in enumerate(ours.image_ids.tolist()):
        image = theirs.imgs[image_id]
        assert (ours.file_name(row), ours.heights[row], ours.widths[row]) == (
            image["file_name"],
            image["height"],
            image["width"],
        )
        rows = ours.annotations_of(row)
        assert ours.ann_ids[rows].tolist() == theirs.getAnnIds(imgIds=image_id)
        for r in rows.tolist():
            ann = theirs.anns[int(ours.ann_ids[r])]
            assert ours.boxes[r].tolist() == ann["bbox"]
            assert ours.categories[ours.labels[r] - 1].id == ann["category_id"]
            assert json.loads(ours.segmentation_raw(r)) == ann["segmentation"]


def test_subset_keeps_what_belongs_to_its_images(tmp_path):
    t = load(tmp_path, small())
    part = t.subset(np.array([2, 0]))
    assert part.image_ids.tolist() == [20, 30] and part.file_name(0) == "20.png"
    assert part.ann_ids.tolist() == [101, 103, 104]
    assert part.ann_image.tolist() == [1, 0, 1]
    assert part.class_names == t.class_names
    assert json.loads(part.segmentation_raw(2)) == SQUARE
    assert len(t.subset(np.array([], np.int64))) == 0


def test_one_bad_annotation_costs_one_annotation(tmp_path):
    doc = small()
    doc["annotations"][1] |= {"bbox": [1, float("nan"), float("inf"), 4], "category_id": "nine"}
    t = load(tmp_path, doc)
    assert np.isnan(t.boxes[1]).all() and t.labels[1] == 0
    assert np.isfinite(t.boxes[[0, 2, 3, 4]]).all()
    assert {(p.code, p.annotation_id) for p in t.problems} == {("BOX_NONFINITE", 101), ("LABEL_UNKNOWN", 101)}
    rest = copy.deepcopy(small())
    assert t.ann_ids.tolist() == [a["id"] for a in rest["annotations"]]


def test_1e400_and_long_integers(tmp_path):
    text = (
        json.dumps(small()).replace("[4.5, 4, 10, 12]", "[1e400, 4, 10, 12]").replace('"id": 103', '"id": ' + "9" * 30)
    )
    (tmp_path / "a.json").write_text(text, encoding="utf-8")
    t = load_coco(tmp_path / "a.json", tmp_path)
    assert {p.code for p in t.problems} == {"BOX_NONFINITE", "ANN_ID_BAD"}
    assert t.ann_ids[3] == -4


@pytest.mark.parametrize("wrap", [lambda b: b"\xef\xbb\xbf" + b, gzip.compress, lambda b: b.decode().encode("utf-16")])
def test_bom_gzip_and_utf16(tmp_path, wrap):
    plain = load(tmp_path, small())
    (tmp_path / "b.json").write_bytes(wrap(json.dumps(small()).encode()))
    wrapped = load_coco(tmp_path / "b.json", tmp_path)
    assert wrapped.boxes.tolist() == plain.boxes.tolist() and wrapped.problems == ()


def test_words_in_strings_are_not_numbers(tmp_path):
    doc = small()
    doc["images"][0]["file_name"] = 'a "NaN", [NaN, -Infinity] \\" NaN.png'
    doc["annotations"][0]["area"] = float("nan")
    t = load(tmp_path, doc)
    assert t.file_name(0) == doc["images"][0]["file_name"]
    assert [p.code for p in t.problems] == ["AREA_BAD"]


def test_the_parent_category_of_roboflow_is_left_out_only_where_it_is_one(tmp_path):
    doc = small()
    for c in doc["categories"]:
        c["supercategory"] = "animals"
    doc["categories"].insert(0, {"id": 0, "name": "animals", "supercategory": "none"})
    t = load(tmp_path, doc)
    assert t.class_names == ("background", "cat", "dog", "bird") and t.dropped_category == Category(0, "animals")
    doc["annotations"][0]["category_id"] = 0
    assert load(tmp_path, doc).class_names == ("background", "animals", "cat", "dog", "bird")
    doc = small()
    doc["categories"].append({"id": 0, "name": "fish", "supercategory": "none"})
    assert load(tmp_path, doc).class_names == ("background", "fish", "cat", "dog", "bird")


def test_labels_of_another_table_go_by_name(tmp_path):
    t = load(tmp_path, small())
    other = t.with_categories((Category(1, "dog"), Category(2, "bird"), Category(5, "cat")))
    assert other.labels.tolist() == [1, 3, 3, 2, 1]
    with pytest.raises(DataError, match="bird"):
        t.with_categories((Category(1, "dog"), Category(5, "cat")))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("images"), "no `images`"),
        (lambda d: d.pop("categories"), "no `categories`"),
        (lambda d: d.update(images=[]), "no images"),
        (lambda d: d.update(annotations={}), "not a list"),
    ],
)
def test_a_file_that_is_not_coco_is_refused_by_name(tmp_path, change, words):
    doc = small()
    change(doc)
    with pytest.raises(DataError, match=words) as caught:
        load(tmp_path, doc)
    assert "a.json" in caught.value.what and caught.value.fix


def _sum(table: CocoTable) -> tuple[float, bytes, bool]:
    return float(table.boxes.sum()), table.segmentation_raw(19_999), isinstance(table.boxes.base, np.memmap)


def test_spawned_workers_map_the_columns_instead_of_copying_them(tmp_path):
    doc = small()
    doc["annotations"] = [doc["annotations"][0] | {"id": i} for i in range(20_000)]
    t = load(tmp_path, doc)
    assert len(pickle.dumps(t)) < 5_000
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        total, segmentation, mapped = pool.apply(_sum, (t,))
    assert total == t.boxes.sum() and segmentation == t.segmentation_raw(19_999) and mapped
    assert isinstance(t.boxes.base, np.memmap) and isinstance(t.segmentations.data.base, np.memmap)
    assert t.boxes[7].tolist() == doc["annotations"][7]["bbox"] and t.annotations_of(1).tolist() == list(range(20_000))
