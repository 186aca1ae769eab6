"""What a model found on one image, compactly: boxes, scores, labels, and each mask inside its own window. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

THRESHOLD = 0.5
"""A pixel belongs to an object where its probability is above this."""


@dataclass(frozen=True)
class Window:
    """A mask cut to its surroundings: ``mask`` bool (h, w), its upper left pixel at column ``x``, row ``y``."""

    x: int
    y: int
    mask: np.ndarray

    @property
    def rectangle(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels, x1 and y1 just outside."""
        return self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0]

    def moved(self, dx: int, dy: int) -> Window:
        """The same mask ``dx`` columns to the right and ``dy`` rows down."""
        return Window(self.x + dx, self.y + dy, self.mask)

    def trimmed(self) -> Window:
        """Without empty rows and columns at its sides; an empty mask has no size."""
        rows, columns = np.flatnonzero(self.mask.any(1)), np.flatnonzero(self.mask.any(0))
        if len(rows) == 0:
            return Window(self.x, self.y, self.mask[:0, :0])
        top, left = int(rows[0]), int(columns[0])
        return Window(self.x + left, self.y + top, self.mask[top : rows[-1] + 1, left : columns[-1] + 1])

    def part(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """The mask inside a rectangle, bool (y1 - y0, x1 - x0); outside the window nothing is set."""
        out = np.zeros((max(y1 - y0, 0), max(x1 - x0, 0)), bool)
        left, top, right, bottom = self.rectangle
        a, b, c, d = max(x0, left), max(y0, top), min(x1, right), min(y1, bottom)
        if a < c and b < d:
            out[b - y0 : d - y0, a - x0 : c - x0] = self.mask[b - top : d - top, a - left : c - left]
        return out

    def full(self, height: int, width: int) -> np.ndarray:
        """The mask over the whole image, bool (height, width)."""
        return self.part(0, 0, width, height)


def union(windows: Sequence[Window]) -> Window:
    """One window that holds whatever any of ``windows`` holds."""
    corners = np.array([w.rectangle for w in windows])
    (x0, y0), (x1, y1) = corners[:, :2].min(0), corners[:, 2:].max(0)
    mask = np.zeros((y1 - y0, x1 - x0), bool)
    for w in windows:
        left, top, right, bottom = w.rectangle
        mask[top - y0 : bottom - y0, left - x0 : right - x0] |= w.mask
    return Window(int(x0), int(y0), mask)


@dataclass
class Found:
    """Objects of one image, best first.

    ``boxes`` float32 (N, 4) xyxy and ``windows`` in the image's pixels; ``scores`` float32 (N,) in 0..1; ``labels``
    int64 (N,), 1 is the first class.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    windows: list[Window]

    def __len__(self) -> int:
        return len(self.scores)

    def at(self, places: Sequence[int] | np.ndarray) -> Found:
        """The objects at these places, in that order."""
        places = [int(p) for p in places]
        return Found(self.boxes[places], self.scores[places], self.labels[places], [self.windows[p] for p in places])


def nothing() -> Found:
    """No objects."""
    return Found(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), [])


def found_of(boxes: Any, scores: Any, labels: Any, windows: Sequence[Window]) -> Found:
    """Plain arrays in any order as a `Found`: sorted by score; what is not finite is left out."""
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    scores, labels = np.asarray(scores, np.float32).reshape(-1), np.asarray(labels, np.int64).reshape(-1)
    fit = np.isfinite(boxes).all(1) & np.isfinite(scores)
    order = np.argsort(-scores, kind="stable")
    return Found(boxes, scores, labels, list(windows)).at(order[fit[order]])


def windows_of_full(masks: np.ndarray, threshold: float = THRESHOLD) -> list[Window]:
    """A window of each (H, W) probability or bool mask of ``masks`` (N, 1, H, W) or (N, H, W)."""
    flat = masks.reshape(len(masks), *masks.shape[-2:])
    return [Window(0, 0, m if m.dtype == bool else m > threshold).trimmed() for m in flat]
