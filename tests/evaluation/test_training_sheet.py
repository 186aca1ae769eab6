"""The sheet of augmented training images: what the network is given, drawn."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from runs import OwnData

from maskrcnn_coco.data.augment import HEAVY
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.evaluation.training_sheet import CELL, SHEET, save_training_sheet, shapes_in


def test_the_sheet_shows_sixteen_samples_with_their_masks(tiny_table, tmp_path):
    source = CocoDataset(tiny_table, train=True, min_size=64, max_size=64, policy=HEAVY)
    source.outlines = True
    plan = Plan(0, source.image_ids, 2)
    path = save_training_sheet(tmp_path / "new", source, plan, tiny_table.class_names)
    assert path == tmp_path / "new" / SHEET
    sheet = np.asarray(Image.open(path))
    assert sheet.shape == (4 * CELL, 4 * CELL, 3)
    assert all(sheet[y : y + CELL, x : x + CELL].std() > 5 for y in range(0, 1280, CELL) for x in range(0, 1280, CELL))
    _, target = source.sample(0, 0)
    shapes = shapes_in(target, tiny_table.class_names)
    assert len(shapes) == len(target["labels"]) and all(s.mask is not None and s.mask.any() for s in shapes)
    assert {s.text for s in shapes} <= set(tiny_table.class_names)


def test_a_data_set_of_one_s_own_and_one_that_cannot_be_read(tmp_path):
    class Odd(OwnData):
        def __getitem__(self, i):
            image, target = super().__getitem__(i)
            if i == 1:
                raise ValueError("gone")
            return image[:1] if i == 2 else torch.cat([image, image[:1]]) if i == 3 else image, target

    source = UserData(Odd(4))
    path = save_training_sheet(tmp_path, source, Plan(0, source.image_ids, 1), ("background", "square"))
    assert path is not None
    with Image.open(path) as sheet:
        assert sheet.size == (4 * CELL, CELL)
    nothing = UserData([None, None])
    assert save_training_sheet(tmp_path, nothing, Plan(0, nothing.image_ids, 1), ("background", "a")) is None


def test_an_image_that_comes_several_times_is_shown_as_it_comes(tiny_table, tmp_path):
    source = CocoDataset(tiny_table, train=True, min_size=64, max_size=64, policy=HEAVY)
    asked: list[tuple[int, int, int]] = []
    plain = source.sample

    def sample(epoch: int, index: int, repeat: int = 0):
        asked.append((epoch, index, repeat))
        return plain(epoch, index, repeat)

    source.sample = sample  # type: ignore[method-assign]
    plan = Plan(0, source.image_ids, 2, repeats=np.full(len(source), 4.0))
    save_training_sheet(tmp_path, source, plan, tiny_table.class_names)
    assert asked == [(k.epoch, k.index, k.repeat) for s in range(8) for k in plan.step(s)[1][0]]
    assert any(repeat for *_, repeat in asked)
