"""A training sample after its `Change`, and with objects of another image pasted in.

Samples here carry `Outlines`; the data set draws masks from them at the end, where a model wants masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_coco.data.audit.targets import MIN_SIDE
from maskrcnn_coco.data.augment import SMALLEST_OBJECT, UNCHANGED, Change, CopyPaste
from maskrcnn_coco.data.augment_objects import (
    LEAST_PIXELS,
    LEAST_SHARE,
    box_of,
    covered,
    placed,
    turn_objects,
    turned_size,
    visible,
)
from maskrcnn_coco.data.augment_pixels import change_pixels
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.outlines import Moved, Outlines, Window
from maskrcnn_coco.data.tile_grid import Tiles

Sample = tuple[Tensor, dict[str, Any]]


def smallest_scale(table: CocoTable, min_size: int, max_size: int, tiles: Tiles | None = None) -> float:
    """The scale at which a tenth of the objects of ``table`` have sides below `SMALLEST_OBJECT` pixels, at most 1."""
    heights, widths = (np.maximum(v, 1).astype(np.float64) for v in (table.heights, table.widths))
    scale = np.minimum(min_size / np.minimum(heights, widths), max_size / np.maximum(heights, widths))
    if tiles is not None:
        scale[tiles.cut] = min_size / tiles.side
    sides = np.sqrt(np.maximum(table.boxes[:, 2] * table.boxes[:, 3], 0.0)) * scale[table.ann_image]
    sides = sides[np.isfinite(sides) & (sides > 0)]
    return min(1.0, SMALLEST_OBJECT / float(np.quantile(sides, 0.1))) if len(sides) else 0.0


def changed(image: Tensor, target: dict[str, Any], change: Change) -> Sample:
    """A sample after ``change``; ``vanished`` counts the objects that it took out of sight.

    Args:
        image: uint8 (3, H, W). target: with ``outlines``, `Outlines` of the N objects, and ``boxes``.
    """
    if change == UNCHANGED:
        return image, target
    size = (image.shape[-2], image.shape[-1])
    objects = target["outlines"].objects()
    moved, boxes, kept = turn_objects(objects, target["boxes"].numpy(), size, change)
    large = np.asarray(~((boxes[:, 2:] - boxes[:, :2]) < MIN_SIDE).any(axis=1))
    kept[np.flatnonzero(kept)[~large]] = False
    moved = [m for m, fits in zip(moved, large, strict=True) if fits]
    final = turned_size(size, change)
    return change_pixels(image, change), _with(target, moved, boxes[large], kept, final)


def pasted(image: Tensor, target: dict[str, Any], source: Sample, op: CopyPaste, rng: np.random.Generator) -> Sample:
    """``image`` with objects of ``source`` on it: pixels, masks and boxes, later ones on top.

    An object goes where all of it fits; one that its own image cuts off is not taken, it would end in a straight edge.
    What lies under it loses those pixels, and is no target any more where too little of it is left. The target says
    whose image each object is of, int64 (N,) ``source_image_ids``, and counts as ``vanished`` what was covered.
    """
    size = (image.shape[-2], image.shape[-1])
    chosen = _chosen(source, op, rng, size)
    if not chosen:
        return image, target
    image = image.clone()
    other_image, other = source
    objects: list[Moved] = target["outlines"].objects()
    boxes = list(target["boxes"].numpy())
    first = [visible(o, size) for o in objects]
    rows = [(0, n) for n in range(len(objects))]
    for row, window, shift in chosen:
        h, w = window.mask.shape
        over = torch.from_numpy(window.mask).bool()
        top, left = window.top - shift[0], window.left - shift[1]
        piece = other_image[:, top : top + h, left : left + w]
        here = image[:, window.top : window.top + h, window.left : window.left + w]
        here.copy_(torch.where(over, piece, here))
        left_over = []
        for n, (one, box) in enumerate(zip(objects, boxes, strict=True)):
            cut = covered(one, box, size, window)
            if cut is not None and (
                cut[0] is one or visible(cut[0], size) >= max(LEAST_PIXELS, LEAST_SHARE * first[n])
            ):
                left_over.append((n, *cut))
        objects = [one for _, one, _ in left_over] + [window]
        boxes = [box for _, _, box in left_over] + [box_of(window)]
        first = [first[n] for n, _, _ in left_over] + [float(window.mask.sum())]
        rows = [rows[n] for n, _, _ in left_over] + [(1, row)]
    return image, _joined(target, other, objects, boxes, rows, size)


def _chosen(
    source: Sample, op: CopyPaste, rng: np.random.Generator, size: tuple[int, int]
) -> list[tuple[int, Window, tuple[int, int]]]:
    """Row, bitmap where it is to be, and shift (down, right) of each object to paste."""
    image, target = source
    frame = (image.shape[-2], image.shape[-1])
    order = rng.permutation(len(target["labels"]))
    count = int(rng.integers(1, op.objects + 1))
    shifts = rng.random((len(order), 2))
    found = []
    objects: Sequence[Moved] = target["outlines"].objects()
    for row in order.tolist():
        if len(found) == count:
            break
        whole = placed(objects[row], frame, (0, 0), frame)
        if whole is None or _touches_border(whole, frame):
            continue
        h, w = whole.mask.shape
        if h > size[0] or w > size[1] or int(whole.mask.sum()) < LEAST_PIXELS:
            continue
        top, left = (int(s * (room + 1)) for s, room in zip(shifts[row], (size[0] - h, size[1] - w), strict=True))
        found.append((row, Window(top, left, whole.mask), (top - whole.top, left - whole.left)))
    return found


def _touches_border(window: Window, size: tuple[int, int]) -> bool:
    box = box_of(window)
    return bool(box[0] <= 0 or box[1] <= 0 or box[2] >= size[1] or box[3] >= size[0])


def _with(
    target: dict[str, Any], objects: list[Moved], boxes: np.ndarray, kept: np.ndarray, size: tuple[int, int]
) -> dict[str, Any]:
    keep = torch.from_numpy(kept)
    rest = {k: v[keep] if _per_object(v, len(kept)) else v for k, v in target.items()}
    rest |= {"outlines": Outlines.of(objects, size), "boxes": torch.from_numpy(boxes)}
    gone = int((~kept).sum())
    return {**rest, "vanished": target.get("vanished", 0) + gone} if gone else rest


def _joined(
    target: dict[str, Any],
    other: dict[str, Any],
    objects: list[Moved],
    boxes: list[np.ndarray],
    rows: list[tuple[int, int]],
    size: tuple[int, int],
) -> dict[str, Any]:
    n, m = len(target["labels"]), len(other["labels"])
    pick = torch.tensor([row if where == 0 else n + row for where, row in rows], dtype=torch.int64)
    made = dict(target)
    for key, value in target.items():
        if _per_object(value, n) and _per_object(other.get(key), m):
            made[key] = torch.cat([value, other[key]])[pick]
    ids = torch.tensor([target["image_id"]] * n + [other["image_id"]] * m, dtype=torch.int64)
    made |= {
        "outlines": Outlines.of(objects, size),
        "boxes": torch.from_numpy(np.array(boxes, np.float32).reshape(-1, 4)),
        "source_image_ids": ids[pick],
    }
    gone = n - sum(where == 0 for where, _ in rows)
    return made | {"vanished": target.get("vanished", 0) + gone} if gone else made


def _per_object(value: Any, count: int) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == count
