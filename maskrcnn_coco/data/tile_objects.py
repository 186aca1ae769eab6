"""The objects of an image as one tile of it shows them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn_coco.data.augment_objects import LEAST_PIXELS, LEAST_SHARE, extent, shifted
from maskrcnn_coco.data.outlines import Moved, Outline, Runs, Window, move_outlines
from maskrcnn_coco.data.tile_grid import Rectangle
from maskrcnn_coco.data.transforms import Recipe


@dataclass
class Seen:
    """What a tile shows of N objects.

    Attributes:
        outlines: of those of which a pixel can be seen, M; pixels of the tile.
        boxes: float64 (M, 4), xywh, pixels of the tile.
        kept: int64 (M,): which of the N they are.
        share: float64 (M,): how much of each can be seen.
        whole: bool (M,): enough to tell what it is, as in a crop of large-scale jitter.
    """

    outlines: list[Outline]
    boxes: np.ndarray
    kept: np.ndarray
    share: np.ndarray
    whole: np.ndarray


def near(boxes: np.ndarray, tile: Rectangle) -> np.ndarray:
    """bool (N,): which of ``boxes``, xywh (N, 4), may reach into ``tile``; a box of bad numbers may."""
    x0, y0, x1, y1 = tile
    apart = (boxes[:, 0] >= x1 + 1) | (boxes[:, 1] >= y1 + 1)
    return ~(apart | (boxes[:, 0] + boxes[:, 2] <= x0 - 1) | (boxes[:, 1] + boxes[:, 3] <= y0 - 1))


def cut(outlines: Sequence[Outline], boxes: np.ndarray, size: tuple[int, int], tile: Rectangle) -> Seen:
    """Objects of an image of ``size`` (height, width) in ``tile``; ``boxes`` float64 (N, 4), xywh, of the image.

    The box of an object that the tile cuts is measured again on what can be seen; that of a whole one is its own.
    """
    x0, y0, x1, y1 = tile
    frame, window = (y1 - y0, x1 - x0), (y0, x0, y1 - y0, x1 - x0)
    found: list[Outline] = []
    rows, kept, shares, whole = [], [], [], []
    for n, (outline, box) in enumerate(zip(outlines, boxes, strict=True)):
        objects, _ = move_outlines([outline], size, Recipe(*size))
        moved = shifted(objects[0], window) if objects else None
        seen = None if moved is None else extent(moved, frame)
        if moved is None or seen is None:
            continue
        before = extent(objects[0], size)
        all_of_it = seen[1] if before is None else before[1]
        x, y, w, h = box.tolist()
        inside = x0 <= x and y0 <= y and x + w <= x1 and y + h <= y1
        bad = not np.isfinite(box).all()  # a bad number is for the guard to refuse, not for a tile to hide
        left, top, right, bottom = seen[0].tolist()
        rows.append((x - x0, y - y0, w, h) if inside or bad else (left, top, right - left, bottom - top))
        found.append(_outline(moved, frame))
        kept.append(n)
        shares.append(seen[1] / all_of_it)
        whole.append(bad or seen[1] >= max(LEAST_PIXELS if all_of_it >= LEAST_PIXELS else 1, LEAST_SHARE * all_of_it))
    return Seen(
        found,
        np.array(rows, np.float64).reshape(-1, 4),
        np.array(kept, np.int64),
        np.array(shares, np.float64),
        np.array(whole, bool),
    )


def _outline(moved: Moved, size: tuple[int, int]) -> Outline:
    return runs_of(moved, size) if isinstance(moved, Window) else moved


def runs_of(window: Window, size: tuple[int, int]) -> Runs:
    """A bitmap as the RLE of an image of ``size`` (height, width)."""
    height, width = window.mask.shape
    columns = np.zeros((width, size[0]), bool)
    columns[:, window.top : window.top + height] = window.mask.T > 0
    flat = np.concatenate([[False], columns.ravel(), [False]])
    turns = np.flatnonzero(flat[1:] != flat[:-1]) + window.left * size[0]
    return Runs(np.diff(np.concatenate([[0], turns, [size[0] * size[1]]])).astype(np.int64), size)
