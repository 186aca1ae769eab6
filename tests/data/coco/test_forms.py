"""Boxes, segmentations, ids and whole files that are written in another form, and say one thing only: they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.coco.forms import numbers_of, plain_segmentations
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError

H, W = 40, 60
Doc = dict[str, Any]


def runs(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return [0, *counts] if flat[0] else counts


def document(*, rle: bool = False) -> Doc:
    images = [{"id": n + 1, "file_name": f"{n:03d}.png", "width": W, "height": H} for n in range(6)]
    annotations = []
    for n in range(6):
        x, y, w, h = 3 + 4 * n, 2 + 3 * n, 12, 9
        mask = np.zeros((H, W), bool)
        mask[y : y + h, x : x + w] = True
        shape: Any = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        annotations.append({
            "id": n + 1, "image_id": n + 1, "category_id": 1 + n % 2, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0,
            "segmentation": {"size": [H, W], "counts": runs(mask)} if rle else shape,
        })  # fmt: skip
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
    }


def write(folder: Path, value: Any) -> CocoTable:
    for n in range(6):
        Image.fromarray(np.full((H, W, 3), 30 * n, np.uint8)).save(folder / f"{n:03d}.png")
    (folder / "data.json").write_text(json.dumps(value), encoding="utf-8")
    return load_coco(folder / "data.json", folder)


def each(name: str, change: Callable[[Any], Any], *, rle: bool = False) -> Doc:
    doc = document(rle=rle)
    for a in doc["annotations"]:
        a[name] = change(a[name])
    return doc


def by_name(change: Callable[[str], str]) -> Doc:
    doc = document()
    names = {i["id"]: i["file_name"] for i in doc["images"]}
    for a in doc["annotations"]:
        a["image_id"] = change(names[a["image_id"]])
    return doc


def nested() -> Doc:
    doc = document()
    for i in doc["images"]:
        i["annotations"] = [{k: v for k, v in a.items() if k != "image_id"} for a in doc["annotations"]
                            if a["image_id"] == i["id"]]  # fmt: skip
    del doc["annotations"]
    return doc


def packed() -> Doc:
    oracle = pytest.importorskip("pycocotools.mask")
    doc = document()
    for a in doc["annotations"]:
        found = oracle.merge(oracle.frPyObjects(a["segmentation"], H, W))
        a["segmentation"] = {"size": [H, W], "counts": str(found["counts"])}
    return doc


FORMS: dict[str, Callable[[], Any]] = {
    "box in a list": lambda: each("bbox", lambda v: [v]),
    "box with names": lambda: each("bbox", lambda v: dict(zip(("x", "y", "width", "height"), v, strict=True))),
    "box as text": lambda: each("bbox", lambda v: ", ".join(map(str, v))),
    "box as text in brackets": lambda: each("bbox", str),
    "polygon as text": lambda: each("segmentation", json.dumps),
    "numbers in quotes": lambda: each("segmentation", lambda v: [[str(n) for n in v[0]]]),
    "points of VIA": lambda: each("segmentation", lambda v: {"all_points_x": v[0][::2], "all_points_y": v[0][1::2]}),
    "RLE as text": lambda: each("segmentation", json.dumps, rle=True),
    "RLE in a list": lambda: each("segmentation", lambda v: [v], rle=True),
    "counts as text": lambda: each("segmentation", lambda v: v | {"counts": str(v["counts"])}, rle=True),
    "counts with blanks": lambda: each(
        "segmentation", lambda v: v | {"counts": " ".join(map(str, v["counts"]))}, rle=True
    ),
    "RLE without size": lambda: each("segmentation", lambda v: {"counts": v["counts"]}, rle=True),
    "RLE with height and width": lambda: each(
        "segmentation", lambda v: {"counts": v["counts"], "height": H, "width": W}, rle=True
    ),
    "bytes as text": packed,
    "category by name": lambda: each("category_id", lambda v: "ab"[v - 1]),
    "image by file name": lambda: by_name(lambda n: n),
    "image by stem": lambda: by_name(lambda n: n.removesuffix(".png")),
    "in a list": lambda: [document()],
    "one level down": lambda: {"version": 1, "coco": document()},
    "annotations by id": lambda: (d := document()) | {"annotations": {str(a["id"]): a for a in d["annotations"]}},
    "images by id": lambda: (d := document()) | {"images": {str(i.pop("id")): i for i in d["images"]}},
    "categories id to name": lambda: document() | {"categories": {"1": "a", "2": "b"}},
    "categories name to id": lambda: document() | {"categories": {"a": 1, "b": 2}},
    "categories as names": lambda: document() | {"categories": ["a", "b"]},
    "annotations in their images": nested,
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_a_form_with_one_meaning_gives_the_same_boxes_masks_and_classes(name: str, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    table, usual = write(tmp_path / "a", FORMS[name]()), write(tmp_path / "b", document())
    assert np.array_equal(table.boxes, usual.boxes)
    assert table.labels.tolist() == usual.labels.tolist()
    assert table.ann_image.tolist() == usual.ann_image.tolist()
    assert table.class_names == ("background", "a", "b")
    for row in range(6):
        mask = decode_mask(table.segmentation_raw(row), H, W)
        assert np.array_equal(mask, decode_mask(usual.segmentation_raw(row), H, W))
    errors = [f for f in audit(table, images=False) if f.severity == "error"]
    assert not errors


@pytest.mark.parametrize("name", FORMS)
def test_what_fix_writes_is_in_the_usual_form(name: str, tmp_path: Path) -> None:
    write(tmp_path, FORMS[name]())
    fixed = tmp_path / "fixed.json"
    main(["check", "--data", str(tmp_path / "data.json"), "--images", str(tmp_path), "--fix", str(fixed), "--json"])
    table = load_coco(fixed, tmp_path)
    assert np.array_equal(table.boxes, write(tmp_path, document()).boxes)
    odd = {"FILE_FORM", "BOX_FORM", "SEGMENTATION_FORM", "IMAGE_ID_NAME"}
    assert not odd & {f.code for f in audit(table, images=False)}


def test_digits_that_may_be_ids_are_ids(tmp_path: Path) -> None:
    """Files 0.png, 1.png … have ids 1, 2 …: "1" is the id, although a file is called so."""
    doc = document()
    for n, i in enumerate(doc["images"]):
        i["file_name"] = f"{n}.png"
    for a in doc["annotations"]:
        a["image_id"] = str(a["image_id"])
    (tmp_path / "data.json").write_text(json.dumps(doc), encoding="utf-8")
    assert load_coco(tmp_path / "data.json", tmp_path).ann_image.tolist() == list(range(6))


@pytest.mark.parametrize("text", ["", "1, 2, x", "[1, [2]]", "nan, 1", "1;2;3"])
def test_text_that_is_no_list_of_numbers_is_none(text: str) -> None:
    assert numbers_of(text) is None


def test_cocos_own_forms_come_back_untouched() -> None:
    usual = [b"[[1,2,3,4,5,6]]", b'{"size":[4,5],"counts":"`0d2"}', b'{"size":[4,5],"counts":[3,4,13]}', b"", b"null"]
    found, changed = plain_segmentations(usual, lambda n: (4, 5))
    assert (found, changed) == (usual, 0)


@pytest.mark.parametrize(
    ("head", "tool"),
    [
        ([{"id": 1, "data": {"image": "a"}, "annotations": []}], "Label Studio"),
        ([{"image": "a.png", "annotations": [{"label": "a", "coordinates": {}}]}], "CreateML"),
        ([{"data_row": {"id": "a"}, "projects": {}}], "Labelbox"),
        ([{"file_name": "a.png", "annotations": [{"bbox": [1, 2, 3, 4], "bbox_mode": 1}]}], "detectron2"),
        ({"classes": [], "tags": [], "projectType": "images"}, "Supervisely"),
    ],
)
def test_the_export_of_another_tool_is_named(head: Any, tool: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(json.dumps(head), encoding="utf-8")
    with pytest.raises(DataError, match=tool) as error:
        load_coco(tmp_path / "data.json", tmp_path)
    assert "export it as COCO" in (error.value.fix or "")
