"""Mask targets without full-size masks are torchvision's, except at outlines."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from maskrcnn_coco.data.masks import checked_runs, encode_rle
from maskrcnn_coco.data.outlines import Outline, Outlines, Runs, draw_masks, move_outlines
from maskrcnn_coco.data.transforms import Recipe
from maskrcnn_coco.model.fast.mask_targets import outline_targets
from tests.data.test_transforms import blob, ring

SIZE = (300, 400)


def packed(outlines: list[Outline]) -> Outlines:
    return Outlines.of(move_outlines(outlines, SIZE, Recipe(*SIZE))[0], SIZE)


def proposals(masks: torch.Tensor, each: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes around each mask, moved and stretched, clipped to the image as a region proposal network does."""
    height, width = masks.shape[-2:]
    boxes, matched = [], []
    for n, mask in enumerate(masks):
        y, x = np.nonzero(mask.numpy())
        box = np.array([x.min(), y.min(), x.max() + 1, y.max() + 1], np.float64)
        side = np.tile(box[2:] - box[:2], 2)
        boxes += [box + rng.normal(0, 0.15, 4) * side for _ in range(each)]
        matched += [n] * each
    clipped = np.clip(np.array(boxes), 0, [width, height, width, height])
    order = rng.permutation(len(boxes))
    return torch.tensor(clipped[order], dtype=torch.float32), torch.tensor(np.array(matched)[order])


def test_they_differ_from_torchvisions_at_outlines_only():
    rng = np.random.default_rng(1)
    rles = [Runs(checked_runs(encode_rle(blob(rng, *SIZE)), *SIZE), SIZE) for _ in range(3)]
    outlines: list[Outline] = [*([ring(rng, *SIZE)] for _ in range(5)), *rles, [ring(rng, *SIZE), ring(rng, *SIZE)]]
    masks, _ = draw_masks(outlines, SIZE, Recipe(*SIZE))
    boxes, matched = proposals(masks, 12, rng)
    expected = project_masks_on_boxes(masks, boxes, matched, 28)
    got = outline_targets(packed(outlines), boxes, matched)
    coded = matched.ge(5) & matched.lt(8)
    torch.testing.assert_close(got[coded], expected[coded], rtol=1e-4, atol=1e-4)
    assert got.shape == (len(boxes), 28, 28) and set(got[~coded].unique().tolist()) == {0.0, 1.0}
    assert ((got >= 0.5) != (expected >= 0.5)).float().mean() <= 0.012


def test_bad_boxes_never_reach_native_code():
    rng = np.random.default_rng(2)
    outlines: list[Outline] = [[ring(rng, *SIZE)], Runs(checked_runs(encode_rle(blob(rng, *SIZE)), *SIZE), SIZE)]
    bad = [[float("nan"), 0, 9, 9], [0, 0, float("inf"), 9], [-1e30, 0, 5, 5]]
    boxes = torch.tensor([*bad, *bad, [50, 50, 50, 50]])
    got = outline_targets(packed(outlines), boxes, torch.tensor([0, 0, 0, 1, 1, 1, 0]))
    assert got[:6].sum() == 0 and got.isfinite().all()


def test_no_proposals():
    assert outline_targets(packed([]), torch.zeros(0, 4), torch.zeros(0).long()).shape == (0, 28, 28)
