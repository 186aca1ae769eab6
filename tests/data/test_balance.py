"""Repeat factors: what LVIS's formula gives, by hand, on small sets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from maskrcnn_coco.data.augment_file import policy_of
from maskrcnn_coco.data.balance import MOST, repeat_factors
from maskrcnn_coco.data.batch import Batch, make_batch
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.loader import build_loader
from maskrcnn_coco.data.plan import Plan, SampleKey
from maskrcnn_coco.data.tile_grid import Tiles
from maskrcnn_coco.data.user_data import UserData
from tests.data.test_dataset import Own, same_batch


def table(folder: Path, classes: list[list[int]], crowd: tuple[int, ...] = ()) -> CocoTable:
    """An image for each entry, with an object of each class in it."""
    images = [{"id": n, "file_name": f"{n}.png", "height": 50, "width": 50} for n in range(len(classes))]
    objects = [(n, c) for n, held in enumerate(classes) for c in held]
    annotations = [
        {"id": i + 1, "image_id": n, "category_id": c, "bbox": [1, 1, 9, 9], "area": 81, "iscrowd": int(i in crowd)}
        | {"segmentation": [[1, 1, 10, 1, 10, 10, 1, 10]]}
        for i, (n, c) in enumerate(objects)
    ]
    categories = [{"id": c, "name": f"c{c}"} for c in range(1, 5)]
    path = folder / "set.json"
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return load_coco(path, folder)


def test_an_image_comes_as_often_as_its_rarest_class_asks(tmp_path: Path):
    # classes 1, 2, 3 in 8, 4, 1 of 10 images: the middle is 4
    held = [[1]] * 5 + [[1, 2]] * 2 + [[1, 2, 3]] + [[2]] + [[]]
    factors = repeat_factors(table(tmp_path, held))
    np.testing.assert_allclose(factors, [1] * 7 + [2.0] + [1] + [1])
    assert math.isclose(factors[7], math.sqrt(4 / 1))


def test_a_balanced_set_one_class_and_no_object_stay_as_they_are(tmp_path: Path):
    for held in ([[1], [2], [1], [2]], [[1], [1, 1]], [[], []]):
        assert (repeat_factors(table(tmp_path, held)) == 1).all()


def test_crowds_count_for_nothing_and_no_image_comes_without_end(tmp_path: Path):
    held = [[1, 2]] * 500 + [[3]] + [[4]]
    factors = repeat_factors(table(tmp_path, held, crowd=(1000,)))
    assert factors[500] == 1.0 and factors[501] == MOST and factors[0] == 1.0


def balanced(table: CocoTable, augment: str, *, tiles: bool) -> tuple[CocoDataset, Plan]:
    """Samples of ``table``, pasted into one another, and a plan in which some come up to three times an epoch."""
    cut = Tiles.of(table.heights, table.widths, 48) if tiles else None
    sizes = {"min_size": 64, "max_size": 100}
    policy = policy_of(augment, copy_paste=0.8)
    source = CocoDataset(table, train=True, seed=3, policy=policy, tiles=cut, **sizes)
    factors = np.where(source.table.image_ids % 3 == 0, 3.0, 1.0)
    repeats = factors if cut is None else factors[cut.rows]
    return source, Plan(3, source.image_ids, 2, aspect_ratios=source.aspect_ratios, repeats=repeats)


def planned(plan: Plan, epoch: int) -> list[SampleKey]:
    steps = range(epoch * plan.steps_per_epoch, (epoch + 1) * plan.steps_per_epoch)
    return [key for step in steps for micro in plan.step(step)[1] for key in micro]


def alike(a: Batch, b: Batch) -> bool:
    """The same pictures and boxes, whatever their keys."""
    return all(
        x.shape == y.shape and torch.equal(x, y)
        for x, y in zip(
            a.images + [t["boxes"] for t in a.targets], b.images + [t["boxes"] for t in b.targets], strict=True
        )
    )


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("augment", ["light", "heavy"])
def test_an_image_that_comes_again_in_an_epoch_is_drawn_anew(tiny_table: CocoTable, augment: str, tiles: bool):
    source, plan = balanced(tiny_table, augment, tiles=tiles)
    again, _ = balanced(tiny_table, augment, tiles=tiles)
    repeated = [key for key in planned(plan, 1) if key.repeat][:12]
    assert len(repeated) == 12 or not tiles
    assert {key.repeat for key in repeated} >= {1, 2}
    for key in repeated:
        batch, first = make_batch(source, [key]), make_batch(source, [key._replace(repeat=0)])
        assert not alike(batch, first), f"{key} looks as the first time"
        assert same_batch(batch, make_batch(again, batch.keys)), "and can be made again from its key"


def test_the_first_time_is_what_it_was_without_balance(tiny_table: CocoTable):
    source, _ = balanced(tiny_table, "heavy", tiles=False)
    for index in range(5):
        assert torch.equal(source.sample(2, index)[0], source.sample(2, index, 0)[0])
        assert source._number(index, 0) == int(tiny_table.image_ids[index])


def test_workers_and_the_place_to_start_change_nothing_of_repeats(tiny_table: CocoTable):
    source, plan = balanced(tiny_table, "heavy", tiles=False)
    start = plan.steps_per_epoch
    here = list(build_loader(source, plan, 1, start))
    there = list(build_loader(source, plan, 1, start + 3, workers=2))
    assert any(key.repeat for step in there for key in step[0].keys)
    assert all(same_batch(a[0], b[0]) for a, b in zip(here[3:], there, strict=True))
    assert [key for step in here for key in step[0].keys] == planned(plan, 1)


def test_what_a_data_set_of_one_s_own_draws_follows_the_repeat_too():
    class Drawing(Own):
        def __getitem__(self, i: int):
            image, target = super().__getitem__(i)
            return torch.rand_like(image), target

    source = UserData(Drawing(4), seed=1)
    images = [source.sample(0, 2, repeat)[0] for repeat in (0, 1, 2, 1)]
    assert torch.equal(images[0], source.sample(0, 2)[0]) and torch.equal(images[1], images[3])
    assert not torch.equal(images[0], images[1]) and not torch.equal(images[1], images[2])
