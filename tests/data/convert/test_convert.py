"""Each tool's published layout becomes COCO with the areas, boxes, names and parts that were drawn; `check` agrees."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import math
import random
import shlex
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.convert.recognise import convert, recognise
from maskrcnn_coco.data.convert.regions import regions
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.system.files import cache_folder
from tests.helpers.odd_sets import OddSet

H, W = 48, 64


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(zlib.crc32(path.name.encode())).integers(0, 256, (H, W, 3), np.uint8)).save(
        path
    )
    return path


def png(path: Path, values: np.ndarray, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(values)
    if palette:
        image = Image.fromarray(values, mode="L").convert("P")
        image.putdata(values.ravel().tolist())
        image.putpalette([(7 * n) % 256 for n in range(768)])
    image.save(path)


def converted(source: Path, out: Path, *flags: str) -> tuple[dict[str, Any], list[tuple[str, str, int, list[float]]]]:
    """The verb's answer, and (image, class, mask pixels, box) of each object; `check` must have no error."""
    assert main(["convert", str(source), "--out", str(out), *flags]) == 0
    doc = json.loads(out.read_text())
    names = {c["id"]: c["name"] for c in doc["categories"]}
    images = {i["id"]: i for i in doc["images"]}
    objects = []
    for a in doc["annotations"]:
        image = images[a["image_id"]]
        mask = decode_mask(a["segmentation"], image["height"], image["width"])
        name = Path(image["file_name"]).name
        objects.append((name, names[a["category_id"]], int(mask.sum()), a["bbox"]))
    return doc, sorted(objects)


def usable(out: Path, images: Path) -> None:
    found = find_data(out, images=images)
    assert [f.message for f in audit(found.train) if f.severity != "info" and f.code != "CLASS_IMBALANCE"] == []


SQUARE = [[10, 8], [30, 8], [30, 28], [10, 28]]


def labelme(folder: Path, name: str, shapes: list[dict], image: str | None = None, **more: Any) -> None:
    picture(folder / f"{name}.png")
    shapes = [{"group_id": None, "flags": {}, "shape_type": "polygon"} | s for s in shapes]
    doc = {"version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": image or f"{name}.png", "imageData": None,
           "imageHeight": H, "imageWidth": W} | more  # fmt: skip
    (folder / f"{name}.json").write_text(json.dumps(doc))


def test_labelme(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = np.zeros((6, 9), bool)
    small[1:5, 2:8] = True
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "PNG")
    encoded = base64.b64encode(buffer.getvalue()).decode()
    labelme(tmp_path, "a", [
        {"label": "cat", "points": SQUARE},
        {"label": "dog", "points": [[2, 30], [8, 30], [8, 40], [2, 40]], "group_id": 1},
        {"label": "dog", "points": [[40, 30], [50, 30], [50, 40], [40, 40]], "group_id": 1},
        {"label": "dog", "points": [[5, 5]], "shape_type": "point"},
    ])  # fmt: skip
    labelme(tmp_path, "b", [
        {"label": "cat", "points": [[30, 28], [10, 8]], "shape_type": "rectangle"},
        {"label": "ball", "points": [[30, 24], [40, 24]], "shape_type": "circle"},
        {"label": "cat", "points": [[50, 2], [58, 7]], "shape_type": "mask", "mask": encoded},
    ], image="..\\elsewhere\\b.png", imageHeight=None)  # fmt: skip
    labelme(tmp_path, "c", [])
    out = tmp_path / "coco.json"
    doc, objects = converted(tmp_path, out)
    assert [c["name"] for c in doc["categories"]] == ["ball", "cat", "dog"] and len(doc["images"]) == 3
    circle = next(o for o in objects if o[1] == "ball")
    assert circle[2] == pytest.approx(math.pi * 100, rel=0.03) and circle[3] == pytest.approx([20, 14, 20, 20])
    assert [o for o in objects if o[1] != "ball"] == [
        ("a.png", "cat", 400, [10, 8, 20, 20]),
        ("a.png", "dog", 160, [2, 30, 48, 10]),
        ("b.png", "cat", 24, [52, 3, 6, 4]),
        ("b.png", "cat", 400, [10, 8, 20, 20]),
    ]
    said = capsys.readouterr().out
    assert "LabelMe" in said and "1 thing left out: shapes without an area" in said
    usable(out, tmp_path)
    command = said.strip().splitlines()[-1].partition("next: ")[2]
    assert main(shlex.split(command)[1:]) == 0


