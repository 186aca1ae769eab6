"""CVAT's xml, tools with a json an image and tables of runs become COCO with the areas that were drawn."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.convert.recognise import recognise
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.data.masks import decode_mask, encode_rle
from maskrcnn_coco.errors import DataError

H, W = 48, 64
RING = [[10, 8], [30, 8], [30, 28], [10, 28]]
HOLE = [[15, 13], [20, 13], [20, 18], [15, 18]]
FLAT = [v for p in RING for v in p]
POINTS = [{"x": x, "y": y} for x, y in RING]


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(path.name)).integers(0, 256, (H, W, 3), np.uint8)).save(path)


def put(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))


def objects(data: Path) -> list[tuple[str, str, int]]:
    """(image, class, pixels) of each object that `--data` reads."""
    table = find_data(data).train
    names = table.class_names
    rows = []
    for n in range(len(table.ann_ids)):
        row = int(table.ann_image[n])
        mask = decode_mask(table.segmentation_raw(n), *table.size_of(row))
        rows.append((Path(table.file_name(row)).name, names[int(table.labels[n])], int((mask != 0).sum())))
    return sorted(rows)


def bitmap(small: np.ndarray) -> str:
    buffer = io.BytesIO()
    rgba = np.zeros((*small.shape, 4), np.uint8)
    rgba[small] = 255
    Image.fromarray(rgba).save(buffer, "PNG")
    return base64.b64encode(zlib.compress(buffer.getvalue())).decode()


def darwin(folder: Path) -> None:
    put(folder / "a.json", {
        "version": "2.0", "item": {"name": "a.png", "slots": [{"width": W, "height": H}]},
        "annotations": [
            {"name": "cell", "polygon": {"paths": [POINTS]}},
            {"name": "cell", "bounding_box": {"x": 1, "y": 2, "w": 3, "h": 4}},
        ],
    })  # fmt: skip


def darwin_1(folder: Path) -> None:
    about = {"filename": "a.png", "width": W, "height": H}
    put(folder / "a.json", {"image": about, "annotations": [{"name": "cell", "polygon": {"path": POINTS}}]})


def superannotate(folder: Path) -> None:
    put(folder / "a.png___objects.json", {
        "metadata": {"name": "a.png", "width": W, "height": H}, "tags": [], "comments": [],
        "instances": [
            {"type": "polygon", "className": "cell", "points": FLAT},
            {"type": "bbox", "className": "cell", "points": {"x1": 1, "y1": 1, "x2": 5, "y2": 5}},
        ],
    })  # fmt: skip


def supervisely(folder: Path) -> None:
    (folder / "img").mkdir(parents=True)
    (folder / "a.png").rename(folder / "img" / "a.png")
    put(folder / "meta.json", {"classes": [{"title": "cell", "shape": "polygon"}], "tags": []})
    put(folder / "ann" / "a.png.json", {
        "description": "", "tags": [], "size": {"height": H, "width": W},
        "objects": [{"classTitle": "cell", "geometryType": "polygon", "points": {"exterior": RING, "interior": []}}],
    })  # fmt: skip


def cityscapes(folder: Path) -> None:
    images = folder / "leftImg8bit" / "train" / "city"
    images.mkdir(parents=True)
    (folder / "a.png").rename(images / "a_leftImg8bit.png")
    put(folder / "gtFine" / "train" / "city" / "a_gtFine_polygons.json", {
        "imgHeight": H, "imgWidth": W,
        "objects": [{"label": "cell", "polygon": RING}, {"label": "road", "polygon": RING}],
    })  # fmt: skip


def qupath(folder: Path) -> None:
    put(folder / "a.geojson", {"type": "FeatureCollection", "features": [
        {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[*RING, RING[0]]]},
         "properties": {"objectType": "annotation", "classification": {"name": "cell"}}},
        {"type": "Feature", "geometry": {"type": "Point", "coordinates": [1, 2]}, "properties": {}},
    ]})  # fmt: skip


def cvat(folder: Path) -> None:
    points = ";".join(f"{x}.00,{y}.00" for x, y in RING)
    put(folder / "annotations.xml", f'<?xml version="1.0"?><annotations><version>1.1</version><image id="0" '
        f'name="sub/a.png" width="{W}" height="{H}"><polygon label="cell" occluded="0" points="{points}"/>'
        '<box label="cell" xtl="1" ytl="1" xbr="5" ybr="5"/></image></annotations>')  # fmt: skip


@pytest.mark.parametrize("write", [darwin, darwin_1, superannotate, supervisely, cityscapes, qupath, cvat])
def test_the_area_that_was_drawn(write: Any, tmp_path: Path):
    picture(tmp_path / "a.png")
    write(tmp_path)
    name = "a_leftImg8bit.png" if write is cityscapes else "a.png"
    assert objects(tmp_path) == [(name, "cell", 400)]
    file = next(
        p for p in sorted(tmp_path.rglob("*")) if p.suffix in (".json", ".geojson", ".xml") and p.stem != "meta"
    )
    assert write is cityscapes or objects(file) == [(name, "cell", 400)]
    out = tmp_path / "out" / "coco.json"
    assert main(["convert", str(tmp_path), "--out", str(out)]) == 0
    assert len(json.loads(out.read_text())["annotations"]) == 1


def test_holes_are_cut_out(tmp_path: Path):
    picture(tmp_path / "img" / "a.png")
    solid = np.zeros((6, 8), bool)
    solid[1:4, 2:7] = True
    put(tmp_path / "ann" / "a.png.json", {"size": {"height": H, "width": W}, "objects": [
        {"classTitle": "ring", "geometryType": "polygon", "points": {"exterior": RING, "interior": [HOLE]}},
        {"classTitle": "spot", "geometryType": "bitmap", "bitmap": {"data": bitmap(solid), "origin": [40, 30]}},
    ]})  # fmt: skip
    assert objects(tmp_path) == [("a.png", "ring", 375), ("a.png", "spot", 15)]
    picture(tmp_path / "geo" / "b.png")
    put(tmp_path / "geo" / "b.geojson", {"type": "FeatureCollection", "features": [
        {"geometry": {"type": "Polygon", "coordinates": [RING, HOLE]}, "properties": {"name": "ring"}}]})  # fmt: skip
    assert objects(tmp_path / "geo") == [("b.png", "ring", 375)]


def test_cvat_masks_and_groups(tmp_path: Path):
    picture(tmp_path / "images" / "a.png")
    two = "".join(f'<polygon label="cell" group_id="1" points="{x},2;{x + 5},2;{x + 5},7;{x},7"/>' for x in (2, 12))
    mask = '<mask label="spot" left="30" top="20" width="4" height="3" rle="1, 2, 2, 2, 5"/>'
    image = f'<image name="a.png" width="{W}" height="{H}">{two}{mask}</image>'
    put(tmp_path / "annotations.xml", f"<annotations>{image}</annotations>")
    assert objects(tmp_path) == [("a.png", "cell", 50), ("a.png", "spot", 4)]


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("names", [("ImageId", "EncodedPixels", "ClassId"), ("id", "annotation", "cell_type")])
def test_tables_of_runs_tell_their_order_themselves(order: str, names: tuple[str, str, str], tmp_path: Path):
    lines, wanted = [",".join(names)], []
    for n in range(3):
        picture(tmp_path / "train" / f"im{n}" / "images" / f"im{n}.png")
        mask = np.zeros((H, W), bool)
        mask[5 + n : 15 + n, 8 : 28 + n] = True
        flat = np.concatenate([[0], mask.ravel(order=order), [0]]).astype(np.int8)  # type: ignore[arg-type]
        starts, ends = np.flatnonzero(np.diff(flat) == 1), np.flatnonzero(np.diff(flat) == -1)
        runs = " ".join(f"{a + 1} {b - a}" for a, b in zip(starts.tolist(), ends.tolist(), strict=True))
        lines.append(f"im{n},{runs},kind{n % 2}")
        wanted.append((f"im{n}.png", f"kind{n % 2}", int(mask.sum())))
    picture(tmp_path / "train" / "empty" / "images" / "empty.png")
    put(tmp_path / "train.csv", "\n".join([*lines, "empty,,kind0"]) + "\n")
    assert objects(tmp_path) == wanted
    assert len(find_data(tmp_path).train) == 4


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "ImageId,EncodedPixels\nx,\n", "filename,class,xmin\na.png,x,1\n", ""])
def test_other_tables_are_not_taken_for_runs(text: str, tmp_path: Path):
    put(tmp_path / "t.csv", text)
    assert recognise(tmp_path / "t.csv") is None


@pytest.mark.parametrize("write", [darwin, superannotate, supervisely, qupath, cvat])
def test_odd_values_anywhere_are_no_raw_error(write: Any, tmp_path: Path):
    picture(tmp_path / "a.png")
    write(tmp_path)
    file = next(
        p for p in sorted(tmp_path.rglob("*")) if p.suffix in (".json", ".geojson", ".xml") and p.stem != "meta"
    )
    text = file.read_text()
    rng = np.random.default_rng(0)
    for value in ("null", "[]", '"x"', "-1", "{}", "1e999"):
        for _ in range(6):
            at = int(rng.integers(0, max(text.count("10"), 1)))
            parts = text.split("10")
            file.write_text("10".join(parts[: at + 1]) + value + "10".join(parts[at + 1 :]))
            out = ["--out", str(tmp_path / "out.json")]
            assert main(["convert", str(file), *out, "--format", "cvat" if write is cvat else "jsons"]) in (0, 3)


def test_masks_of_segment_anything_are_objects_of_one_class(tmp_path: Path) -> None:
    for n in range(2):
        picture(tmp_path / f"sa_{n}.jpg")
        mask = decode_mask([FLAT], H, W)
        about = {"image_id": n, "width": W, "height": H, "file_name": f"sa_{n}.jpg"}
        found = {"id": 1, "bbox": [10, 8, 20, 20], "area": 400, "segmentation": encode_rle(mask), "predicted_iou": 0.9}
        put(tmp_path / f"sa_{n}.json", {"image": about, "annotations": [found]})
    assert objects(tmp_path) == [(f"sa_{n}.jpg", "object", 400) for n in range(2)]


def yolo(folder: Path, text: str, classes: str | None = "names: [cat, dog]\n") -> None:
    picture(folder / "images" / "a.png")
    put(folder / "labels" / "a.txt", text)
    if classes is not None:
        put(folder / "data.yaml", classes)


SHARES = " ".join(f"{v / (W, H)[n % 2]}" for n, v in enumerate(FLAT))


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_names_of_classes_in_a_list_beside_the_labels(tmp_path: Path, place: str) -> None:
    yolo(tmp_path, f"1 {SHARES}\n0 {SHARES}", None)
    put(tmp_path / place, "cat\ndog\n")
    assert objects(tmp_path) == [("a.png", "cat", 400), ("a.png", "dog", 400)]


def test_classes_without_a_name_are_said_and_a_count_from_one_is_named(tmp_path: Path) -> None:
    yolo(tmp_path / "none", f"1 {SHARES}", None)
    assert "no file names the classes" in " ".join(find_data(tmp_path / "none").notes)
    yolo(tmp_path / "one", f"1 {SHARES}\n2 {SHARES}")
    assert "seem to count from 1" in " ".join(find_data(tmp_path / "one").notes)
    yolo(tmp_path / "more", f"0 {SHARES}\n7 {SHARES}")
    said = " ".join(find_data(tmp_path / "more").notes)
    assert "beyond the 2 names: 'class 7'" in said and "count from 1" not in said
    yolo(tmp_path / "sound", f"0 {SHARES}\n1 {SHARES}", "names: [cat, class 1]\n")
    assert "beyond" not in " ".join(find_data(tmp_path / "sound").notes)


def test_yolo_lines_in_pixels_are_said_to_be_that(tmp_path: Path) -> None:
    yolo(tmp_path, "0 " + " ".join(map(str, FLAT)))
    with pytest.raises(DataError, match="nothing in") as caught:
        find_data(tmp_path)
    assert "in pixels" in str(caught.value.got)


def test_cvat_for_video_is_said_to_be_that(tmp_path: Path) -> None:
    picture(tmp_path / "images" / "a.png")
    track = '<track id="0" label="cat"><polygon frame="0" keyframe="1" outside="0" points="1,1;5,1;5,5"/></track>'
    put(tmp_path / "annotations.xml", f"<annotations><version>1.1</version>{track}</annotations>")
    for data in (tmp_path, tmp_path / "annotations.xml"):
        with pytest.raises(DataError, match="CVAT for video"):
            find_data(data)


def test_outlines_of_a_map_are_said_to_be_that(tmp_path: Path) -> None:
    picture(tmp_path / "a.tif")
    ring = [[500_000 + x, 5_400_000 - y] for x, y in RING]
    feature = {"type": "Feature", "properties": {}, "geometry": {"type": "Polygon", "coordinates": [ring]}}
    put(tmp_path / "a.geojson", {"type": "FeatureCollection", "features": [feature]})
    with pytest.raises(DataError, match="nothing in") as caught:
        find_data(tmp_path)
    assert "coordinates of a map" in str(caught.value.got)


def test_a_pascal_set_of_classes_alone_gives_its_regions(tmp_path: Path) -> None:
    values = np.zeros((H, W), np.uint8)
    values[5:15, 5:25], values[20:40, 5:25], values[20:40, 40:60], values[0] = 8, 8, 12, 255
    picture(tmp_path / "JPEGImages" / "a.jpg")
    (tmp_path / "SegmentationClass").mkdir()
    Image.fromarray(values).save(tmp_path / "SegmentationClass" / "a.png")
    assert objects(tmp_path) == [("a.jpg", "cat", 200), ("a.jpg", "cat", 400), ("a.jpg", "dog", 400)]
    said = " ".join(find_data(tmp_path).notes)
    assert "not its object" in said and "those of the challenge" in said


def test_hidden_and_damaged_files_do_not_hide_a_set(tmp_path: Path) -> None:
    for n in range(3):
        picture(tmp_path / "img" / f"{n}.png")
        shape = {"label": "cat", "points": RING, "shape_type": "polygon", "group_id": None, "flags": {}}
        put(tmp_path / "json" / f"{n}.json", {
            "version": "5.2.1", "flags": {}, "shapes": [shape], "imagePath": f"..\\img\\{n}.png", "imageData": None,
            "imageHeight": H, "imageWidth": W,
        })  # fmt: skip
        (tmp_path / "json" / f"._{n}.json").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    put(tmp_path / "json" / "0000.json", "{")
    assert objects(tmp_path) == [(f"{n}.png", "cat", 400) for n in range(3)]
