"""What augmentation does is counted, and an incident names the images that a pasted object came from."""

from __future__ import annotations

import torch

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.training.augmentation_counts import objects_in, pasted_evidence


def batch(*targets: dict) -> Batch:
    images = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * len(targets)
    return Batch(images, list(targets), [SampleKey(0, n, 10 + n) for n in range(len(targets))])


def test_objects_are_counted_over_all_micro_batches():
    one = batch({"boxes": torch.zeros(3, 4), "vanished": 2}, {"boxes": torch.zeros(0, 4)})
    other = batch({"boxes": torch.zeros(1, 4), "vanished": 1}, {})
    assert objects_in([one, other]) == (4, 3)
    odd = Batch([torch.zeros(3, 8, 8)], [None], [SampleKey(0, 0, 1)])  # type: ignore[list-item]
    assert objects_in([odd]) == (0, 0) and pasted_evidence([odd], [1]) == []


def test_the_images_that_objects_were_pasted_from_are_named():
    mixed = batch({"source_image_ids": torch.tensor([10, 44, 44, 7])}, {"source_image_ids": torch.tensor([11])})
    (row,) = pasted_evidence([mixed], [10, 11])
    assert row.test == "copy-paste: image 10" and row.outcome == "has objects of image 7, 44"
    assert pasted_evidence([mixed], [11]) == [] and pasted_evidence([mixed], []) == []