REGIONS = {
    "cat": {"name": "polygon", "all_points_x": [10, 30, 30, 10], "all_points_y": [8, 8, 28, 28]},
    "dog": {"name": "rect", "x": 40, "y": 30, "width": 10, "height": 10},
    "ball": {"name": "ellipse", "cx": 30, "cy": 20, "rx": 12, "ry": 6, "theta": 0.5},
    "line": {"name": "polyline", "all_points_x": [1, 2], "all_points_y": [1, 2]},
}


def via_regions(attribute: str = "class") -> list[dict]:
    return [{"shape_attributes": s, "region_attributes": {"note": "x", attribute: n}} for n, s in REGIONS.items()]


def check_via(source: Path, out: Path) -> None:
    _, objects = converted(source, out)
    assert [o for o in objects if o[1] != "ball"] == [
        ("a b.png", "cat", 400, [10, 8, 20, 20]),
        ("a b.png", "dog", 100, [40, 30, 10, 10]),
    ]
    ball = next(o for o in objects if o[1] == "ball")
    assert ball[2] == pytest.approx(math.pi * 72, rel=0.05)
    usable(out, source if source.is_dir() else source.parent)


@pytest.mark.parametrize("kind", ["project", "export", "version 1", "csv", "version 3"])
def test_via(kind: str, tmp_path: Path) -> None:
    size = picture(tmp_path / "images" / "a b.png").stat().st_size
    picture(tmp_path / "images" / "empty.png")
    regions_: Any = via_regions()
    entries = {f"a b.png{size}": {"filename": "a b.png", "size": size, "regions": regions_, "file_attributes": {}},
               "empty.png9": {"filename": "empty.png", "size": 9, "regions": [], "file_attributes": {}}}  # fmt: skip
    path = tmp_path / ("via.csv" if kind == "csv" else "via.json")
    if kind == "project":
        path.write_text(json.dumps({"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {}}))
    elif kind == "export":
        path.write_text(json.dumps(entries))
    elif kind == "version 1":
        entries[f"a b.png{size}"]["regions"] = {str(n): r for n, r in enumerate(regions_)}
        path.write_text(json.dumps(entries))
    elif kind == "csv":
        head = "filename,file_size,file_attributes,region_count,region_id,region_shape_attributes,region_attributes\n"
        quote = lambda v: '"' + json.dumps(v).replace('"', '""') + '"'  # noqa: E731
        rows = [f'a b.png,{size},"{{}}",4,{n},{quote(r["shape_attributes"])},{quote(r["region_attributes"])}\n'
                for n, r in enumerate(regions_)]  # fmt: skip
        path.write_text(head + "".join(rows) + 'empty.png,9,"{}",0,0,"{}","{}"\n')
    else:
        shapes = {"cat": [7, 10, 8, 30, 8, 30, 28, 10, 28], "dog": [2, 40, 30, 10, 10], "line": [6, 1, 1, 2, 2]}
        t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        outline = np.stack([30 + 12 * np.cos(t), 20 + 6 * np.sin(t)], 1).ravel().tolist()
        shapes["ball"] = [7, *outline]
        options = {str(n): name for n, name in enumerate(shapes)}
        path.write_text(json.dumps({
            "project": {"pid": "x"}, "config": {},
            "attribute": {"1": {"aname": "class", "type": 4, "options": options}},
            "file": {"1": {"fid": "1", "fname": "a b.png", "type": 2, "loc": 1, "src": ""},
                     "2": {"fid": "2", "fname": "empty.png", "type": 2, "loc": 1, "src": ""}},
            "view": {"1": {"fid_list": ["1"]}, "2": {"fid_list": ["2"]}},
            "metadata": {f"1_{n}": {"vid": "1", "flg": 0, "z": [], "xy": xy, "av": {"1": str(n)}}
                         for n, xy in enumerate(shapes.values())},
        }))  # fmt: skip
    check_via(path, tmp_path / "coco.json")
    (tmp_path / "coco.json").unlink()
    check_via(tmp_path, tmp_path / "coco.json")


@pytest.mark.parametrize("layout", ["images/train", "train/images"])
def test_yolo(layout: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outer, inner = layout.split("/")
    for part, n in (("train", 2), ("val", 1)):
        folder = tmp_path / layout.replace("train", part)
        for i in range(n):
            picture(folder / f"{part}{i}.png")
            text = "1 0.25 0.25 0.5 0.25 0.5 0.75 0.25 0.75\n0 0.5 0.5 0.1 0.1\n" if i == 0 else ""
            labels = tmp_path / layout.replace("train", part).replace("images", "labels")
            labels.mkdir(parents=True, exist_ok=True)
            (labels / f"{part}{i}.txt").write_text(text)
    (tmp_path / "data.yaml").write_text("path: .\ntrain: images/train\nnames:\n  0: cat\n  1: dog\n  2: bird\n")
    out = tmp_path / "coco_train.json"
    doc, objects = converted(tmp_path, out)
    assert [c["name"] for c in doc["categories"]] == ["cat", "dog", "bird"] and len(doc["images"]) == 2
    assert objects == [("train0.png", "dog", 16 * 24, [16, 12, 16, 24])]
    val = json.loads((tmp_path / "coco_val.json").read_text())
    assert len(val["images"]) == 1 and len(val["annotations"]) == 1 and val["categories"] == doc["categories"]
    assert "a box is no mask" in capsys.readouterr().out
    usable(out, tmp_path)
    found = find_data(out, images=tmp_path)
    assert found.val is not None and len(found.val) == 1 and outer and inner


def object_map() -> np.ndarray:
    values = np.zeros((H, W), np.uint8)
    values[5:15, 5:25], values[20:40, 30:50] = 1, 2
    values[19, 30:50] = 255  # the border
    return values


@pytest.mark.parametrize("names", ["xml", "palette", "labelmap", "class_names"])
def test_voc(names: str, tmp_path: Path) -> None:
    root = tmp_path / "VOCdevkit" / "VOC2012"
    values = object_map()
    kinds = np.where(values == 1, 8, np.where(values == 2, 12, values)).astype(np.uint8)
    for stem in ("2007_1", "2007_2", "2007_3"):
        picture(root / "JPEGImages" / f"{stem}.jpg")
        if stem != "2007_3":
            png(root / "SegmentationObject" / f"{stem}.png", values, palette=True)
        if names == "xml":
            (root / "Annotations").mkdir(exist_ok=True)
            xml = "".join(f"<object><name>{n}</name><bndbox/></object>" for n in ("cat", "dog"))
            (root / "Annotations" / f"{stem}.xml").write_text(f"<annotation>{xml}</annotation>")
            continue
        if names == "labelmap":
            colour = np.zeros((H, W, 3), np.uint8)
            colour[values == 1], colour[values == 2], colour[values == 255] = (128, 0, 0), (0, 128, 0), (224, 224, 192)
            png(root / "SegmentationClass" / f"{stem}.png", colour)
        else:
            kinds = np.where(np.isin(values, (1, 2)), values, 0) if names == "class_names" else kinds
            png(root / "SegmentationClass" / f"{stem}.png", kinds.astype(np.uint8), palette=True)
    if names == "labelmap":
        (root / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"
        )
    if names == "class_names":
        (root / "class_names.txt").write_text("_background_\ncat\ndog\n")
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("2007_1\n")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("2007_2\n2007_3\n")
    out = tmp_path / "train.json"
    _, objects = converted(tmp_path, out)
    assert objects == [("2007_1.jpg", "cat", 200, [5, 5, 20, 10]), ("2007_1.jpg", "dog", 400, [30, 20, 20, 20])]
    assert len(json.loads((tmp_path / "val.json").read_text())["annotations"]) == 2
    usable(out, tmp_path)


def test_voc_with_boxes_only_is_refused_in_its_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations" / "a.xml").write_text("<annotation><object><name>cat</name></object></annotation>")
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "o.json")]) == 3
    assert "boxes only" in capsys.readouterr().err


def test_mask_images_numbered(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As in Penn-Fudan: the values of a mask number its objects."""
    for n, number in enumerate((2, 1, 3)):
        picture(tmp_path / "PNGImages" / f"f{n}.png")
        values = np.zeros((H, W), np.uint8)
        for k in range(number):
            values[5:15, 2 + 12 * k : 12 + 12 * k] = k + 1
        values[25:30, 2:12] = 1  # the first is in two pieces
        png(tmp_path / "PedMasks" / f"f{n}_mask.png", values)
    doc, objects = converted(tmp_path, tmp_path / "o.json")
    assert len(objects) == 6 and {o[1] for o in objects} == {"object"} and len(doc["images"]) == 3
    assert sorted(o[2] for o in objects) == [100, 100, 100, 150, 150, 150]
    assert "number its objects" in capsys.readouterr().out
    usable(tmp_path / "o.json", tmp_path)


def test_mask_images_of_one_value_and_of_classes(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "one/images" / f"f{n}.jpg")
        picture(tmp_path / "two/images" / f"f{n}.jpg")
        values = np.zeros((H, W), np.uint8)
        values[5:15, 5:15] = values[5:15, 25:35] = values[25:35, 5 : 15 + n] = 255
        png(tmp_path / "one/masks" / f"f{n}.png", values)
        values[5:15, 25:35] = 128
        values[40:45, 5:15] = 128
        png(tmp_path / "two/masks" / f"f{n}.png", values)
    _, objects = converted(tmp_path / "one", tmp_path / "one.json")
    assert len(objects) == 9 and {o[1] for o in objects} == {"object"}
    _, objects = converted(tmp_path / "two", tmp_path / "two.json")
    assert len(objects) == 12 and {o[1] for o in objects} == {"class 128", "class 255"}
    _, objects = converted(tmp_path / "two", tmp_path / "two.json", "--masks-are", "objects")
    assert len(objects) == 6
    usable(tmp_path / "one.json", tmp_path / "one")


def test_mask_images_a_file_an_object(tmp_path: Path) -> None:
    """As in the nuclei challenge: a folder an image, a mask a nucleus; and class folders."""
    for n in range(2):
        picture(tmp_path / "dsb" / f"id{n}" / "images" / f"id{n}.png")
        picture(tmp_path / "cls" / "images" / f"i{n}.png")
        for k in range(3):
            mask = np.zeros((H, W), np.uint8)
            mask[5:15, 5 + 15 * k : 15 + 15 * k] = 255
            png(tmp_path / "dsb" / f"id{n}" / "masks" / f"{k}abc.png", mask)
            png(tmp_path / "cls" / "masks" / ("cat" if k else "dog") / f"i{n}_{k}.png", mask)
    _, objects = converted(tmp_path / "dsb", tmp_path / "a.json")
    assert len(objects) == 6 and all(o[2] == 100 for o in objects)
    _, objects = converted(tmp_path / "cls", tmp_path / "b.json")
    assert len(objects) == 6 and all(o[2] == 100 for o in objects)


def test_data_of_another_tool_are_read_and_the_conversion_is_named(tmp_path: Path) -> None:
    labelme(tmp_path / "label me", "a", [{"label": "cat", "points": SQUARE}])
    picture(tmp_path / "via" / "a b.png")
    (tmp_path / "via/v.json").write_text(
        json.dumps({"a b.png1": {"filename": "a b.png", "size": 1, "regions": via_regions()}})
    )
    picture(tmp_path / "masks/images/a.png")
    png(tmp_path / "masks/masks/a.png", object_map())
    picture(tmp_path / "yolo/images/a.png")
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/labels/a.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    for data in ("label me", "label me/a.json", "via", "via/v.json", "masks", "yolo"):
        found = find_data(tmp_path / data)
        assert len(found.train.ann_ids) > 0 and found.train.json_path.is_relative_to(cache_folder("converted"))
        note = next(n for n in found.notes if "maskrcnn-coco convert" in n)
        command = note.partition("; maskrcnn-coco ")[2].partition(" writes it")[0]
        out = tmp_path / "made" / "coco.json"
        assert main(shlex.split(command.replace("FILE.json", shlex.quote(str(out))))) == 0, data
        assert out.read_bytes() == found.train.json_path.read_bytes()


def test_a_kept_conversion_follows_its_source(tmp_path: Path) -> None:
    labelme(tmp_path, "a", [{"label": "cat", "points": SQUARE}])
    first = find_data(tmp_path).train
    written = first.json_path.stat().st_mtime_ns
    assert find_data(tmp_path).train.json_path.stat().st_mtime_ns == written
    labelme(tmp_path, "b", [{"label": "dog", "points": SQUARE}])
    assert len(find_data(tmp_path).train) == 2
    (tmp_path / "b.json").unlink()
    assert len(find_data(tmp_path).train) == 1
    (first.json_path.parent / "about.json").write_text("{")
    assert len(find_data(tmp_path).train) == 1


def test_parts_of_a_source_become_training_and_validation_data(tmp_path: Path) -> None:
    for part in ("train", "val"):
        picture(tmp_path / f"images/{part}/{part}.png")
        (tmp_path / f"labels/{part}").mkdir(parents=True)
        (tmp_path / f"labels/{part}/{part}.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5\n")
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cell]\n")
    found = find_data(tmp_path)
    assert found.val is not None and (found.train.file_name(0), found.val.file_name(0)) == (
        "images/train/train.png",
        "images/val/val.png",
    )


def test_a_source_without_masks_is_refused_with_what_it_has(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match="becomes an object") as e:
        find_data(tmp_path)
    assert "a box is no mask" in (e.value.got or "") and e.value.fix


def test_what_is_of_no_tool_is_not_taken_for_one(tmp_path: Path, shared_data: Path) -> None:
    assert recognise(shared_data / "dsb2018") is None or find_data(shared_data / "dsb2018")
    for text in ("{}", "[]", '{"a": 1}', "nonsense", '{"shapes": 3, "imagePath": ""}'):
        (tmp_path / "x.json").write_text(text)
        assert recognise(tmp_path / "x.json") is None
    (tmp_path / "x.json").unlink()
    assert recognise(tmp_path) is None and recognise(tmp_path / "gone") is None
    with pytest.raises(DataError, match="no training annotations"):
        find_data(tmp_path)
    assert main(["convert", str(tmp_path), "--out", str(tmp_path / "o.json")]) == 3
    assert main(["convert", str(tmp_path / "gone"), "--out", str(tmp_path / "o.json")]) == 3


def test_regions_are_those_that_touch() -> None:
    mask = np.array([[1, 1, 0, 0, 1], [0, 0, 1, 0, 1], [1, 0, 0, 0, 0], [1, 0, 1, 1, 0], [0, 1, 0, 0, 1]], bool)
    found = sorted(int(r.sum()) for r in regions(mask))
    assert found == [2, 3, 6] and sum(r.astype(int) for r in regions(mask)).max() == 1
    rng = np.random.default_rng(0)
    noise = rng.random((40, 50)) > 0.55
    parts = list(regions(noise))
    assert (sum(p.astype(int) for p in parts) == noise).all()
    for part in parts:  # nothing beside a region belongs to another one
        grown = np.zeros_like(noise)
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                grown |= np.pad(part, 1)[1 + dy : 41 + dy, 1 + dx : 51 + dx]
        assert ((grown & noise) == part).all()


def test_whatever_stands_in_a_file_the_answer_is_a_sentence(tmp_path: Path) -> None:
    """Any value anywhere: converted, or refused by a DataError; never anything else."""
    rng = random.Random(3)
    picture(tmp_path / "a b.png")
    mask = {"label": "m", "shape_type": "mask", "mask": "x", "points": [[1, 1], [5, 5]]}
    labelme(tmp_path, "a", [{"label": "c", "points": SQUARE, "group_id": 1}, mask])
    via = {"a b.png": {"filename": "a b.png", "regions": via_regions()}}
    texts = [(tmp_path / "a.json").read_text(), json.dumps(via)]
    values = [None, True, -1, 1e400, "x", [], {}, [[]], 10**30, [1, 2, 3], {"a": 1}]
    for n in range(300):
        doc = json.loads(texts[n % 2])
        spots = [(t, k) for t in containers(doc) for k in (list(t) if isinstance(t, dict) else range(len(t)))]
        inside, key = rng.choice(spots)
        inside[key] = rng.choice(values)
        (tmp_path / "a.json").write_text(json.dumps(doc))
        source = recognise(tmp_path / "a.json")
        if source is not None:
            with contextlib.suppress(DataError):
                for document in convert(source).values():
                    document.plain()


def containers(value: Any) -> list[Any]:
    """All dicts and lists in a JSON value."""
    if not isinstance(value, (dict, list)):
        return []
    inside = value.values() if isinstance(value, dict) else value
    return [value, *(c for v in inside for c in containers(v))]


def test_a_set_that_is_coco_already_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    OddSet(tmp_path / "set").write()
    assert main(["convert", str(tmp_path / "set"), "--out", str(tmp_path / "out.json")]) == 3
    said = capsys.readouterr().err
    assert "is COCO already" in said and f"maskrcnn-coco check --data {tmp_path / 'set'}" in said
    (tmp_path / "empty").mkdir()
    assert main(["convert", str(tmp_path / "empty"), "--out", str(tmp_path / "out.json")]) == 3
    assert "of no kind that is known" in capsys.readouterr().err
