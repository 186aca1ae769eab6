"""A `Change` on objects, so that boxes and masks stay with their pixels: and objects pasted over others.

Objects are `Moved` ones (see `outlines`): polygon parts, or a bitmap in its window. Polygons are moved point by point,
bitmaps pixel by pixel. A box that only turns by quarters turns with its object; one that is cut or rotated is measured
again on the mask, so that no box is wider than what can be seen of its object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from maskrcnn_coco.data import native_masks
from maskrcnn_coco.data.augment import Change
from maskrcnn_coco.data.outlines import Moved, Window, rles_of, window_of

LEAST_SHARE = 0.2
"""An object of which less can be seen is no target any more: what it is could not be told from the rest."""
LEAST_PIXELS = 4
"""Fewer pixels than these are no target either."""


def turned_size(size: tuple[int, int], change: Change) -> tuple[int, int]:
    """(height, width) of an image of ``size`` after ``change``."""
    if change.crop is not None:
        return change.crop[2:]
    return size if change.quarters % 2 == 0 else (size[1], size[0])


def turn_objects(
    objects: Sequence[Moved], boxes: np.ndarray, size: tuple[int, int], change: Change
) -> tuple[list[Moved], np.ndarray, np.ndarray]:
    """Objects and their boxes on an image of ``size`` (height, width), after the geometry of ``change``.

    Args:
        boxes: float32 (N, 4), xyxy, pixels.

    Returns:
        the objects that are left; their boxes, float32 (M, 4); and bool (N,): which they are.
    """
    final = turned_size(size, change)
    moved: list[Moved] = []
    placed: list[np.ndarray] = []
    kept = np.zeros(len(objects), bool)
    for n, (one, box) in enumerate(zip(objects, boxes, strict=True)):
        found = _turn_one(one, box, size, final, change)
        if found is not None:
            moved.append(found[0])
            placed.append(found[1])
            kept[n] = True
    return moved, np.array(placed, np.float32).reshape(-1, 4), kept


def _turn_one(
    one: Moved, box: np.ndarray, size: tuple[int, int], final: tuple[int, int], change: Change
) -> tuple[Moved, np.ndarray] | None:
    frame = size
    if change.vertical:
        one, box = _flipped(one, box, frame[0])
    for _ in range(change.quarters):
        one, box = _quarter(one, box, frame)
        frame = (frame[1], frame[0])
    if not change.degrees and change.crop is None:
        return one, box
    before = visible(one, frame)
    rotated: Moved | None = one
    if change.degrees:
        rotated = _rotated(one, frame, change.degrees)
    if rotated is not None and change.crop is not None:
        rotated = shifted(rotated, change.crop)
    if rotated is None:
        return None
    seen = extent(rotated, final)
    if seen is None or seen[1] < max(LEAST_PIXELS, LEAST_SHARE * before):
        return None
    if not np.isfinite(box).all():
        return rotated, box  # a bad number is for the guard to refuse, not for a transform to hide
    if not change.degrees and change.crop is not None:
        top, left, height, width = change.crop
        whole = box - np.array([left, top, left, top], box.dtype)
        if whole.min() >= 0 and whole[2] <= width and whole[3] <= height:
            return rotated, whole
    return rotated, seen[0]


def _flipped(one: Moved, box: np.ndarray, height: int) -> tuple[Moved, np.ndarray]:
    turned = box.copy()
    turned[[1, 3]] = height - box[[3, 1]]
    if isinstance(one, Window):
        top = height - one.top - one.mask.shape[0]
        return Window(top, one.left, np.ascontiguousarray(one.mask[::-1])), turned
    return [np.stack([p[:, 0], height - p[:, 1]], 1) for p in one], turned


def _quarter(one: Moved, box: np.ndarray, size: tuple[int, int]) -> tuple[Moved, np.ndarray]:
    """A quarter turn counter-clockwise: (x, y) → (y, width - x)."""
    width = size[1]
    turned = np.array([box[1], width - box[2], box[3], width - box[0]], box.dtype)
    if isinstance(one, Window):
        top = width - one.left - one.mask.shape[1]
        return Window(top, one.top, np.ascontiguousarray(np.rot90(one.mask))), turned
    return [np.stack([p[:, 1], width - p[:, 0]], 1) for p in one], turned


def _rotated(one: Moved, size: tuple[int, int], degrees: float) -> Moved | None:
    """Counter-clockwise around the middle of the image, as torchvision's ``rotate`` turns pixels."""
    angle = math.radians(degrees)
    cos, sin = math.cos(angle), math.sin(angle)
    middle = np.array([size[1], size[0]]) / 2
    # y points down: counter-clockwise on the screen is (x, y) → (x cos + y sin, -x sin + y cos).
    forward = np.array([[cos, sin], [-sin, cos]])
    if not isinstance(one, Window):
        return [(p - middle) @ forward.T + middle for p in one]
    h, w = one.mask.shape
    corners = np.array([(x, y) for x in (one.left, one.left + w) for y in (one.top, one.top + h)], np.float64)
    turned = (corners - middle) @ forward.T + middle
    left, top = np.maximum(np.floor(turned.min(0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(turned.max(0)).astype(int), (size[1], size[0]))
    if left >= right or top >= bottom:
        return None
    ys, xs = np.mgrid[top:bottom, left:right] + 0.5
    source = (np.stack([xs, ys], -1) - middle) @ forward + middle
    cols, rows = np.floor(source[..., 0]).astype(int) - one.left, np.floor(source[..., 1]).astype(int) - one.top
    inside = (rows >= 0) & (rows < h) & (cols >= 0) & (cols < w)
    mask = np.where(inside, one.mask[np.clip(rows, 0, h - 1), np.clip(cols, 0, w - 1)], 0).astype(np.uint8)
    return Window(int(top), int(left), mask) if mask.any() else None


def shifted(one: Moved, crop: tuple[int, int, int, int]) -> Moved | None:
    top, left, height, width = crop
    if not isinstance(one, Window):
        return [p - (left, top) for p in one]
    h, w = one.mask.shape
    a, b = max(0, top - one.top), min(h, top + height - one.top)
    c, d = max(0, left - one.left), min(w, left + width - one.left)
    if a >= b or c >= d or not one.mask[a:b, c:d].any():
        return None
    return Window(one.top + a - top, one.left + c - left, np.ascontiguousarray(one.mask[a:b, c:d]))


def visible(one: Moved, size: tuple[int, int]) -> float:
    """Pixels of ``one`` inside an image of ``size``."""
    found = extent(one, size)
    return 0.0 if found is None else found[1]


def extent(one: Moved, size: tuple[int, int]) -> tuple[np.ndarray, float] | None:
    """Tight box, float32 xyxy, and pixels of what is inside an image of ``size``; None: nothing is."""
    if isinstance(one, Window):
        rows, cols = np.flatnonzero(one.mask.any(axis=1)), np.flatnonzero(one.mask.any(axis=0))
        if len(rows) == 0:
            return None
        box = (one.left + cols[0], one.top + rows[0], one.left + cols[-1] + 1, one.top + rows[-1] + 1)
        return np.array(box, np.float32), float(one.mask.sum())
    made = rles_of(one, size)
    if made is None:
        return None
    top, left, parts = made
    whole = parts[0] if len(parts) == 1 else native_masks.merge(parts)
    pixels = float(np.asarray(native_masks.area([whole]))[0])
    if not pixels:
        return None
    x, y, w, h = np.asarray(native_masks.to_bbox([whole]), np.float64).reshape(4)
    return np.array((left + x, top + y, left + x + w, top + y + h), np.float32), pixels


def placed(one: Moved, size: tuple[int, int], shift: tuple[int, int], final: tuple[int, int]) -> Window | None:
    """``one`` of an image of ``size``, ``shift`` (down, right) pixels away, whole inside ``final``; None: it is not."""
    window = one if isinstance(one, Window) else window_of(one, size)
    if window is None or not window.mask.any():
        return None
    top, left = window.top + shift[0], window.left + shift[1]
    height, width = window.mask.shape
    if top < 0 or left < 0 or top + height > final[0] or left + width > final[1]:
        return None
    return Window(top, left, window.mask)


def covered(one: Moved, box: np.ndarray, size: tuple[int, int], by: Window) -> tuple[Moved, np.ndarray] | None:
    """``one`` without the pixels ``by``, and its box; None: too little of it is left to be a target."""
    height, width = by.mask.shape
    apart = box[0] >= by.left + width or box[2] <= by.left or box[1] >= by.top + height or box[3] <= by.top
    if apart:
        return one, box
    window = one if isinstance(one, Window) else window_of(one, size)
    if window is None:
        return None
    h, w = window.mask.shape
    a, b = max(window.top, by.top), min(window.top + h, by.top + height)
    c, d = max(window.left, by.left), min(window.left + w, by.left + width)
    if a >= b or c >= d:
        return one, box
    mask = window.mask.copy()
    mask[a - window.top : b - window.top, c - window.left : d - window.left] &= (
        1 - by.mask[a - by.top : b - by.top, c - by.left : d - by.left]
    )
    before, after = int(window.mask.sum()), int(mask.sum())
    if after == before:
        return one, box
    if after < max(LEAST_PIXELS, LEAST_SHARE * before):
        return None
    cut = Window(window.top, window.left, mask)
    found = extent(cut, size)
    return None if found is None else (cut, found[0])


def box_of(window: Window) -> np.ndarray:
    """Tight box, float32 xyxy, of a bitmap that is not empty."""
    found = extent(window, (0, 0))
    assert found is not None
    return found[0]
