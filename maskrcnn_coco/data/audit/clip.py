"""Polygons cut off at the border of their image (Sutherland and Hodgman, 1974)."""

from __future__ import annotations

Point = tuple[float, float]


def clip_polygon(coordinates: list[float], width: float, height: float) -> list[float]:
    """The part of a polygon [x1, y1, x2, y2, …] inside 0..width, 0..height, as such a list; [] for nothing."""
    points: list[Point] = list(zip(coordinates[::2], coordinates[1::2], strict=True))
    for axis, limit, keep_above in (
        (0, 0.0, True),
        (0, float(width), False),
        (1, 0.0, True),
        (1, float(height), False),
    ):
        points = _cut(points, axis, limit, keep_above)
    return [v for p in points for v in p]


def _cut(points: list[Point], axis: int, limit: float, keep_above: bool) -> list[Point]:
    kept: list[Point] = []
    for here, after in zip(points, points[1:] + points[:1], strict=True):
        inside, inside_after = ((p[axis] >= limit) == keep_above or p[axis] == limit for p in (here, after))
        if inside:
            kept.append(here)
        if inside != inside_after:
            share = (limit - here[axis]) / (after[axis] - here[axis])
            cut = [here[i] + share * (after[i] - here[i]) for i in (0, 1)]
            cut[axis] = limit
            kept.append((cut[0], cut[1]))
    return kept
