"""Training on tiles: every object is whole in some tile, masks and boxes are exact, and samples are pure functions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.data.outlines import Runs, Window, draw_masks
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.tile_grid import Tiles
from maskrcnn_coco.data.tile_objects import cut, runs_of
from maskrcnn_coco.data.transforms import Recipe

HEIGHT, WIDTH, SIDE = 300, 260, 96


def scene() -> tuple[np.ndarray, list[np.ndarray]]:
    """A large image whose pixels tell where they are, and masks of 10-pixel discs all over it."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([xs % 256, ys % 256, (xs // 16 + ys // 16) % 256], -1).astype(np.uint8)
    centres = [(x, y) for x in range(12, WIDTH - 8, 24) for y in range(12, HEIGHT - 8, 24)]
    return pixels, [((xs - x) ** 2 + (ys - y) ** 2 <= 36).astype(np.uint8) for x, y in centres]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> CocoTable:
    folder = tmp_path_factory.mktemp("large")
    pixels, masks = scene()
    Image.fromarray(pixels).save(folder / "1.png")
    Image.fromarray(pixels[:90, :90]).save(folder / "2.png")
    data: dict[str, Any] = {
        "images": [
            {"id": 11, "file_name": "1.png", "height": HEIGHT, "width": WIDTH},
            {"id": 12, "file_name": "2.png", "height": 90, "width": 90},
        ],
        "annotations": [],
        "categories": [{"id": 1, "name": "disc"}],
    }
    for n, mask in enumerate(masks):
        ys, xs = np.nonzero(mask)
        x, y = int(xs.min()), int(ys.min())
        box = [x, y, int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        outline: Any = encode_rle(mask)
        if n % 2:
            middle = np.array([x + box[2] / 2, y + box[3] / 2])
            points = middle + 6.5 * np.stack([np.cos(angles), np.sin(angles)], 1)
            outline = [points.ravel().round(2).tolist()]
        entry = {"id": n + 1, "image_id": 11, "category_id": 1, "bbox": box, "area": int(mask.sum()), "iscrowd": 0}
        data["annotations"].append({**entry, "segmentation": outline})
    path = folder / "a.json"
    path.write_text(json.dumps(data))
    return load_coco(path, folder)


def tiled(table: CocoTable, *, train: bool = True, augment: str = "none", min_size: int = SIDE) -> CocoDataset:
    tiles = Tiles.of(table.heights, table.widths, SIDE)
    policy = policy_of(augment)
    return CocoDataset(table, train=train, min_size=min_size, max_size=2 * min_size, policy=policy, tiles=tiles)


def test_tiles_show_the_pixels_and_masks_of_their_place(table: CocoTable) -> None:
    data, (pixels, masks) = tiled(table), scene()
    assert data.tiles is not None and len(data) == len(data.image_ids) == len(data.aspect_ratios) > 12
    assert data.image_ids.tolist()[-1] == 12 and set(data.image_ids.tolist()[:-1]) == {11}
    whole_somewhere = set()
    for index in range(len(data) - 1):
        rectangle = data.tiles.rectangle(index)
        assert rectangle is not None
        x0, y0, x1, y1 = rectangle
        image, target = data.sample(0, index)
        assert np.array_equal(image.permute(1, 2, 0).numpy(), pixels[y0:y1, x0:x1])
        for box, mask, number in zip(target["boxes"], target["masks"], target["annotation_ids"].tolist(), strict=True):
            there = masks[number - 1][y0:y1, x0:x1]
            assert (mask.numpy() != there).sum() <= (0 if number % 2 else 0.25 * there.sum() + 4)
            ys, xs = np.nonzero(mask.numpy())
            tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            assert np.abs(tight - box.numpy()).max() <= 1.5
            assert there.sum() >= 0.15 * masks[number - 1].sum(), "what is hardly seen is no target"
            if there.sum() == masks[number - 1].sum():
                whole_somewhere.add(number)
    assert whole_somewhere == set(range(1, len(masks) + 1)), "each object is whole in some tile"


@pytest.mark.parametrize("augment", ["light", "heavy"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_tile_is_a_pure_function_of_seed_epoch_and_tile(table: CocoTable, augment: str, packed: bool) -> None:
    one, two = tiled(table, augment=augment, min_size=48), tiled(table, augment=augment, min_size=48)
    one.outlines = two.outlines = packed
    drawn = set()
    for index in range(0, len(one), 2):
        image, target = one.sample(3, index)
        again, same = two.sample(3, index)
        assert torch.equal(image, again) and torch.equal(target["boxes"], same["boxes"])
        masks = target["outlines"].masks() if packed else target["masks"]
        assert len(masks) == len(target["boxes"]) == len(target["area"]) == len(target["iscrowd"])
        drawn.add((tuple(image.shape), float(image.float().mean())))
    assert len(drawn) > len(one) // 2 - 3, "the tiles of an image have draws of their own"


def test_an_image_that_is_not_cut_is_what_it_was(table: CocoTable) -> None:
    plain = CocoDataset(table, train=True, min_size=64, max_size=128, policy=policy_of("heavy"))
    data = tiled(table, augment="heavy", min_size=64)
    plain.least_scale = data.least_scale
    data.policy = plain.policy = policy_of("heavy", copy_paste=0.0)
    image, target = data.sample(5, len(data) - 1)
    same, theirs = plain.sample(5, 1)
    assert torch.equal(image, same) and torch.equal(target["boxes"], theirs["boxes"])


def test_what_a_tile_cuts_off_too_far_is_ignored_in_evaluation(table: CocoTable) -> None:
    from maskrcnn_coco.evaluation.ground_truth import TableSet, TileSet, as_eval_set

    data, train = tiled(table, train=False), tiled(table)
    source = as_eval_set(data)
    assert isinstance(source, TileSet) and isinstance(as_eval_set(train), TableSet)
    ignored = 0
    for row in source.order(range(0, len(source), 3)):
        example, target = source.load(row), train.sample(0, row)[1]
        kept = [a["id"] for a in example.annotations if not a["iscrowd"]]
        assert kept == target["annotation_ids"].tolist()
        assert (example.height, example.width) == tuple(example.image.shape[1:])
        ignored += len(example.annotations) - len(kept)
    assert ignored > 0


def test_a_quarantined_image_leaves_with_all_its_tiles(table: CocoTable) -> None:
    data = tiled(table)
    plan = Plan(0, data.image_ids, 2, aspect_ratios=data.aspect_ratios)
    assert {k.index for s in range(plan.steps_per_epoch) for m in plan.step(s)[1] for k in m} == set(range(len(data)))
    plan.quarantine([11])
    assert plan.quarantined == [11]
    assert {k.image_id for s in range(plan.steps_per_epoch) for m in plan.step(s)[1] for k in m} == {12}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40))
def test_a_bitmap_in_a_tile_is_the_mask_cropped(seed: int, h: int, w: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(h, 90)), int(rng.integers(w, 90)))
    mask = np.zeros(size, np.uint8)
    top, left = int(rng.integers(size[0] - h + 1)), int(rng.integers(size[1] - w + 1))
    mask[top : top + h, left : left + w] = rng.random((h, w)) < 0.6
    runs = runs_of(Window(top, left, mask[top : top + h, left : left + w]), size)
    assert np.array_equal(draw_masks([runs], size, Recipe(*size))[0][0].numpy(), mask) or not mask.any()
    x0, y0 = int(rng.integers(size[1])), int(rng.integers(size[0]))
    tile = (x0, y0, int(rng.integers(x0, size[1])) + 1, int(rng.integers(y0, size[0])) + 1)
    there = mask[tile[1] : tile[3], tile[0] : tile[2]]
    seen = cut([runs], np.array([[0.0, 0, size[1], size[0]]]), size, tile)
    assert len(seen.outlines) == int(there.any())
    if there.any():
        (outline,) = seen.outlines
        assert isinstance(outline, Runs)
        assert np.array_equal(draw_masks([outline], there.shape, Recipe(*there.shape))[0][0].numpy(), there)
        assert seen.share[0] == pytest.approx(there.sum() / mask.sum())


def test_tiles_of_odd_sizes() -> None:
    tiles = Tiles.of(np.array([0, 1, 144, 145, 5000]), np.array([0, 9000, 144, 10, 5000]), 96)
    counts = np.bincount(tiles.rows, minlength=5)
    assert counts[0] == counts[2] == 1 and counts[1] > 90 and counts[3] == 2 and counts[4] > 2700
    assert tiles.cut.tolist() == [1, 3, 4] and tiles.numbers[:3].tolist() == [0, 0, 1]
    for index in range(len(tiles)):
        found = tiles.rectangle(index)
        assert found is None or (found[2] - found[0] <= 96 and found[3] - found[1] <= 96)
