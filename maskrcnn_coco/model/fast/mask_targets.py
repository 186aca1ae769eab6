"""What the mask head is to predict for each proposal, straight from the outlines: no full-size mask is made."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import project_masks_on_boxes

from maskrcnn_coco.data import native_masks
from maskrcnn_coco.data.outlines import FARTHEST, Outlines, Window


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
    rles = native_masks.fr_py_objects(flat, resolution, resolution)
    return native_masks.decode(rles[0] if len(rles) == 1 else native_masks.merge(rles))


_GROUP = 16
Piece = tuple[int, int, Tensor]
"""Top, left and pixels (h, w), any dtype, of the part of a mask that is not all zeros."""


def mask_targets(masks: Tensor, boxes: Tensor, matched: Tensor, resolution: int) -> Tensor:
    """What torchvision's `project_masks_on_boxes` gives: float (P, M, M) in 0..1.

    Args:
        masks: (N, H, W), 0 or 1, any dtype. boxes: float (P, 4), xyxy, pixels. matched: (P,) mask of each box.
        resolution: M.
    """
    if masks.device.type != "cpu" or len(boxes) == 0:
        return project_masks_on_boxes(masks, boxes, matched, resolution)
    windows = {n: (0, 0, mask) for n, mask in enumerate(masks)}
    height, width = masks.shape[-2:]
    return resample(windows, (height, width), boxes, matched.tolist(), resolution)


def resample(
    windows: Mapping[int, Piece], size: tuple[int, int], boxes: Tensor, matched: list[int], resolution: int
) -> Tensor:
    """The same from the part of each mask that is not all zeros; boxes on the CPU, of an image of ``size``."""
    boxes = boxes if boxes.dtype == torch.float64 else boxes.float()
    out = boxes.new_empty((len(boxes), resolution, resolution))
    # Boxes of about one size together: the weight matrices of a group are as wide as its largest box. Autocast would
    # round the weights to half precision: a target that is not exact is a wrong label.
    with torch.autocast("cpu", enabled=False):
        for group in (boxes[:, 2:] - boxes[:, :2]).amax(1).argsort().split(_GROUP):
            rows = group.tolist()
            _resample_group([windows[matched[r]] for r in rows], size, boxes[group], out, rows)
    return out


def _resample_group(pieces: list[Piece], size: tuple[int, int], boxes: Tensor, out: Tensor, places: list[int]) -> None:
    extent = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1.0)
    tops, row_weights = _resampling(boxes[:, 1], extent[:, 1], size[0], out.shape[1])
    lefts, column_weights = _resampling(boxes[:, 0], extent[:, 0], size[1], out.shape[2])
    corners = zip(places, pieces, tops.tolist(), lefts.tolist(), strict=True)
    for rows, columns, (place, (above, beside, mask), top, left) in zip(
        row_weights, column_weights, corners, strict=True
    ):
        # From here to there, in pixels of the image: what box and piece have in common.
        y0, y1 = max(top, above), min(top + rows.shape[1], above + mask.shape[0])
        x0, x1 = max(left, beside), min(left + columns.shape[1], beside + mask.shape[1])
        if y0 >= y1 or x0 >= x1:
            out[place] = 0
            continue
        crop = mask[y0 - above : y1 - above, x0 - beside : x1 - beside].to(boxes.dtype)
        torch.mm(rows[:, y0 - top : y1 - top] @ crop, columns[:, x0 - left : x1 - left].T, out=out[place])


def _resampling(start: Tensor, extent: Tensor, size: int, bins: int) -> tuple[Tensor, Tensor]:
    """First pixel (P,) of each box along one axis, and the weights (P, bins, pixels) of the pixels from there on."""
    samples = torch.ceil(extent / bins)
    most = int(samples.max())
    step = (extent / bins)[:, None, None]
    which = torch.arange(most, dtype=start.dtype)
    at = start[:, None, None] + torch.arange(bins)[None, :, None] * step
    at = at + (which + 0.5) * (step / samples[:, None, None])
    share = ((which < samples[:, None, None]) & (at >= -1.0) & (at <= size)) / samples[:, None, None]
    at = at.clamp(0.0, size - 1)
    low = at.long()
    high = (low + 1).clamp(max=size - 1)
    part = at - low
    first = low[:, 0, 0]
    # The samples that a smaller box does not have lie past its end: their weight is 0, their place is kept inside.
    used = share > 0
    pixels = int(torch.where(used, high, 0).amax((1, 2)).sub(first).max()) + 1
    weights = start.new_zeros((len(start), bins, max(1, pixels)))
    for pixel, weight in ((low, (1.0 - part) * share), (high, part * share)):
        place = (pixel - first[:, None, None]).clamp(0, weights.shape[2] - 1)
        weights.scatter_add_(2, place, weight)
    return first, weights
