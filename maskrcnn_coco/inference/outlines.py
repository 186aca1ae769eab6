"""Outlines of masks as polygons with holes, along the edges of pixels. NumPy only.

An outline keeps its object on its right hand (y points down). Pixels that touch at a corner alone belong to two outer
rings; a hole is a ring that turns the other way.
"""

from __future__ import annotations

import numpy as np

Ring = np.ndarray
"""float64 (points, 2): x and y of each corner, pixels; (0, 0) is the upper left corner of the first pixel."""

_TURNS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # right, down, left, up: the next one is a turn to the right


def polygons_of(mask: np.ndarray, x: int = 0, y: int = 0, *, tolerance: float = 0.5) -> list[list[Ring]]:
    """The polygons of a mask, each ``[outer ring, holes …]``, outer rings largest first.

    Args:
        mask: bool (h, w), its upper left pixel at (``x``, ``y``).
        tolerance: an outline may leave the edges of the pixels by this much, pixels; 0 follows them exactly. A ring
            that would change its area by more than 4 % stays exact.
    """
    shift = np.array((x, y), np.float64)
    rings = [_simple(_corners(r), tolerance) + shift for r in _rings(np.asarray(mask, bool))]
    areas = [signed_area(r) for r in rings]
    outer = sorted((n for n, a in enumerate(areas) if a > 0), key=lambda n: -areas[n])
    polygons = {n: [rings[n]] for n in outer}
    for n, area in enumerate(areas):
        if area < 0:
            # The smallest outer ring around it; rings do not cross, so any point of the hole will do.
            point = _inner_point(rings[n])
            around = [m for m in outer if areas[m] >= -area and _inside(point, rings[m])]
            if around:
                polygons[around[-1]].append(rings[n])
    return list(polygons.values())


def signed_area(ring: Ring) -> float:
    """Area of a ring in pixels: positive for an outer ring, negative for a hole."""
    x, y = ring.T
    return float(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2


def _rings(mask: np.ndarray) -> list[np.ndarray]:
    """Closed walks along pixel edges, int64 (steps, 2) corners (x, y) each."""
    padded = np.pad(mask, 1)
    inner = padded[1:-1, 1:-1]
    starts: dict[tuple[int, int], list[int]] = {}
    # Edges of a pixel that face the outside: top, right, bottom, left; each starts at a corner and goes clockwise.
    faces = ((-1, 0, 0, 0), (0, 1, 1, 0), (1, 0, 1, 1), (0, -1, 0, 1))
    for direction, (dy, dx, ox, oy) in enumerate(faces):
        outside = ~padded[1 + dy : padded.shape[0] - 1 + dy, 1 + dx : padded.shape[1] - 1 + dx]
        ys, xs = np.nonzero(inner & outside)
        for px, py in zip((xs + ox).tolist(), (ys + oy).tolist(), strict=True):
            starts.setdefault((px, py), []).append(direction)
    rings = []
    for first in list(starts):
        while starts[first]:
            rings.append(_walk(starts, first))
    return rings


def _walk(starts: dict[tuple[int, int], list[int]], first: tuple[int, int]) -> np.ndarray:
    at, direction = first, starts[first].pop()
    steps = [at]
    while True:
        at = (at[0] + _TURNS[direction][0], at[1] + _TURNS[direction][1])
        if at == first:
            return np.array(steps, np.int64)
        steps.append(at)
        ways = starts[at]
        # Where two pixels touch at a corner, a turn to the right stays with the pixel that is walked around.
        direction = ways[0] if len(ways) == 1 else next(d for d in _right_first(direction) if d in ways)
        ways.remove(direction)


def _right_first(direction: int) -> tuple[int, int, int]:
    return (direction + 1) % 4, direction, (direction + 3) % 4


def _corners(ring: np.ndarray) -> Ring:
    """Without the points in the middle of straight lines."""
    before, after = ring - np.roll(ring, 1, 0), np.roll(ring, -1, 0) - ring
    return ring[(before != after).any(1)].astype(np.float64)


def _simple(exact: Ring, tolerance: float) -> Ring:
    """Fewer corners: stairs through the middle of their steps, then Douglas and Peucker (1973)."""
    if tolerance <= 0 or len(exact) <= 4:
        return exact
    ring, area = _without_stairs(exact), signed_area(exact)
    for reach in (tolerance, tolerance / 2):
        simple = _straightened(ring, reach)
        if 3 <= len(simple) < len(exact) and abs(signed_area(simple) - area) <= 0.04 * abs(area):
            return simple
    return exact


def _straightened(ring: Ring, tolerance: float) -> Ring:
    """Without the corners nearer than ``tolerance`` to the line past them; begun where the ring is widest."""
    ring = np.roll(ring, -int(np.argmax(((ring - ring.mean(0)) ** 2).sum(1))), 0)
    b = int(np.argmax(((ring - ring[0]) ** 2).sum(1)))
    closed = np.concatenate([ring, ring[:1]])
    keep = np.zeros(len(closed), bool)
    keep[[0, b, len(closed) - 1]] = True
    todo = [(0, b), (b, len(closed) - 1)]
    while todo:
        i, j = todo.pop()
        if j - i < 2:
            continue
        distance = _distances(closed[i + 1 : j], closed[i], closed[j])
        k = int(np.argmax(distance))
        if distance[k] > tolerance:
            keep[i + 1 + k] = True
            todo += [(i, i + 1 + k), (i + 1 + k, j)]
    return closed[keep][:-1]


def _without_stairs(ring: Ring) -> Ring:
    """The middle of each edge, and the corners between two edges that are no steps: 3 pixels or longer."""
    after = np.roll(ring, -1, 0)
    long = np.abs(after - ring).sum(1) >= 3
    corner = long & np.roll(long, 1)
    points = np.stack([ring, (ring + after) / 2], 1).reshape(-1, 2)
    return points[np.stack([corner, np.ones_like(corner)], 1).reshape(-1)]


def _distances(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    along = b - a
    length = float(np.hypot(*along))
    if length == 0:
        return np.hypot(*(points - a).T)
    return np.abs(along[0] * (points[:, 1] - a[1]) - along[1] * (points[:, 0] - a[0])) / length


def _inner_point(ring: Ring) -> np.ndarray:
    """A point just inside a hole, beside the middle of its first edge, on the hole's side."""
    a, b = ring[0], ring[1]
    along = (b - a) / max(float(np.hypot(*(b - a))), 1e-9)
    return (a + b) / 2 + 0.01 * np.array([along[1], -along[0]])  # the left hand: the object is on the right


def _inside(point: np.ndarray, ring: Ring) -> bool:
    x, y = ring.T
    x2, y2 = np.roll(x, -1), np.roll(y, -1)
    across = (y > point[1]) != (y2 > point[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        where = x + (point[1] - y) * (x2 - x) / (y2 - y)
    return bool((across & (point[0] < where)).sum() % 2)
