"""Arithmetic on many polygons and runs at once, without drawing a mask."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np


@dataclass(frozen=True)
class Rings:
    """P polygon parts: ``x`` and ``y`` float64 (points,); ``starts`` and ``lengths`` int64 (P,), in points."""

    x: np.ndarray
    y: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @staticmethod
    def of(parts: list[list[float]]) -> Rings:
        """Rings of parts with 6 or an even number more of coordinates."""
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        flat = np.fromiter(chain.from_iterable(parts), np.float64, int(lengths.sum()))
        return Rings(flat[::2].copy(), flat[1::2].copy(), (np.cumsum(lengths) - lengths) // 2, lengths // 2)

    def _after(self, values: np.ndarray) -> np.ndarray:
        """For each point the value of the next one of its ring."""
        after = np.empty_like(values)
        after[:-1] = values[1:]
        after[self.starts + self.lengths - 1] = values[self.starts]
        return after

    def areas(self) -> np.ndarray:
        """Enclosed area of each part, float64 (P,), square pixels; parts of a self-crossing ring may cancel."""
        with np.errstate(over="ignore", invalid="ignore"):
            cross = self.x * self._after(self.y) - self.y * self._after(self.x)
            return np.abs(np.add.reduceat(cross, self.starts)) / 2

    def outlines(self) -> np.ndarray:
        """Outline of each part, float64 (P,), in steps of the rasteriser: the longer of |dx| and |dy|, summed."""
        with np.errstate(over="ignore", invalid="ignore"):
            steps = np.maximum(np.abs(self._after(self.x) - self.x), np.abs(self._after(self.y) - self.y))
            return np.add.reduceat(steps, self.starts)

    def extents(self) -> np.ndarray:
        """x1, y1, x2, y2 of each part, float64 (P, 4)."""
        low, high = np.minimum.reduceat, np.maximum.reduceat
        return np.stack([f(v, self.starts) for f in (low, high) for v in (self.x, self.y)], axis=1)

    def finite(self) -> np.ndarray:
        """bool (P,): all coordinates of the part are finite."""
        good = np.isfinite(self.x) & np.isfinite(self.y)
        return np.ones(len(self.starts), bool) if good.all() else np.logical_and.reduceat(good, self.starts)

    def crossing(self, limit: int = 300) -> np.ndarray:
        """bool (P,): two edges of the part cross inside. Parts of more than ``limit`` points are not examined."""
        found = np.zeros(len(self.starts), bool)
        for n in np.unique(self.lengths).tolist():
            if not 4 <= n <= limit:
                continue
            rows = np.flatnonzero(self.lengths == n)
            step = max(1, 1_000_000 // (n * n))
            for at in range(0, len(rows), step):
                some = rows[at : at + step]
                points = self.starts[some, None] + np.arange(n)
                found[some] = _crossing(np.stack([self.x[points], self.y[points]], axis=2))
        return found


def _crossing(rings: np.ndarray) -> np.ndarray:
    """bool (M,) for rings (M, n, 2): an edge separates the ends of another, and the other way round."""
    a, b = rings, np.roll(rings, -1, axis=1)
    edge = b - a

    def side(p: np.ndarray) -> np.ndarray:
        # [m, i, j]: on which side of edge i the point j lies
        dx = p[:, None, :, 0] - a[:, :, None, 0]
        dy = p[:, None, :, 1] - a[:, :, None, 1]
        return edge[:, :, None, 0] * dy - edge[:, :, None, 1] * dx

    at_start = side(a)
    split = at_start * np.roll(at_start, -1, axis=2) < 0  # the ends of edge j are the points j and j + 1
    return np.asarray((split & split.transpose(0, 2, 1)).any(axis=(1, 2)))


PARTS, POINTS = 40, 4_000
"""Of one annotation, to be looked at for parts within parts."""


def nested(rings: Rings, owner: np.ndarray, first: np.ndarray, most: int) -> dict[int, float]:
    """Annotation → area of its parts that lie wholly within another of its parts.

    Args:
        owner: annotation of each part, int (P,), in order. first: where each annotation's parts begin.
        most: annotations of several parts that are examined; of those, the ones with more than `PARTS` parts, or
            `POINTS` points, are not: each part is held against each other one.
    """
    ends = np.append(first[1:], len(owner))
    several = np.flatnonzero((ends - first > 1) & (ends - first <= PARTS))[:most]
    extents, areas = rings.extents(), rings.areas()
    found: dict[int, float] = {}
    for n in several.tolist():
        at = slice(int(first[n]), int(ends[n]))
        if rings.lengths[at].sum() > POINTS:
            continue
        box = extents[at]
        with np.errstate(invalid="ignore"):
            inside = (box[:, None, :2] > box[None, :, :2]).all(axis=2) & (box[:, None, 2:] < box[None, :, 2:]).all(
                axis=2
            )
        pairs = np.argwhere(inside) + at.start
        inner = {p for p, q in pairs.tolist() if _within(rings, p, q)}
        if inner:
            found[int(owner[first[n]])] = float(areas[sorted(inner)].sum())
    return found


def _within(rings: Rings, inner: int, outer: int) -> bool:
    """Whether the points of one part, a hundred of them at most, are inside another; its extent is."""
    x, y = (v[:: 1 + len(v) // 100] for v in _points(rings, inner))
    px, py = _points(rings, outer)
    qx, qy = np.roll(px, -1), np.roll(py, -1)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        crosses = (py[:, None] > y) != (qy[:, None] > y)
        at = px[:, None] + (y - py[:, None]) * ((qx - px) / (qy - py))[:, None]
        return bool((((crosses & (x < at)).sum(axis=0) % 2) == 1).all())


def _points(rings: Rings, part: int) -> tuple[np.ndarray, np.ndarray]:
    where = slice(int(rings.starts[part]), int(rings.starts[part] + rings.lengths[part]))
    return rings.x[where], rings.y[where]


def boxes_of_runs(runs: np.ndarray, height: int) -> tuple[float, np.ndarray]:
    """(pixels, [x1, y1, x2, y2]) of RLE runs (int64, background first) in an image ``height`` pixels high."""
    stops = np.cumsum(runs)
    starts = stops - runs
    on = np.zeros(len(runs), bool)
    on[1::2] = runs[1::2] > 0
    if not on.any():
        return 0.0, np.full(4, np.nan)
    first, last = starts[on], stops[on] - 1
    x1, x2 = int(first.min()) // height, int(last.max()) // height + 1
    whole = (first // height) != (last // height)
    y1 = 0 if whole.any() else int((first % height).min())
    y2 = height if whole.any() else int((last % height).max()) + 1
    return float(runs[on].sum()), np.array([x1, y1, x2, y2], np.float64)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of xyxy boxes, pairwise by row, float64 (N,); 0 where either is empty."""
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
        inter = np.prod(np.clip(high - low, 0, None), axis=1)
        union = np.prod(a[:, 2:] - a[:, :2], axis=1) + np.prod(b[:, 2:] - b[:, :2], axis=1) - inter
        return np.where(union > 0, np.divide(inter, union), np.zeros(len(a)))
