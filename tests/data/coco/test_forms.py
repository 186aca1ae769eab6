"""Boxes, segmentations, ids and whole files that are written in another form, and say one thing only: they are read."""

from __future__ import annotations

import ast
import base64
import json
import zlib
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
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError
from tests.helpers.odd_sets import OddSet

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


def zipped() -> Doc:
    doc = packed()
    for a in doc["annotations"]:
        text = ast.literal_eval(a["segmentation"]["counts"])
        a["segmentation"]["counts"] = base64.b64encode(zlib.compress(text)).decode()
    return doc


def points(flat: list[float]) -> list[list[float]]:
    return [[x, y] for x, y in zip(flat[::2], flat[1::2], strict=True)]


def pairs(flat: list[float], more: str = "") -> str:
    return ", ".join(f"{x} {y}{more}" for x, y in points(flat))


def start_length(counts: list[int]) -> str:
    starts = np.cumsum([0, *counts])
    return " ".join(f"{starts[n] + 1} {counts[n]}" for n in range(1, len(counts), 2))


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
    "WKT": lambda: each("segmentation", lambda v: f"POLYGON (({pairs(v[0])}))"),
    "WKT of several": lambda: each("segmentation", lambda v: f"MULTIPOLYGON(((1 1, 1 1, 1 1)),(({pairs(v[0])})))"),
    "WKT with heights": lambda: each("segmentation", lambda v: f"POLYGON Z (({pairs(v[0], ' 0')}))"),
    "GeoJSON": lambda: each("segmentation", lambda v: {"type": "Polygon", "coordinates": [points(v[0])]}),
    "GeoJSON of several": lambda: each(
        "segmentation", lambda v: {"type": "MultiPolygon", "coordinates": [[points(v[0])]]}
    ),
    "points with heights": lambda: each("segmentation", lambda v: [[*p, 0.5] for p in points(v[0])]),
    "points with a flag, nested": lambda: each("segmentation", lambda v: [[[*p, 2] for p in points(v[0])]]),
    "runs of a competition": lambda: each("segmentation", lambda v: start_length(v["counts"]), rle=True),
    "RLE in zlib and base64": zipped,
    "category in a list": lambda: each("category_id", lambda v: [v]),
    "image in a list": lambda: each("image_id", lambda v: [v]),
    "annotations by image": lambda: (d := document()) | {
        "annotations": {str(a["image_id"]): [{k: v for k, v in a.items() if k != "image_id"}] for a in d["annotations"]}
    },
    "classes as supercategories": lambda: document() | {
        "categories": [{"id": n, "name": "", "supercategory": c} for n, c in ((1, "a"), (2, "b"))]
    },
    "classes as supercategories, without names": lambda: document() | {
        "categories": [{"id": n, "supercategory": c} for n, c in ((1, "a"), (2, "b"))]
    },
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
    assert ("convert_to_coco_json" if tool == "detectron2" else "export it as COCO") in (error.value.fix or "")


def renamed(kind: str, **names: str) -> Callable[[Doc], None]:
    def change(doc: Doc) -> None:
        for entry in doc[kind]:
            for field, name in names.items():
                entry[name] = entry.pop(field)

    return change


def category_names(doc: Doc) -> None:
    for a in doc["annotations"]:
        a["category_name"] = "ab"[a.pop("category_id") - 1]


def category_objects(doc: Doc) -> None:
    for a in doc["annotations"]:
        a["category"] = {"id": a["category_id"], "name": "ab"[a.pop("category_id") - 1]}


def image_files(doc: Doc) -> None:
    for a in doc["annotations"]:
        a["file_name"] = f"{a.pop('image_id') - 1:03d}.png"


def beside_empty(doc: Doc) -> None:
    for a in doc["annotations"]:
        a["polygons"], a["segmentation"] = a["segmentation"], []


NAMES: list[Callable[[Doc], None]] = [
    renamed("annotations", segmentation="segmentations"),
    renamed("annotations", segmentation="polygon"),
    renamed("annotations", segmentation="Segmentation", bbox="BBox"),
    renamed("annotations", bbox="box"),
    renamed("annotations", image_id="imageId", category_id="categoryId"),
    renamed("annotations", category_id="class_id"),
    renamed("categories", id="ID", name="Name"),
    renamed("categories", name="title"),
    renamed("images", file_name="filename"),
    category_names,
    category_objects,
    image_files,
    beside_empty,
]


@pytest.mark.parametrize("change", NAMES)
def test_fields_under_other_names_are_read(change: Callable[[Doc], None], tmp_path: Path) -> None:
    (tmp_path / "right").mkdir()
    right = write(tmp_path / "right", document())
    doc = document()
    change(doc)
    table = write(tmp_path, doc)
    assert np.array_equal(table.boxes, right.boxes) and table.labels.tolist() == right.labels.tolist()
    assert table.ann_image.tolist() == right.ann_image.tolist() and table.class_names == right.class_names
    masks = [decode_mask(t.segmentation_raw(3), H, W).sum() for t in (table, right)]
    assert masks[0] == masks[1]
    assert not [f for f in audit(table) if f.severity == "error"]


