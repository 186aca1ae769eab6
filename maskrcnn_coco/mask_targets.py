"""What the mask head is to predict for each proposal, straight from the annotations: no full-size mask is made."""

from __future__ import annotations

import hotcoco.mask as native
import numpy as np
import torch
from torch import Tensor

from maskrcnn_coco.fast_masks import mask_targets as resample
from maskrcnn_coco.transforms import Outline, Recipe, Runs, draw_masks

FARTHEST = 1e6
"""Pixels; boxes beyond are not handed to native code. Such a step is refused elsewhere, here it gets zeros."""


def outline_targets(
    outlines: list[Outline], size: tuple[int, int], boxes: Tensor, matched: Tensor, resolution: int = 28
) -> Tensor:
    """Polygons rasterised inside each proposal, on its own grid, as detectron2 does; RLE is resampled.

    About 2 ms an image with 128 proposals on one core, whatever the image's size and the number of objects.

    Args:
        outlines: N objects, in pixels of the image that the boxes are on. size: (height, width) of that image.
        boxes: float32 (P, 4), xyxy. matched: int64 (P,), into outlines.

    Returns:
        float32 (P, resolution, resolution), 0 or 1, on the CPU. Differs from torchvision's targets at threshold 0.5 in
        about 1 % of the cells, at the outlines.
    """
    targets = torch.zeros((len(boxes), resolution, resolution), dtype=torch.float32)
    boxes = boxes.detach().cpu().float()
    chosen, matches = boxes.double().numpy(), matched.cpu().tolist()
    coded = {n: k for k, n in enumerate(n for n in sorted(set(matches)) if isinstance(outlines[n], Runs))}
    for row, n in enumerate(matches):
        outline = outlines[n]
        if not isinstance(outline, Runs) and np.abs(chosen[row]).max() <= FARTHEST:
            targets[row] = torch.from_numpy(_inside(outline, chosen[row], resolution))
    rows = [row for row, n in enumerate(matches) if n in coded and np.abs(chosen[row]).max() <= FARTHEST]
    if rows:
        masks, _ = draw_masks([outlines[n] for n in coded], size, Recipe(*size))
        index = torch.tensor([coded[matches[row]] for row in rows])
        targets[rows] = (resample(masks, boxes[rows], index, resolution) >= 0.5).float()
    return targets


def _inside(parts: list[np.ndarray], box: np.ndarray, resolution: int) -> np.ndarray:
    """The polygon on the box's grid, uint8, square. Sides count as 1 pixel at least, as in RoIAlign."""
    scale = resolution / np.maximum(box[2:] - box[:2], 1.0)
    flat = [((p - box[:2]) * scale).ravel().tolist() for p in parts]
    rles = native.fr_py_objects(flat, resolution, resolution)
    return native.decode(rles[0] if len(rles) == 1 else native.merge(rles))
