"""Augmentation on what real sets have at their edges: specks, crowds, thousands of objects, images without any.

Whatever recipe is drawn: boxes bound their masks, every object is there once or counted as gone, nothing is changed in
the sample that another image shares.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coco_sets import rle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from maskrcnn_coco.data.augment import Policy, Scale
from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.dataset import CocoDataset

MIN, MAX = 48, 64
share = st.floats(0, 1)


def spans(low: float, high: float) -> st.SearchStrategy[list[float]]:
    return st.tuples(st.floats(low, high), st.floats(low, high)).map(lambda t: sorted(t))


recipes = st.fixed_dictionaries(
    {},
    optional={
        "flip": st.sampled_from(["none", "horizontal", "vertical", "both"]),
        "scale": spans(0.05, 2.0).map(lambda s: {"low": s[0], "high": s[1]}),
        "brightness": st.fixed_dictionaries({"p": share, "amount": st.floats(0.01, 1)}),
        "contrast": st.fixed_dictionaries({"p": share, "amount": st.floats(0.01, 1)}),
        "saturation": st.fixed_dictionaries({"p": share, "amount": st.floats(0.01, 1)}),
        "hue": st.fixed_dictionaries({"p": share, "amount": st.floats(0.01, 1)}),
        "grey": st.fixed_dictionaries({"p": share}),
        "rot90": st.fixed_dictionaries({"p": share}),
        "rotate": st.fixed_dictionaries({"p": share, "degrees": st.floats(0.1, 180)}),
        "blur": st.fixed_dictionaries({"p": share, "sigma": spans(0.05, 50)}),
        "noise": st.fixed_dictionaries({"p": share, "sigma": spans(0.1, 128)}),
        "jpeg": st.fixed_dictionaries({"p": share, "quality": spans(1, 100).map(lambda s: [int(v) for v in s])}),
        "cutout": st.fixed_dictionaries({"p": share, "holes": st.integers(1, 64), "size": share}),
        "copy_paste": st.fixed_dictionaries({"p": share, "objects": st.integers(1, 500)}),
    },
).filter(bool)


def add(
    data: dict[str, Any], folder: Path, size: tuple[int, int], objects: list[tuple[np.ndarray, bool, bool]]
) -> None:
    """An image of ``size`` with objects: mask, whether it is crowd, whether it is told as a polygon (a rectangle)."""
    height, width = size
    number = len(data["images"]) + 1
    rng = np.random.default_rng(number)
    Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    data["images"].append({"id": number, "height": height, "width": width, "file_name": f"{number}.png"})
    for mask, crowd, polygon in objects:
        ys, xs = np.nonzero(mask)
        x, y, w, h = (int(v) for v in (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1))
        outline: Any = rle(mask)
        if polygon:
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
        entry = {
            "id": len(data["annotations"]) + 1,
            "image_id": number,
            "category_id": 1 + len(data["annotations"]) % 2,
        }
        entry |= {"bbox": [x, y, w, h], "area": int(mask.sum()), "iscrowd": int(crowd), "segmentation": outline}
        data["annotations"].append(entry)


def rectangle(size: tuple[int, int], x: int, y: int, w: int, h: int) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    mask[y : y + h, x : x + w] = 1
    return mask


def write(folder: Path) -> CocoTable:
    """A set of odd images; number 6 has 150 objects."""
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in (1, 2)]}
    size = (50, 60)
    whole = np.ones(size, np.uint8)
    add(
        data,
        folder,
        size,
        [(rectangle(size, 5, 6, 20, 9), False, True), (rectangle(size, 30, 20, 14, 22), False, False)],
    )
    add(data, folder, size, [])
    add(data, folder, size, [(whole, True, False)])
    add(
        data,
        folder,
        size,
        [(rectangle(size, 11, 40, 1, 1), False, True), (rectangle(size, 59, 49, 1, 1), False, False)],
    )
    add(data, folder, (1, 1), [(np.ones((1, 1), np.uint8), False, False)])
    dots = [rectangle((80, 80), 3 * (n % 26), 3 * (n // 26), 2, 2) for n in range(150)]
    add(data, folder, (80, 80), [(m, False, n % 2 == 0) for n, m in enumerate(dots)])
    add(data, folder, (3, 90), [(rectangle((3, 90), 1, 0, 60, 3), False, True)])
    add(
        data, folder, size, [(whole, False, False), (rectangle(size, 8, 8, 30, 30), False, False), (whole, True, False)]
    )
    path = folder / "annotations.json"
    path.write_text(json.dumps(data))
    return load_coco(path, folder)


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> CocoTable:
    return write(tmp_path_factory.mktemp("odd"))


def sources(table: CocoTable, policy: Policy, seed: int) -> CocoDataset:
    data = CocoDataset(table, train=True, seed=seed, min_size=MIN, max_size=MAX, policy=policy)
    data.outlines = True
    return data


def check(table: CocoTable, data: CocoDataset, plain: CocoDataset, index: int, epoch: int) -> None:
    image, target = data.sample(epoch, index)
    again, same = data.sample(epoch, index)
    assert torch.equal(image, again) and torch.equal(target["boxes"], same["boxes"])
    assert image.dtype == torch.uint8 and image.shape[0] == 3 and min(image.shape) >= 1
    # A quarter turn may exchange the sides: neither is longer than what memory was promised for.
    assert max(image.shape[-2:]) <= MAX and min(image.shape[-2:]) <= max(MIN, *plain.sample(epoch, index)[0].shape[-2:])
    masks, boxes = target["outlines"].masks().numpy(), target["boxes"].numpy()
    assert masks.shape[1:] == tuple(image.shape[1:]) and boxes.dtype == np.float32
    count = len(masks)
    assert count == len(boxes) == len(target["labels"]) == len(target["annotation_ids"]) == len(target["iscrowd"])
    assert not target["iscrowd"].any(), "crowd is no target, pasted or not"
    assert np.isfinite(boxes).all() and (count == 0 or (boxes[:, 2:] - boxes[:, :2]).min() >= 1)
    for mask, box in zip(masks, boxes, strict=True):
        ys, xs = np.nonzero(mask)
        assert len(ys), "no target without a pixel"
        tight = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        assert np.abs(tight - box).max() <= 2.01, (tight, box)
    own = target.get("source_image_ids", torch.full((count,), target["image_id"]))
    pairs = list(zip(own.tolist(), target["annotation_ids"].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs), "no object twice"
    labels = dict(zip(table.ann_ids.tolist(), table.labels.tolist(), strict=True))
    assert [labels[a] for _, a in pairs] == target["labels"].tolist()
    mine = sum(i == target["image_id"] for i, _ in pairs)
    whole = len(plain.sample(epoch, index)[1]["labels"])
    assert mine + target.get("vanished", 0) >= whole, "none is lost unsaid"


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes, seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
def test_any_recipe_on_any_image(odd: CocoTable, tmp_path_factory: Any, recipe: dict, seed: int, epoch: int) -> None:
    path = tmp_path_factory.getbasetemp() / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    data, plain = sources(odd, policy_of(str(path)), seed), sources(odd, policy_of("none"), seed)
    for index in range(len(odd)):
        check(odd, data, plain, index, epoch)


def test_thousands_of_objects_and_a_source_of_nothing_but_crowd(tmp_path: Path) -> None:
    data: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in (1, 2)]}
    size = (100, 100)
    dots = [rectangle(size, 2 * (n % 50), 2 * (n // 50), 2, 2) for n in range(2000)]
    add(data, tmp_path, size, [(m, False, n % 2 == 0) for n, m in enumerate(dots)])
    add(data, tmp_path, size, [(np.ones(size, np.uint8), True, False)])
    (tmp_path / "annotations.json").write_text(json.dumps(data))
    table = load_coco(tmp_path / "annotations.json", tmp_path)
    policy, plain = policy_of("none", copy_paste=1.0), sources(table, policy_of("none"), 0)
    data_set = CocoDataset(table, train=True, min_size=100, max_size=100, policy=policy)
    assert len(data_set.sample(0, 0)[1]["labels"]) == 2000, "crowd is never pasted"
    target = data_set.sample(0, 1)[1]
    assert 0 < len(target["labels"]) <= 20 and set(target["source_image_ids"].tolist()) == {1}
    heavy = sources(table, policy_of("heavy", copy_paste=1.0), 0)
    check(table, heavy, plain, 0, 3)
    check(table, heavy, plain, 1, 3)


def test_what_is_covered_or_shrunk_is_counted(odd: CocoTable) -> None:
    shrunk = sources(odd, Policy(scale=Scale(low=0.05, high=0.05)), 0)
    shrunk.least_scale = 0.0
    assert (len(shrunk.sample(0, 5)[1]["labels"]), shrunk.sample(0, 5)[1]["vanished"]) == (0, 150)
    pasting = sources(odd, policy_of("none", copy_paste=1.0), 0)
    for epoch in range(30):
        target = pasting.sample(epoch, 5)[1]
        own = int((target["source_image_ids"] == target["image_id"]).sum()) if "source_image_ids" in target else 150
        assert own + target.get("vanished", 0) == 150
    assert any(pasting.sample(e, 5)[1].get("vanished") for e in range(30))
