"""Image, boxes and masks stay together; torchvision is the slow twin."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as F

from maskrcnn_coco.data.augment import LIGHT
from maskrcnn_coco.data.masks import checked_runs, decode_mask, encode_rle
from maskrcnn_coco.data.outlines import Outlines, Runs, draw_masks, move_outlines
from maskrcnn_coco.data.transforms import Recipe, change_boxes, change_image, draw_recipe, output_size

SIZES = [(97, 140), (128, 128), (333, 91), (64, 250)]


def masks_of(outlines: list, size: tuple[int, int], recipe: Recipe) -> torch.Tensor:
    masks, seen = draw_masks(outlines, size, recipe)
    assert seen.tolist() == masks.flatten(1).any(1).bool().tolist()
    moved, kept = move_outlines(outlines, size, recipe)
    assert kept.tolist() == seen.tolist()
    assert torch.equal(Outlines.of(moved, (recipe.height, recipe.width)).masks(), masks[torch.from_numpy(seen)])
    return masks


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    cy, cx = rng.uniform(0.2, 0.8, 2) * (height, width)
    ry, rx = rng.uniform(0.08, 0.3, 2) * (height, width)
    return (((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1).astype(np.uint8)


def ring(rng: np.random.Generator, height: int, width: int, points: int = 24) -> np.ndarray:
    angles = np.linspace(0, 2 * math.pi, points, endpoint=False)
    centre, radius = rng.uniform(0.3, 0.7, 2) * (width, height), rng.uniform(0.15, 0.28) * min(height, width)
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], 1)


def test_a_recipe_is_a_pure_function_of_seed_epoch_and_image():
    args = (3, 5, 1234, (480, 640), 800, 1333)
    assert draw_recipe(*args) == draw_recipe(*args)
    others = [draw_recipe(3, 6, *args[2:]), draw_recipe(4, 5, *args[2:]), draw_recipe(3, 5, 1235, *args[3:])]
    assert all(o != draw_recipe(*args) for o in others)


def test_recipes_are_spread_as_documented():
    drawn = [draw_recipe(0, e, i, (480, 640), 100, 500) for e in range(20) for i in range(100)]
    assert 0.46 < np.mean([r.flip for r in drawn]) < 0.54
    sizes, counts = np.unique([r.height for r in drawn], return_counts=True)
    assert sizes.tolist() == [80, 85, 90, 95, 100] and counts.min() > 320
    for name in ("brightness", "contrast"):
        values = [getattr(r, name) for r in drawn]
        assert 0.8 <= min(values) < 0.82 and 1.18 < max(values) <= 1.2
    assert LIGHT.scale.high == 1.0, "memory must stay what min_size promises"


def test_sizes_are_those_of_the_models_own_transform():
    transform = GeneralizedRCNNTransform(100, 170, [0.0] * 3, [1.0] * 3).train()
    rng = np.random.default_rng(0)
    for _ in range(60):
        height, width = (int(v) for v in rng.integers(20, 400, 2))
        resized, _ = transform.resize(torch.zeros(3, height, width), None)
        assert tuple(resized.shape[-2:]) == output_size(height, width, 100, 170)


@pytest.mark.parametrize("size", SIZES)
def test_images_are_resized_as_by_the_model(size: tuple[int, int]):
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (*size, 3), dtype=torch.uint8)
    image = pixels.permute(2, 0, 1)
    transform = GeneralizedRCNNTransform(100, 170, [0.0] * 3, [1.0] * 3).train()
    expected, _ = transform.resize(image.float() / 255, None)
    changed = change_image(pixels.numpy(), Recipe(*output_size(*size, 100, 170)))
    assert changed.dtype == torch.uint8 and changed.is_contiguous()
    assert (changed.float() / 255 - expected).abs().max() <= 1.01 / 255
    flipped = change_image(pixels.numpy(), Recipe(*output_size(*size, 100, 170), flip=True))
    assert (flipped.int() - changed.flip(-1).int()).abs().max() <= 1


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_boxes_follow_as_torchvision_v2_moves_them(size: tuple[int, int], flip: bool):
    rng = np.random.default_rng(1)
    xy, wh = rng.uniform(0, 60, (9, 2)), rng.uniform(2, 25, (9, 2))
    height, width = output_size(*size, 100, 170)
    box = tv_tensors.BoundingBoxes(torch.tensor(np.hstack([xy, xy + wh])), format="XYXY", canvas_size=size)  # type: ignore[call-overload]
    box = F.clamp_bounding_boxes(F.resize(box, [height, width]))
    expected = F.horizontal_flip(box) if flip else box
    got = change_boxes(np.hstack([xy, wh]), size, Recipe(height, width, flip))
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected.numpy(), atol=1e-4)


def test_boxes_are_clamped_and_bad_numbers_are_not_hidden():
    boxes = np.array([[-5.0, -5, 300, 300], [np.nan, 1, 5, 5], [np.inf, 1, 5, 5]])
    got = change_boxes(boxes, (100, 200), Recipe(50, 100))
    assert got[0].tolist() == [0, 0, 100, 50]
    assert np.isnan(got[1][[0, 2]]).all()
    assert change_boxes(np.zeros((0, 4)), (9, 9), Recipe(3, 3)).shape == (0, 4)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("target", [(128, 128), (100, 157), (61, 61), (211, 333)])
@pytest.mark.parametrize("size", SIZES)
def test_rle_is_resized_exactly_as_torchvision_resizes_the_dense_mask(size, target, flip):
    rng = np.random.default_rng(2)
    masks = np.stack([blob(rng, *size) for _ in range(4)] + [np.ones(size, np.uint8)])
    outlines = [Runs(checked_runs(encode_rle(m), *size), size) for m in masks]
    dense = torch.nn.functional.interpolate(torch.from_numpy(masks)[:, None].float(), size=target)[:, 0].byte()
    expected = dense.flip(-1) if flip else dense
    got = masks_of(list(outlines), size, Recipe(*target, flip))
    assert got.dtype == torch.uint8 and torch.equal(got, expected)


def test_an_rle_without_foreground_stays_empty():
    runs = Runs(checked_runs({"size": [8, 9], "counts": [72]}, 8, 9), (8, 9))
    assert masks_of([runs], (8, 9), Recipe(16, 18)).sum() == 0


@pytest.mark.parametrize("size", SIZES)
def test_polygons_that_stay_where_they_are_are_cocos_own_masks(size: tuple[int, int]):
    rng = np.random.default_rng(3)
    shapes = [
        [ring(rng, *size)],
        [ring(rng, *size), ring(rng, *size)],
        [ring(rng, *size) - 40],
        [ring(rng, *size) + 60],
    ]
    got = masks_of(list(shapes), size, Recipe(*size))
    for mask, parts in zip(got.numpy(), shapes, strict=True):
        assert np.array_equal(mask, decode_mask([p.ravel().tolist() for p in parts], *size))


@pytest.mark.parametrize("flip", [False, True])
def test_moved_polygons_agree_with_resized_dense_masks(flip: bool):
    rng = np.random.default_rng(4)
    size, target = (240, 320), (150, 200)
    shapes = [[ring(rng, *size)] for _ in range(10)]
    dense = np.stack([decode_mask([p.ravel().tolist() for p in s], *size) for s in shapes])
    expected = torch.nn.functional.interpolate(torch.from_numpy(dense)[:, None].float(), size=target)[:, 0].bool()
    expected = expected.flip(-1) if flip else expected
    got = masks_of(list(shapes), size, Recipe(*target, flip)).bool()
    iou = (got & expected).sum((1, 2)) / (got | expected).sum((1, 2))
    assert iou.min() > 0.95


@pytest.mark.parametrize("flip", [False, True])
def test_boxes_and_masks_stay_together(flip: bool):
    rng = np.random.default_rng(5)
    size, recipe = (240, 320), Recipe(150, 200, flip)
    shapes = [ring(rng, *size) for _ in range(10)]
    boxes = np.array([[*s.min(0), *(s.max(0) - s.min(0))] for s in shapes])
    moved = change_boxes(boxes, size, recipe)
    for mask, box in zip(masks_of([[s] for s in shapes], size, recipe).numpy(), moved, strict=True):
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        assert np.abs(np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1]) - box).max() <= 1.5


@pytest.mark.parametrize(("brightness", "contrast"), [(0.8, 1.0), (1.2, 1.0), (1.0, 0.8), (1.0, 1.2), (1.15, 0.9)])
def test_light_changes_as_torchvision_v2_changes_it(brightness: float, contrast: float):
    rng = np.random.default_rng(6)
    # grey: torchvision weighs the channels of the mean by luminance, this project equally
    pixels = np.repeat(rng.integers(0, 256, (60, 90, 1), dtype=np.uint8), 3, axis=2)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    expected = F.adjust_contrast(F.adjust_brightness(image, brightness), contrast)
    got = change_image(pixels, Recipe(60, 90, brightness=brightness, contrast=contrast))
    assert (got.int() - expected.int()).abs().max() <= 2


def test_without_changes_the_image_stays():
    pixels = np.random.default_rng(7).integers(0, 256, (8, 9, 3), dtype=np.uint8)
    before = pixels.copy()
    assert np.array_equal(change_image(pixels, Recipe(8, 9)).permute(1, 2, 0).numpy(), pixels)
    change_image(pixels, Recipe(8, 9, True, 1.1, 0.9))
    assert np.array_equal(pixels, before)
