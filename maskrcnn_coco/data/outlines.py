"""Objects as they travel: polygons and small bitmaps that follow the augmentation, drawn where a mask is asked for.

Polygons are moved first and rasterised once, at the final size, instead of resizing dense masks; RLE is decoded inside
the object's own columns only. A full-size mask is mostly zeros: `Outlines` holds the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from maskrcnn_coco.data import native_masks
from maskrcnn_coco.data.transforms import Recipe

FARTHEST = 1e6
"""Pixels; coordinates beyond are not handed to native code."""


@dataclass
class Runs:
    """A checked RLE: run lengths int64, background first, in column order, over ``size`` (height, width)."""

    counts: np.ndarray
    size: tuple[int, int]


Outline = list[np.ndarray] | Runs
"""One object: the parts of a polygon, float64 (P, 2) xy in pixels of the source image each, or its RLE."""


class Window(NamedTuple):
    """The part of a mask that is not all zeros: uint8 (h, w), its first pixel at ``top``, ``left`` of the image."""

    top: int
    left: int
    mask: np.ndarray


Moved = list[np.ndarray] | Window
"""One object after the augmentation: polygon parts in pixels of the changed image, or a bitmap."""


@dataclass(frozen=True, eq=False)
class Outlines:
    """The N masks of an image, not drawn. A sequence of objects; ``outlines[keep]`` takes some of them.

    Attributes:
        size: (height, width) of the image, pixels.
        points: float64 (P, 2), xy, of all polygon parts one after another.
        parts: int64 (S, 2): the object that a part belongs to, and its number of points.
        windows: int64 (N, 4): top, left, height and width of an object's bitmap; zeros for a polygon.
        pixels: uint8 (B,), all bitmaps one after another, row by row.
    """

    size: tuple[int, int]
    points: Tensor
    parts: Tensor
    windows: Tensor
    pixels: Tensor

    @classmethod
    def of(cls, objects: Sequence[Moved], size: tuple[int, int]) -> Outlines:
        """Pack ``objects`` of an image of ``size``."""
        polygons = [(n, part) for n, o in enumerate(objects) if not isinstance(o, Window) for part in o]
        bitmaps = [o for o in objects if isinstance(o, Window)]
        windows = [(o.top, o.left, *o.mask.shape) if isinstance(o, Window) else (0, 0, 0, 0) for o in objects]
        flat = [np.zeros(0, np.uint8), *(w.mask.ravel() for w in bitmaps)]
        return cls(
            size,
            torch.from_numpy(np.concatenate([np.zeros((0, 2)), *(part for _, part in polygons)])),
            torch.tensor([(n, len(part)) for n, part in polygons], dtype=torch.int64).reshape(-1, 2),
            torch.tensor(windows, dtype=torch.int64).reshape(-1, 4),
            torch.from_numpy(np.concatenate(flat)),
        )

    def objects(self) -> list[Moved]:
        """The objects again; views of the tensors."""
        points, pixels = self.points.numpy(), self.pixels.numpy()
        found: list[Moved] = [[] for _ in range(len(self))]
        at = 0
        for n, count in self.parts.tolist():
            part = found[n]
            assert isinstance(part, list)
            part.append(points[at : at + count])
            at += count
        at = 0
        for n, (top, left, height, width) in enumerate(self.windows.tolist()):
            if height:
                found[n] = Window(top, left, pixels[at : at + height * width].reshape(height, width))
                at += height * width
        return found

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, keep: Tensor) -> Outlines:
        """The objects where ``keep``, bool (N,)."""
        return Outlines.of([o for o, kept in zip(self.objects(), keep.tolist(), strict=True) if kept], self.size)

    def masks(self) -> Tensor:
        """Drawn: uint8 (N, height, width), 0 or 1."""
        return _drawn(self.objects(), self.size)

    def mapped(self, change: Callable[[Any], Any]) -> Outlines:
        """With ``change`` applied to each tensor."""
        return Outlines(self.size, *(change(t) for t in (self.points, self.parts, self.windows, self.pixels)))

    def plain(self) -> dict[str, Any]:
        """As a dict of lists and tensors, for files."""
        return {**vars(self), "size": list(self.size)}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Outlines:
        """What `plain` gave, again.

        Raises:
            KeyError, TypeError, ValueError: it is something else, or has numbers that native code must not see.
        """
        height, width = plain["size"]
        made = cls(**{**plain, "size": (int(height), int(width))})
        _, _, heights, widths = made.windows.unbind(1)
        fits = len(made.points) == int(made.parts[:, 1].sum()) and len(made.pixels) == int((heights * widths).sum())
        if not (fits and bool((made.points.abs() <= FARTHEST).all())):
            raise ValueError("outlines that do not fit together")
        return made


def move_outlines(outlines: Sequence[Outline], size: tuple[int, int], recipe: Recipe) -> tuple[list[Moved], np.ndarray]:
    """Objects on an image of ``size`` (height, width) after ``recipe``: those of which a pixel is left.

    Returns:
        the objects; and bool (N,): which of ``outlines`` they are.
    """
    moved = [_moved(outline, size, recipe) for outline in outlines]
    seen = [m is not None and (isinstance(m, Window) or _has_pixels(m, recipe)) for m in moved]
    return [m for m, s in zip(moved, seen, strict=True) if s and m is not None], np.array(seen, bool)


def draw_masks(outlines: Sequence[Outline], size: tuple[int, int], recipe: Recipe) -> tuple[Tensor, np.ndarray]:
    """Masks of objects on an image of ``size`` (height, width), after ``recipe``.

    Returns:
        uint8 (N, recipe.height, recipe.width), 0 or 1; and bool (N,): whether anything of the object is left.
    """
    moved = [_moved(outline, size, recipe) for outline in outlines]
    windows = [m if m is None or isinstance(m, Window) else window_of(m, (recipe.height, recipe.width)) for m in moved]
    masks = _drawn([w or Window(0, 0, np.zeros((0, 0), np.uint8)) for w in windows], (recipe.height, recipe.width))
    return masks, np.array([w is not None and w.mask.any() for w in windows], bool)


def _drawn(objects: Sequence[Moved], size: tuple[int, int]) -> Tensor:
    # Untouched pages of zeros cost nothing: only the windows of the objects are written.
    masks = np.zeros((len(objects), *size), np.uint8)
    for mask, one in zip(masks, objects, strict=True):
        window = one if isinstance(one, Window) else window_of(one, size)
        if window is not None:
            height, width = window.mask.shape
            mask[window.top : window.top + height, window.left : window.left + width] = window.mask
    return torch.from_numpy(masks)


def _moved(outline: Outline, size: tuple[int, int], recipe: Recipe) -> Moved | None:
    if isinstance(outline, Runs):
        return _runs_window(outline, recipe)
    factor = np.array([recipe.width / size[1], recipe.height / size[0]])
    moved = [part * factor for part in outline]
    if recipe.flip:
        for part in moved:
            part[:, 0] = recipe.width - part[:, 0]
    return moved


def _has_pixels(parts: list[np.ndarray], recipe: Recipe) -> bool:
    made = rles_of(parts, (recipe.height, recipe.width))
    return made is not None and any(native_masks.area(made[2]))


def window_of(parts: list[np.ndarray], size: tuple[int, int]) -> Window | None:
    made = rles_of(parts, size)
    if made is None:
        return None
    top, left, rles = made
    return Window(top, left, native_masks.decode(rles[0] if len(rles) == 1 else native_masks.merge(rles)))


def rles_of(parts: list[np.ndarray], size: tuple[int, int]) -> tuple[int, int, list[Any]] | None:
    """Top, left, and the RLE of each part in a window around the object: shifts by whole pixels change nothing."""
    low = np.min([p.min(axis=0) for p in parts], axis=0)
    high = np.max([p.max(axis=0) for p in parts], axis=0)
    left, top = max(0, int(low[0]) - 1), max(0, int(low[1]) - 1)
    right, bottom = min(size[1], int(high[0]) + 2), min(size[0], int(high[1]) + 2)
    if left >= right or top >= bottom:
        return None
    flat = [(p - (left, top)).ravel().tolist() for p in parts]
    return top, left, native_masks.fr_py_objects(flat, bottom - top, right - left)


def _runs_window(runs: Runs, recipe: Recipe) -> Window | None:
    """Decode and resize to the nearest pixel, as torchvision's transform does with dense masks; None: nothing left."""
    source_height, source_width = runs.size
    stops = np.cumsum(runs.counts)
    filled = np.flatnonzero(runs.counts[1::2]) * 2 + 1
    if len(filled) == 0:
        return None
    first = int(stops[filled[0]] - runs.counts[filled[0]]) // source_height
    last = (int(stops[filled[-1]]) - 1) // source_height
    low, high = first * source_height, (last + 1) * source_height
    inside = np.diff(np.clip(stops, low, high), prepend=low)
    bits = np.repeat((np.arange(len(inside)) % 2).astype(np.uint8), inside)
    window = bits.reshape(last - first + 1, source_height)
    rows, cols = _nearest(source_height, recipe.height), _nearest(source_width, recipe.width)
    use = np.flatnonzero((cols >= first) & (cols <= last))
    columns = window[cols[use] - first]
    held = np.flatnonzero(columns[:, rows].any(axis=0))
    if len(held) == 0:
        return None
    top, bottom = int(held[0]), int(held[-1]) + 1
    part = columns[:, rows[top:bottom]].T
    left = int(use[0])
    if recipe.flip:
        part, left = part[:, ::-1], recipe.width - 1 - int(use[-1])
    return Window(top, left, np.ascontiguousarray(part))


def _nearest(source: int, target: int) -> np.ndarray:
    """The source pixel of each target pixel, int64 (target,), as ``interpolate(mode="nearest")``: in float32."""
    if source == target:
        return np.arange(target)
    ratio = np.float32(source) / np.float32(target)
    return np.minimum((np.arange(target, dtype=np.float32) * ratio).astype(np.int64), source - 1)
