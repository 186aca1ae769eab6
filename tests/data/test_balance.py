"""Repeat factors: what LVIS's formula gives, by hand, on small sets."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np

from maskrcnn_coco.data.balance import MOST, repeat_factors
from maskrcnn_coco.data.coco.table import CocoTable, load_coco


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