@pytest.mark.parametrize(
    "box",
    [
        lambda b: [[b[0], b[1]], [b[0] + b[2], b[1] + b[3]]],
        lambda b: [[b[0] + b[2], b[1] + b[3]], [b[0], b[1]]],
        lambda b: [*b, 0.93],
        lambda b: {"xmin": b[0], "ymin": b[1], "xmax": b[0] + b[2], "ymax": b[1] + b[3]},
        lambda b: {"x1": b[0], "y1": b[1], "x2": b[0] + b[2], "y2": b[1] + b[3]},
        lambda b: [f"{v},0" for v in b],
    ],
)
def test_boxes_in_more_forms(box: Callable[[Any], Any], tmp_path: Path) -> None:
    table = write(tmp_path, each("bbox", box))
    assert table.boxes.tolist() == [a["bbox"] for a in document()["annotations"]]


@pytest.mark.parametrize("box", [lambda b: [*b, 7], lambda b: [b[0], b[1]], lambda b: [[1, 2, 3], [4, 5, 6]]])
def test_boxes_that_may_mean_several_things_are_not_read(box: Callable[[Any], Any], tmp_path: Path) -> None:
    assert np.isnan(write(tmp_path, each("bbox", box)).boxes).all()


def test_what_is_cut_out_of_an_outline_stays_out(tmp_path: Path) -> None:
    rings = [[[5, 5], [45, 5], [45, 35], [5, 35], [5, 5]], [[15, 15], [25, 15], [25, 25], [15, 25], [15, 15]]]
    text = ", ".join("(" + ", ".join(f"{x} {y}" for x, y in ring) + ")" for ring in rings)
    for value in ({"type": "Polygon", "coordinates": rings}, f"POLYGON ({text})", f"MULTIPOLYGON (({text}))"):
        table = write(tmp_path, each("segmentation", lambda _, value=value: value))
        mask = decode_mask(table.segmentation_raw(0), H, W)
        assert abs(int(mask.sum()) - (40 * 30 - 100)) <= 40 and mask[20, 20] == 0 and mask[10, 10] == 1


@pytest.mark.parametrize(
    "value",
    [
        "POLYGON EMPTY",
        "POLYGON ((1 1, 2 2))",
        "LINESTRING (1 1, 5 5, 9 1)",
        "POINT (1 1)",
        {"type": "LineString", "coordinates": [[1, 1], [5, 5], [9, 1]]},
        {"type": "Polygon", "coordinates": [[["a", "b"], [1, 2], [3, 4]]]},
        {"type": "Polygon", "coordinates": []},
        "1 5 3 5",
        "500 20 510 20",
        "2300 200",
        {"size": [H, W], "counts": "eJzT0yMAAGTvBe8="},
    ],
)
def test_what_is_no_outline_is_not_read_and_said(value: Any, tmp_path: Path) -> None:
    table = write(tmp_path, each("segmentation", lambda _: value))
    with pytest.raises(DataError):
        decode_mask(table.segmentation_raw(0), H, W)
    found = [f for f in audit(table, images=False) if f.severity == "error"]
    assert len(found) == 6 and "size None" not in found[0].message


@pytest.mark.parametrize(
    ("text", "what", "fix"),
    [
        ("\n".join(json.dumps(a) for a in document()["annotations"]), "an object a line", "json.loads"),
        (str(document()), "Python's notation", "literal_eval"),
        (json.dumps(document())[:900], "ends in the middle", "download"),
        (json.dumps(document()).replace("[[", "[[,", 1), "not valid JSON", "byte"),
        (json.dumps({"videos": [], "annotations": [], "categories": []}), "YouTube-VIS", "for each frame"),
        (
            json.dumps(document() | {"annotations": [{"image_id": 1, "file_name": "a.png", "segments_info": []}]}),
            "COCO panoptic",
            "panoptic2detection",
        ),
        (json.dumps(document() | {"images": {"id": {"0": 1}}}), "not a list", "to_dict"),
        (json.dumps([{"name": "a", "labels": [{"poly2d": []}]}]), "BDD100K", "export"),
    ],
)
def test_another_kind_of_file_is_said_to_be_that(text: str, what: str, fix: str, tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=what) as e:
        load_coco(tmp_path / "data.json", tmp_path)
    assert fix in (e.value.fix or "")


def test_what_pandas_writes_for_nothing_is_a_missing_mask(tmp_path: Path) -> None:
    doc = document()
    doc["annotations"][0]["segmentation"] = float("nan")
    table = write(tmp_path, doc)
    assert [f.code for f in audit(table, images=False) if f.severity == "error"] == ["SEGMENTATION_MISSING"]


def test_a_text_that_was_encoded_twice_is_read(tmp_path: Path) -> None:
    assert len(write(tmp_path, json.dumps(document())).ann_ids) == 6


def test_annotations_of_no_image_are_said_to_be_that(tmp_path: Path) -> None:
    doc = document()
    for n, image in enumerate(doc["images"]):
        image["id"] = f"ABC{n}"
    for n, a in enumerate(doc["annotations"]):
        a["image_id"] = f"abc{n}"
    write(tmp_path, doc)
    with pytest.raises(DataError, match="none of the 6 annotations") as e:
        find_data(tmp_path / "data.json")
    assert "abc0" in (e.value.got or "")


@pytest.mark.parametrize("name", ["", "  ", None, 3])
def test_a_category_without_a_name_is_called_by_its_id_and_said(tmp_path: Path, name: object) -> None:
    data = OddSet(tmp_path)
    data.categories[1]["name"] = name
    table = data.table()
    assert [c.name for c in table.categories] == ["cat", "category 2"]
    assert [p.code for p in table.problems] == ["CATEGORY_BAD"]
