"""Drawing: what is drawn is visible, in place, and survives strange names and sizes."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.evaluation.draw import PALETTE, Shape, draw, encoded, shapes_of


def square(height: int = 100, width: int = 120) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[20:60, 30:80] = True
    return mask


def test_mask_and_box_are_where_they_should_be() -> None:
    grey = np.full((500, 600, 3), 128, np.uint8)
    mask = square(500, 600)
    out = np.asarray(draw(grey, [Shape((30, 20, 50, 40), mask, "", PALETTE[0])]))
    changed = np.any(out != 128, axis=2)
    assert changed[25:55, 35:75].all()  # filled inside
    assert tuple(out[20, 50]) == PALETTE[0]  # its outline
    outside = changed.copy()
    outside[:70, :120] = False  # the shape and its label
    assert not outside.any()


def test_small_pictures_are_enlarged_and_large_ones_fit() -> None:
    pixels = np.zeros((64, 80, 3), np.uint8)
    assert min(draw(pixels, []).size) >= 400
    assert max(draw(np.zeros((900, 1600, 3), np.uint8), [], longest=640).size) == 640


def test_colour_by_class_and_with_one_class_by_object() -> None:
    items = [{"category_id": c, "bbox": [1, 1, 2, 2]} for c in (3, 7, 3)]
    two = shapes_of(items, {3: "a", 7: "b"}, 10, 10)
    assert two[0].colour == two[2].colour != two[1].colour
    one = shapes_of([i | {"category_id": 3} for i in items], {3: "a"}, 10, 10)
    assert len({s.colour for s in one}) == 3


def test_scores_are_written_and_low_ones_left_out() -> None:
    items = [{"category_id": 1, "bbox": [1, 1, 2, 2], "score": s} for s in (0.9, 0.2)]
    assert [s.text for s in shapes_of(items, {1: "cat"}, 10, 10, min_score=0.5)] == ["cat 0.90"]


def test_rle_is_drawn() -> None:
    (shape,) = shapes_of(
        [{"category_id": 1, "bbox": [0, 0, 1, 1], "segmentation": encode_rle(square())}], {1: "x"}, 100, 120
    )
    assert shape.mask is not None
    assert np.array_equal(shape.mask, square())


@pytest.mark.parametrize("text", ["\x1b[2Jevil", "x" * 500, "猫 🐱", ""])
def test_strange_names(text: str) -> None:
    draw(np.zeros((50, 50, 3), np.uint8), [Shape((1, 1, 20, 20), None, text, PALETTE[1])])


@pytest.mark.parametrize("box", [(-50, -50, 20, 20), (0, 0, 0, 0), (40, 40, 900, 900), (10, 10, -3, 5)])
def test_boxes_outside_or_without_size(box: tuple) -> None:
    draw(np.zeros((50, 50, 3), np.uint8), [Shape(box, None, "x", PALETTE[1], crowd=True)])


def test_hundreds_of_objects_and_tiny_pictures() -> None:
    rng = np.random.default_rng(0)
    shapes = [Shape((*rng.uniform(0, 90, 2), 8, 8), None, f"n{n}", PALETTE[n % 12]) for n in range(300)]
    draw(np.zeros((100, 100, 3), np.uint8), shapes)
    draw(np.zeros((1, 1, 3), np.uint8), shapes[:2])


def test_file_formats() -> None:
    picture = draw(np.zeros((50, 50, 3), np.uint8), [])
    assert Image.open(io.BytesIO(encoded(picture, ".JPG"))).format == "JPEG"
    assert Image.open(io.BytesIO(encoded(picture, ".png"))).format == "PNG"


def test_import_is_torch_free() -> None:
    code = "import sys, maskrcnn_coco.evaluation.draw; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
