"""Drawing: what is drawn is visible, in place, and survives strange names and sizes."""

from __future__ import annotations

import io
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.evaluation.draw import ALARM, PALETTE, Shape, draw, encoded, shapes_of


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


@pytest.mark.parametrize("size", [(60, 80), (500, 430), (900, 1300)])
@pytest.mark.parametrize("longest", [None, 300])
def test_an_object_in_its_window_is_drawn_as_one_in_the_whole_picture(
    size: tuple[int, int], longest: int | None
) -> None:
    rng = np.random.default_rng(size[0])
    pixels = rng.integers(0, 255, (*size, 3)).astype(np.uint8)
    whole, cut = [], []
    for n in range(6):
        x, y = int(rng.integers(-5, size[1] - 3)), int(rng.integers(-5, size[0] - 3))
        mask = np.zeros(size, bool)
        mask[max(y, 0) : y + 4 + 9 * n, max(x, 0) : x + 30] = rng.random() < 2
        mask[::3, ::2] &= n % 2 == 0
        ys, xs = np.nonzero(mask)
        corner = (int(xs.min()), int(ys.min()))
        part = mask[corner[1] : ys.max() + 1, corner[0] : xs.max() + 1]
        whole.append(Shape((x, y, 30, 4 + 9 * n), mask, f"{n}", PALETTE[n]))
        cut.append(Shape((x, y, 30, 4 + 9 * n), part, f"{n}", PALETTE[n], corner=corner))
    a, b = (np.asarray(draw(pixels, shapes, longest=longest)) for shapes in (whole, cut))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("size", [(60, 80), (500, 430), (901, 1303)])
@pytest.mark.parametrize("longest", [None, 333])
def test_a_mask_lands_where_resizing_the_whole_would_put_it(size: tuple[int, int], longest: int | None) -> None:
    rng = np.random.default_rng(size[1])
    mask = np.zeros(size, bool)
    mask[size[0] // 3 : size[0] // 2, 5 : size[1] // 2] = (
        rng.random((size[0] // 2 - size[0] // 3, size[1] // 2 - 5)) < 0.7
    )
    drawn = draw(np.zeros((*size, 3), np.uint8), [Shape((0, 0, 0, 0), mask, "", (255, 0, 0))], longest=longest)
    resized = Image.fromarray(mask.astype(np.uint8) * 255).resize(drawn.size, Image.Resampling.BILINEAR)
    whole = np.asarray(resized) > 127
    wrong = (np.asarray(drawn)[..., 0] > 0) != whole
    # Pillow rounds its weights to 1/256 of a pixel: at most a few pixels that stand at one half.
    assert wrong.sum() <= 0.01 * whole.sum()


def test_labels_hide_no_small_object() -> None:
    big, small = (40.0, 60.0, 300.0, 200.0), (44.0, 46.0, 12.0, 10.0)
    grey = np.full((500, 600, 3), 128, np.uint8)
    shapes = [Shape(big, None, "something long", PALETTE[0]), Shape(small, None, "", PALETTE[1])]
    out = np.asarray(draw(grey, shapes))
    inner = out[49:53, 48:52]
    assert (inner == 128).all(), "the chip above the large box would lie on the small object"
    assert tuple(out[46, 50]) == PALETTE[1]


@pytest.mark.parametrize("masks", [False, True])
def test_what_a_picture_is_about_shows_among_hundreds(masks: bool) -> None:
    grey = np.full((500, 600, 3), 128, np.uint8)
    corners = [(20 * x, 20 * y) for x in range(29) for y in range(24)]
    mask = np.ones((8, 8), bool) if masks else None
    shapes = [Shape((*c, 8, 8), mask, f"n{n}", PALETTE[n % 12], corner=c) for n, c in enumerate(corners)]
    shapes[300] = Shape((*corners[300], 8, 8), mask, "? nucleus", ALARM, corner=corners[300])
    out = np.asarray(draw(grey, shapes)).astype(int)
    x, y = corners[300]
    red = (out == ALARM).all(-1)
    assert red[y, x : x + 9].all(), "its box"
    assert red.sum() > 400, "its label"
    assert red[:, : x - 70].sum() == red[:, x + 70 :].sum() == 0


def test_a_tiny_object_is_not_under_its_own_label() -> None:
    grey = np.full((500, 600, 3), 128, np.uint8)
    out = np.asarray(draw(grey, [Shape((300, 2, 8, 8), None, "a long name 0.99", PALETTE[0])]))
    assert (out[5:7, 303:306] == 128).all()


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
    assert [s.text for s in shapes_of(items, {1: "cat", 2: "dog"}, 10, 10, min_score=0.5)] == ["cat 0.90"]


def test_one_class_needs_no_name() -> None:
    items: list[dict] = [
        {"category_id": 1, "bbox": [1, 1, 2, 2], "score": 0.9},
        {"category_id": 1, "bbox": [1, 1, 2, 2]},
    ]
    assert [s.text for s in shapes_of(items, {1: "cat"}, 10, 10)] == ["0.90", ""]


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
