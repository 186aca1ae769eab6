"""What the mask head is to predict for each proposal, straight from the outlines: no full-size mask is made."""

from __future__ import annotations

import hotcoco.mask as native
import numpy as np
import torch
from torch import Tensor

from maskrcnn_coco.data.outlines import FARTHEST, Outlines, Window
from maskrcnn_coco.fast_masks import resample


def outline_targets(outlines: Outlines, boxes: Tensor, matched: Tensor, resolution: int = 28) -> Tensor:
    """Polygons rasterised inside each proposal, on its own grid, as detectron2 does; bitmaps as torchvision does.

    Args:
        outlines: N objects, on the image that the boxes are on.
        boxes: float (P, 4), xyxy. matched: int64 (P,), into outlines.

    Returns:
        float32 (P, resolution, resolution), on the CPU: 0 or 1 for polygons, which is what torchvision's targets are
        at threshold 0.5 in all but about 1 % of the cells, those at the outlines; torchvision's own numbers, 0 to 1,
        for bitmaps. Zeros for boxes that are not finite or beyond `FARTHEST`: such a step is refused elsewhere.
    """
    targets = torch.zeros((len(boxes), resolution, resolution), dtype=torch.float32)
    boxes = boxes.detach().cpu().float()
    objects, matches = outlines.objects(), matched.cpu().tolist()
    near = (boxes.abs() <= FARTHEST).all(1).tolist()
    chosen = boxes.double().numpy()
    coded = [row for row, n in enumerate(matches) if near[row] and isinstance(objects[n], Window)]
    for row, n in enumerate(matches):
        shape = objects[n]
        if near[row] and not isinstance(shape, Window):
            targets[row] = torch.from_numpy(_inside(shape, chosen[row], resolution))
    if coded:
        windows = {n: (w.top, w.left, torch.from_numpy(w.mask)) for n, w in enumerate(objects) if isinstance(w, Window)}
        made = resample(windows, outlines.size, boxes[coded], [matches[row] for row in coded], resolution)
        targets[coded] = made
    return targets


def _inside(parts: list[np.ndarray], box: np.ndarray, resolution: int) -> np.ndarray:
    """The polygon on the box's grid, uint8, square. Sides count as 1 pixel at least, as in RoIAlign."""
    scale = resolution / np.maximum(box[2:] - box[:2], 1.0)
    flat = [((p - box[:2]) * scale).ravel().tolist() for p in parts]
    rles = native.fr_py_objects(flat, resolution, resolution)
    return native.decode(rles[0] if len(rles) == 1 else native.merge(rles))
