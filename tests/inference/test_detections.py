"""Masks in windows: the same pixels as torchvision's pasting, without torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.models.detection.roi_heads import paste_masks_in_image

from maskrcnn_coco.evaluation.detect import pasted
from maskrcnn_coco.inference.detections import Window, found_of, union, windows_of_full


def patches(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    low = rng.uniform(-20, 80, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(25, 90, (count, 2))], 1).astype(np.float32)
    return rng.uniform(0, 1, (count, 1, 28, 28)).astype(np.float32), boxes


@pytest.mark.parametrize("seed", range(4))
def test_patches_are_pasted_as_torchvision_does(seed: int) -> None:
    masks, boxes = patches(12, seed)
    height, width = 97, 120
    whole = paste_masks_in_image(torch.from_numpy(masks), torch.from_numpy(boxes), (height, width))[:, 0].numpy()
    ours = pasted(torch.from_numpy(masks), torch.from_numpy(boxes), height, width)
    for full, (x, y, mask) in zip(whole, ours, strict=True):
        assert (Window(x, y, mask).full(height, width) == (full > 0.5)).all()


def test_windows_come_back_whole() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 28:] = True
    (window,) = windows_of_full(mask[None])
    assert window.rectangle == (28, 3, 30, 9)
    assert (window.full(20, 30) == mask).all()
    assert (window.moved(-20, 2).full(20, 30) == np.roll(mask, (2, -20), (0, 1))).all()
    assert windows_of_full(np.zeros((1, 5, 5), bool))[0].mask.size == 0


def test_union_holds_both() -> None:
    a, b = Window(2, 3, np.ones((2, 2), bool)), Window(6, 1, np.ones((1, 4), bool))
    both = union([a, b])
    assert (both.full(9, 12) == (a.full(9, 12) | b.full(9, 12))).all()


def test_found_is_sorted_and_finite() -> None:
    boxes = np.array([[0, 0, 1, 1], [0, 0, np.nan, 1], [0, 0, 2, 2]])
    found = found_of(boxes, [0.2, 0.9, 0.8], [1, 1, 2], [Window(0, 0, np.ones((1, 1), bool))] * 3)
    assert found.scores.tolist() == pytest.approx([0.8, 0.2])
    assert found.labels.tolist() == [2, 1]
