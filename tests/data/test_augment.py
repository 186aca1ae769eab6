"""What an augmentation draws, and that pixels, boxes and masks stay together whatever it draws."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from coco_sets import ORACLE_WARNING
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as oracle
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.augment import (
    HEAVY,
    LIGHT,
    MEDIUM,
    NONE,
    PRESETS,
    UNCHANGED,
    Change,
    CopyPaste,
    Policy,
    Rotate,
    Scale,
    Spread,
    draw_change,
    generator,
)
from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.augment_objects import turn_objects, turned_size
from maskrcnn_coco.data.augment_pixels import change_pixels, turn
from maskrcnn_coco.data.augmented import changed, pasted, smallest_scale
from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.outlines import Outlines, Window
from maskrcnn_coco.data.transforms import draw_recipe
from maskrcnn_coco.errors import ConfigError

SIZE = (70, 90)


def star(rng: np.random.Generator, size: tuple[int, int], points: int = 14) -> np.ndarray:
    angles = np.linspace(0, 2 * np.pi, points, endpoint=False)
    middle, radius = rng.uniform(0.25, 0.75, 2) * (size[1], size[0]), rng.uniform(0.08, 0.22) * min(size)
    return middle + (radius * rng.uniform(0.6, 1.0, points))[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def bitmap(rng: np.random.Generator, size: tuple[int, int]) -> Window:
    h, w = (int(v) for v in rng.integers(4, 25, 2))
    mask = (rng.random((h, w)) < 0.7).astype(np.uint8)
    mask[0, 0] = mask[-1, -1] = 1
    return Window(int(rng.integers(size[0] - h)), int(rng.integers(size[1] - w)), mask)


def boxes_of(masks: np.ndarray) -> np.ndarray:
    found = []
    for m in masks:
        rows, cols = np.flatnonzero(m.any(1)), np.flatnonzero(m.any(0))
        found.append((cols[0], rows[0], cols[-1] + 1, rows[-1] + 1) if len(rows) else (0, 0, 0, 0))
    return np.array(found, np.float32).reshape(-1, 4)


def bitmaps(seed: int, count: int = 5) -> tuple[list, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    objects = [bitmap(rng, SIZE) for _ in range(count)]
    masks = Outlines.of(objects, SIZE).masks().numpy()
    return objects, masks, boxes_of(masks)


@pytest.mark.parametrize("vertical", [False, True])
@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
@pytest.mark.parametrize("crop", [None, (3, 5, 40, 44)])
def test_bitmaps_turn_as_their_pixels_turn(vertical: bool, quarters: int, crop: tuple | None):
    change = Change(vertical=vertical, quarters=quarters, crop=crop)
    objects, masks, boxes = bitmaps(1)
    expected = turn(torch.from_numpy(masks), change).numpy()
    moved, found, kept = turn_objects(objects, boxes, SIZE, change)
    got = Outlines.of(moved, turned_size(SIZE, change)).masks().numpy()
    share = expected.sum((1, 2)) / masks.sum((1, 2))
    assert kept.tolist() == (np.ones(5, bool) if crop is None else share >= 0.2).tolist()
    assert np.array_equal(got, expected[kept])
    np.testing.assert_array_equal(found, boxes_of(expected[kept]))


@pytest.mark.parametrize("degrees", [-37.0, 5.0, 90.0, 160.0])
def test_bitmaps_and_polygons_rotate_as_torchvision_rotates_pixels(degrees: float):
    objects, masks, _boxes = bitmaps(2)
    rng = np.random.default_rng(3)
    shapes = [[star(rng, SIZE)] for _ in range(5)]
    drawn = Outlines.of(shapes, SIZE).masks().numpy()
    for things, before in ((objects, masks), (shapes, drawn)):
        expected = F.rotate(torch.from_numpy(before), degrees).numpy()
        moved, found, kept = turn_objects(things, boxes_of(before), SIZE, Change(degrees=degrees))
        got = Outlines.of(moved, SIZE).masks().numpy()
        wanted = expected[kept]
        iou = (got & wanted).sum((1, 2)) / np.maximum((got | wanted).sum((1, 2)), 1)
        assert len(got) and iou.min() > (0.97 if things is objects else 0.8)
        np.testing.assert_array_equal(found, boxes_of(got))


def test_boxes_turn_as_torchvision_v2_turns_them():
    _, _, boxes = bitmaps(4)
    objects = [[np.array([(b[0], b[1]), (b[2], b[1]), (b[2], b[3]), (b[0], b[3])], np.float64)] for b in boxes]
    for quarters in range(4):
        _, found, _ = turn_objects(objects, boxes, SIZE, Change(vertical=True, quarters=quarters))
        theirs = tv_tensors.BoundingBoxes(torch.from_numpy(boxes), format="XYXY", canvas_size=SIZE)  # type: ignore[call-overload]
        theirs = F.vertical_flip(theirs)
        theirs = F.rotate(theirs, 90.0 * quarters, expand=True)
        np.testing.assert_allclose(found, theirs.as_subclass(torch.Tensor).numpy(), atol=1e-3)


@pytest.mark.filterwarnings(ORACLE_WARNING)
def test_a_polygon_that_is_cropped_is_cocos_mask_cropped():
    rng = np.random.default_rng(5)
    shapes = [[star(rng, SIZE)] for _ in range(40)]
    rles = [oracle.merge(oracle.frPyObjects([p.ravel().tolist() for p in s], *SIZE)) for s in shapes]
    dense = np.stack([oracle.decode(r) for r in rles])
    crop = (25, 30, 30, 34)
    moved, found, kept = turn_objects(shapes, boxes_of(dense), SIZE, Change(crop=crop))
    got = Outlines.of(moved, (30, 34)).masks().numpy()
    expected = dense[:, 25:55, 30:64]
    assert 5 < kept.sum() < 35
    # Where a polygon leaves the picture, COCO's own drawing differs by single pixels along the border.
    assert max((g != e).sum() / e.sum() for g, e in zip(got, expected[kept], strict=True)) < 0.06
    np.testing.assert_allclose(found, boxes_of(got), atol=1e-4)
    np.testing.assert_allclose(found, boxes_of(expected[kept]), atol=1.01)
    share = expected.sum((1, 2)) / dense.sum((1, 2))
    assert kept[share > 0.25].all() and not kept[share < 0.15].any()


def test_a_box_that_the_crop_does_not_cut_keeps_its_own_convention():
    """Boxes of a file may be wider than the mask that can be seen: amodal ones."""
    shapes, boxes = [[np.array([(30.0, 20), (40, 20), (40, 30), (30, 30)])]], np.array([[28.0, 18, 44, 36]], np.float32)
    _, found, _ = turn_objects(shapes, boxes, SIZE, Change(crop=(10, 20, 45, 50)))
    assert found.tolist() == [[8, 8, 24, 26]]


def test_a_bad_number_is_not_hidden():
    shapes, boxes = [[np.array([(30.0, 20), (40, 20), (40, 30), (30, 30)])]], np.full((1, 4), np.nan, np.float32)
    for change in (Change(crop=(10, 20, 45, 50)), Change(degrees=10.0), Change(quarters=1)):
        _, found, kept = turn_objects(shapes, boxes, SIZE, change)
        assert kept.all() and np.isnan(found).all()


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(["medium", "heavy", "all"]))
def test_whatever_is_drawn_boxes_bound_their_masks(seed: int, name: str):
    everything = msgspec.structs.replace(HEAVY, rot90=Rotate(p=0.5), rotate=Rotate(p=0.5, degrees=45.0), flip="both")
    policy = PRESETS.get(name, everything)
    rng = np.random.default_rng(seed)
    objects = [bitmap(rng, SIZE) if n % 2 else [star(rng, SIZE)] for n in range(6)]
    masks = Outlines.of(objects, SIZE).masks().numpy()
    target = {
        "boxes": torch.from_numpy(boxes_of(masks)),
        "labels": torch.arange(6),
        "outlines": Outlines.of(objects, SIZE),
        "image_id": 7,
    }
    image = torch.from_numpy(rng.integers(0, 256, (3, *SIZE), dtype=np.uint8))
    change = draw_change(policy, generator(seed, 1, 2), SIZE, (50, 64))
    again = draw_change(policy, generator(seed, 1, 2), SIZE, (50, 64))
    assert change == again
    picture, made = changed(image, target, change)
    assert picture.dtype == torch.uint8 and picture.is_contiguous()
    assert picture.shape[-2] <= 64 and picture.shape[-1] <= 64 and picture.shape[-2] * picture.shape[-1] <= 50 * 64
    assert torch.equal(picture, changed(image, target, change)[0])
    drawn = made["outlines"].masks().numpy()
    assert len(drawn) == len(made["boxes"]) == len(made["labels"])
    assert made.get("vanished", 0) == 6 - len(drawn)
    assert drawn.shape[1:] == picture.shape[1:]
    for mask, box in zip(drawn, made["boxes"].numpy(), strict=True):
        assert mask.sum() >= 4
        tight = boxes_of(mask[None])[0]
        assert np.abs(tight - box).max() <= 1.01


def test_nothing_drawn_changes_nothing():
    rng = np.random.default_rng(0)
    image = torch.from_numpy(rng.integers(0, 256, (3, *SIZE), dtype=np.uint8))
    assert change_pixels(image, UNCHANGED) is image
    assert draw_change(NONE, generator(1), SIZE, SIZE) == UNCHANGED


def test_colours_change_as_torchvision_changes_them():
    rng = np.random.default_rng(0)
    # Not at the ends of the range, where each clips in its own order.
    image = torch.from_numpy(rng.integers(90, 160, (3, *SIZE), dtype=np.uint8))
    for factor in (0.5, 1.3):
        got = change_pixels(image, Change(saturation=factor)).int()
        assert (got - F.adjust_saturation(image, factor).int()).abs().max() <= 2
    grey = change_pixels(image, Change(grey=True))
    assert torch.equal(grey[0], grey[1]) and (grey.int() - F.rgb_to_grayscale(image, 3).int()).abs().max() <= 2
    turned = change_pixels(image, Change(hue=0.5)).float()
    luma = torch.tensor([0.299, 0.587, 0.114])
    assert (torch.einsum("c,chw->hw", luma, turned) - torch.einsum("c,chw->hw", luma, image.float())).abs().max() < 1.5
    noisy = change_pixels(image, Change(noise=5.0, seed=3)).float() - image
    assert 4 < noisy.std() < 6 and torch.equal(change_pixels(image, Change(noise=5.0, seed=3)).float() - image, noisy)
    assert torch.equal(change_pixels(image, Change(blur=1.0)), F.gaussian_blur(image, [7, 7], [1.0, 1.0]))
    compressed = change_pixels(image, Change(jpeg=60))
    assert compressed.shape == image.shape and 1 < (compressed.float() - image.float()).abs().mean() < 20
    holed = change_pixels(image, Change(holes=((2, 3, 10, 12),)))
    assert (holed[:, 2:12, 3:15].float().flatten(1).std(1) < 1e-6).all() and torch.equal(holed[:, 20:], image[:, 20:])


def sample(seed: int, image_id: int) -> tuple[torch.Tensor, dict]:
    objects, _masks, boxes = bitmaps(seed, 6)
    image = torch.full((3, *SIZE), image_id, dtype=torch.uint8)
    target = {"boxes": torch.from_numpy(boxes), "labels": torch.full((6,), image_id), "image_id": image_id}
    target |= {"annotation_ids": torch.arange(6) + 100 * image_id, "outlines": Outlines.of(objects, SIZE)}
    return image, target


def test_pasted_objects_bring_their_pixels_and_cover_what_is_below():
    for seed in range(20):
        image, target = sample(2 * seed, 1)
        source = sample(2 * seed + 1, 2)
        rng = np.random.default_rng(seed)
        picture, made = pasted(image, target, source, CopyPaste(p=1.0, objects=4), rng)
        masks = made["outlines"].masks().numpy()
        origin = made["source_image_ids"].numpy()
        assert image.unique().tolist() == [1], "the sample that is shared is not written to"
        assert set(made["labels"].tolist()) <= {1, 2} and (origin == made["labels"].numpy()).all()
        assert len(masks) == len(made["boxes"]) == len(made["annotation_ids"]) == len(origin)
        own, other = masks[origin == 1], masks[origin == 2]
        covered = other.any(0) if len(other) else np.zeros(SIZE, bool)
        assert np.array_equal(picture[0].numpy() == 2, covered)
        assert not (own & covered).any(), "what is covered belongs to nobody below"
        assert (other.sum(0) <= 1).all(), "later ones are on top"
        np.testing.assert_array_equal(made["boxes"].numpy()[origin == 2], boxes_of(other))
        assert masks.sum((1, 2)).min() >= 4


def test_an_object_that_its_own_image_cuts_off_is_not_pasted():
    image, target = sample(0, 1)
    other, there = sample(1, 2)
    there = {k: v[:1] if isinstance(v, torch.Tensor) else v for k, v in there.items()}
    there["outlines"] = Outlines.of([Window(0, 10, np.ones((5, 5), np.uint8))], SIZE)
    assert pasted(image, target, (other, there), CopyPaste(p=1.0), np.random.default_rng(0))[1] is target


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory):
    from maskrcnn_coco.data.builtin_shapes import write_shapes

    train, _ = write_shapes(tmp_path_factory.mktemp("shapes"), train=12, val=2, size=96)
    return load_coco(train, train.parent)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["none", "light", "medium", "heavy"])
def test_samples_are_pure_functions_of_seed_epoch_and_image(table, name: str, packed: bool):
    policy = policy_of(name, copy_paste=0.8 if name == "heavy" else None)
    first, second = (CocoDataset(table, train=True, seed=3, min_size=96, max_size=128, policy=policy) for _ in range(2))
    first.outlines = second.outlines = packed
    for index in range(len(table)):
        image, target = first.sample(4, index)
        again, same = second.sample(4, index)
        assert torch.equal(image, again) and torch.equal(target["boxes"], same["boxes"])
        assert image.dtype == torch.uint8 and image.shape[-1] <= 128 and image.shape[-2] <= 128
        masks = target["outlines"].masks() if packed else target["masks"]
        assert ("masks" in target) != packed
        theirs = same["outlines"].masks() if packed else same["masks"]
        assert torch.equal(masks, theirs) and masks.shape[1:] == image.shape[1:]
        assert len(masks) == len(target["labels"]) == len(target["annotation_ids"])
    if name != "none":
        assert any(not torch.equal(first.sample(4, i)[1]["boxes"], first.sample(5, i)[1]["boxes"]) for i in range(12))


def test_light_is_what_it_was(table):
    """Runs of today go on in the same bits: what `light` draws for an image is fixed."""
    data = CocoDataset(table, train=True, seed=3, min_size=96, max_size=128)
    assert data.policy is LIGHT
    recipes = [draw_recipe(3, 0, i, (96, 96), 96, 128) for i in range(3)]
    assert recipes[0] == (82, 82, False, 1.1038273770142768, 1.162875019461885)
    assert recipes[1] == (77, 77, False, 1.0919890285912213, 0.9327346757862819)
    assert recipes[2] == (96, 96, False, 0.846958954514146, 0.9403299015486405)


def test_small_objects_are_not_shrunk_out_of_sight(table):
    least = smallest_scale(table, 96, 128)
    sides = np.sqrt(table.boxes[:, 2] * table.boxes[:, 3])
    assert least == pytest.approx(min(1.0, 8.0 / np.quantile(sides, 0.1)))
    policy = msgspec.structs.replace(MEDIUM, scale=Scale(low=0.05, high=0.06))
    data = CocoDataset(table, train=True, min_size=96, max_size=128, policy=policy)
    assert data.sample(0, 0)[0].shape[-1] <= 96


@pytest.mark.parametrize(
    ("text", "where", "sentence"),
    [
        ("blur: {p: 1}\nflipp: both", ", line 2", "unknown operation 'flipp'"),
        ("Blur: {p: 1}", ", line 1", "did you mean blur?"),
        ("[1, 2]", "", "lists no operations"),
        ("", "", "nothing"),
        ("{}", "", "an empty mapping"),
        ("flip: none\nblur: {p: 2}", ", line 2: blur.p", "<= 1.0"),
        ("blur: {p: .nan}", ", line 1: blur.p", "got: nan"),
        ("blur: 0.5", ", line 1: blur", "blur: {p: 0.5}"),
        ("flip: no", ", line 1: flip", "flip: none"),
        ("blur:\n  p: 1\n  sigma: [3, 1]", ", line 3: blur.sigma", "goes from 3 to 1"),
        ("blur: {sigma: [1, .inf]}", ", line 1: blur.sigma", "within 0 to 50"),
        ("noise: {p: 1, sigma: [1, 1000]}", ", line 1: noise.sigma", "within 0 to 128"),
        ("jpeg: {p: 0.1, quality: [0, 50]}", ", line 1: jpeg.quality", "1 to 100"),
        ("scale: {low: 0.5, high: 9}", ", line 1: scale", "0.05 to 4"),
        ("scale: {steps: 1000000000}", ", line 1: scale.steps", "1000"),
        ("scale: {steps: -1}", ", line 1: scale.steps", ">= 0"),
        ("blur: {p: 0.1, sgima: [1, 2]}", ", line 1", "did you mean sigma?"),
        ("rotate: {p: 0.5}", ", line 1", "do nothing"),
        ("hue: {amount: 0}", ", line 1", "do nothing"),
        ("copy_paste: {objects: 5}", ", line 1", "do nothing"),
        ("blur: {p: 1}\nblur: {p: 0}", "", "stands twice, in lines 1 and 2"),
        ("blur: {p: 1, p: 0}", "", "stands twice, in line 1"),
        ("a: [", "", "is not YAML"),
        ("a: " + "[" * 3000, "", "nested too deep"),
        ("blur: &a {p: 1}\nnoise: *a", "", "aliases"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_line_and_key(tmp_path: Path, text: str, where: str, sentence: str):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        policy_of(str(path))
    assert f"mine.yaml{where}" in error.value.what and sentence in error.value.render()


def test_a_number_with_an_exponent_is_a_number(tmp_path: Path):
    """YAML 1.1 reads 1e-1, without a dot, as text."""
    path = tmp_path / "mine.yaml"
    path.write_text("blur: {p: 1e-1, sigma: [5e-1, 1e0]}")
    assert policy_of(str(path)).blur == Spread(p=0.1, sigma=(0.5, 1.0))


def test_presets_and_files(tmp_path: Path):
    path = tmp_path / "mine.yaml"
    path.write_text(json.dumps(msgspec.to_builtins(HEAVY)))
    assert policy_of(str(path)) == HEAVY and policy_of("light") == LIGHT
    assert policy_of("light", "none").flip == "none" and policy_of("medium", None, 0.5).copy_paste.p == 0.5
    assert LIGHT.plain and NONE.plain and not MEDIUM.plain and not policy_of("none", "both").plain
    with pytest.raises(ConfigError, match="--augment is not known"):
        policy_of("hevy")
    with pytest.raises(ConfigError, match="cannot be read"):
        policy_of(str(tmp_path / "gone.yaml"))
    assert isinstance(policy_of(Config().augment), Policy)
