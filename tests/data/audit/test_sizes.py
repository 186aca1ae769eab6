"""Files that all have another size than their entries: one finding with the factor, and a repair that scales."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from silent.scene import Scene, write_coco

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.audit.sizes import SIZE_CODES
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.masks import decode_mask


def resized(folder: Path, width: int, height: int, *, polygons: bool = False) -> tuple[CocoTable, CocoTable]:
    """A set whose files are resized after annotation, and the table as it was."""
    data = write_coco(folder, Scene(8))
    if polygons:
        doc = json.loads(data.read_text())
        for a in doc["annotations"]:
            x, y, w, h = a["bbox"]
            a["segmentation"], a["area"] = [[x, y, x + w, y, x + w, y + h, x, y + h]], w * h
        data.write_text(json.dumps(doc))
    before = load_coco(data, folder)
    for path in folder.glob("*.png"):
        Image.open(path).resize((width, height)).save(path)
    return before, load_coco(data, folder)


def codes(table: CocoTable, **options: Any) -> list[str]:
    return [f.code for f in audit(table, **options)]


@pytest.mark.parametrize("polygons", [False, True])
@pytest.mark.parametrize(("width", "height"), [(48, 32), (192, 128), (80, 80)])
def test_resized_files_are_one_finding_and_are_repaired(
    width: int, height: int, polygons: bool, tmp_path: Path
) -> None:
    before, table = resized(tmp_path, width, height, polygons=polygons)
    found = audit(table, gathered=True)
    (one,) = [f for f in found if f.code in SIZE_CODES]
    assert one.code == "IMAGES_RESIZED" and f"{width / 96:.3g} × {height / 64:.3g}" in one.message
    assert "IMAGE_SIZE_WRONG" not in {f.code for f in found}
    repair(table, audit(table), tmp_path / "fixed.json")
    fixed = load_coco(tmp_path / "fixed.json", tmp_path)
    scale = np.array([width / 96, height / 64] * 2)
    assert np.allclose(fixed.boxes, before.boxes * scale, atol=0.01)
    assert (fixed.widths == width).all() and (fixed.heights == height).all()
    assert not {f.code for f in audit(fixed) if f.severity == "error"}
    mask = decode_mask(fixed.segmentation_raw(0), height, width)
    assert abs(mask.sum() - before.area[0] * scale[0] * scale[1]) < 0.25 * mask.sum()


def test_exchanged_sides_are_that_and_no_reading_of_boxes(tmp_path: Path) -> None:
    data = write_coco(tmp_path, Scene(8))
    right, doc = load_coco(data, tmp_path), json.loads(data.read_text())
    for i in doc["images"]:
        i["width"], i["height"] = i["height"], i["width"]
    data.write_text(json.dumps(doc))
    table = load_coco(data, tmp_path)
    assert {"SIZES_SWAPPED"} == set(codes(table)) & (SIZE_CODES | {"ALL_SWAPPED", "MASK_SWAPPED", "BOX_SWAPPED"})
    repair(table, audit(table), tmp_path / "fixed.json")
    fixed = load_coco(tmp_path / "fixed.json", tmp_path)
    assert fixed.widths.tolist() == right.widths.tolist() and np.array_equal(fixed.boxes, right.boxes)


def test_one_file_of_another_size_is_a_fault_of_its_own(tmp_path: Path) -> None:
    data = write_coco(tmp_path, Scene(8))
    Image.open(tmp_path / "003.png").resize((40, 30)).save(tmp_path / "003.png")
    found = codes(load_coco(data, tmp_path))
    assert found.count("IMAGE_SIZE_WRONG") == 1 and not SIZE_CODES & set(found)


def changed(path: Path, how: str) -> None:
    image = Image.open(path)
    image.load()
    if how == "turned":
        image = image.transpose(Image.Transpose.ROTATE_90)
    elif how == "cut":
        image = image.crop((0, 0, 80, 56))
    elif how == "cut at the left":
        image = image.crop((16, 8, 96, 64))
    else:
        image = image if how == "padded" else image.resize((72, 48))
        canvas = Image.new("RGB", (96, 96) if how == "padded" else (72, 72))
        canvas.paste(image, (0, (canvas.height - image.height) // 2))
        image = canvas
    image.save(path)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        ("turned", "turned to the left"),
        ("cut", "at the right and below"),
        ("cut at the left", "at the left and above"),
        ("padded", "padded all around"),
        ("letterbox", "letterbox"),
    ],
)
def test_files_that_were_cut_padded_or_turned_are_not_called_resized(how: str, word: str, tmp_path: Path) -> None:
    data = write_coco(tmp_path, Scene(12))
    for path in tmp_path.glob("*.png"):
        changed(path, how)
    table = load_coco(data, tmp_path)
    found = audit(table, gathered=True)
    assert [f.code for f in found if f.severity == "error" and f.code.startswith(("IMAGE", "SIZE"))] == [
        "IMAGES_CHANGED"
    ]
    assert word in next(f.message for f in found if f.code == "IMAGES_CHANGED")
    boxes = table.boxes.copy()
    assert np.array_equal(load_coco(data, tmp_path).boxes, boxes)


def test_specks_in_place_of_pictures_are_no_scale(tmp_path: Path) -> None:
    data = write_coco(tmp_path, Scene(8))
    for path in tmp_path.glob("*.png"):
        Image.new("RGB", (1, 1)).save(path)
    assert not {*SIZE_CODES, "IMAGES_CHANGED"} & set(codes(load_coco(data, tmp_path)))
