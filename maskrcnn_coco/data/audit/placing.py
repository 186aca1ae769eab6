"""Files of another size than their entries: were they stretched, cut, padded or turned? The pictures tell."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maskrcnn_coco.data.audit.content import picture
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.findings.content import HIGH, MOST, score

LOOKED_AT, FEWEST, AHEAD = 16, 4, 0.08
"""Pictures that are opened, most and least; and by how much of a rank one way must be ahead of stretching."""
Sides = np.ndarray
"""Width and height, float64 (2,)."""


def _placed(scale: Callable[[Sides, Sides], Sides], at: float) -> Callable[[np.ndarray, Sides, Sides], np.ndarray]:
    """Points in pixels of the entry → of the file: scaled, with the rest of the room divided by ``at``."""

    def place(points: np.ndarray, given: Sides, file: Sides) -> np.ndarray:
        factor = scale(given, file)
        return points * factor + (file - given * factor) * at

    return place


def _kept(given: Sides, file: Sides) -> Sides:
    return np.ones(2)


def _fitted(given: Sides, file: Sides) -> Sides:
    return np.full(2, (file / given).min())


WAYS: dict[str, Callable[[np.ndarray, Sides, Sides], np.ndarray]] = {
    "cut or padded at the right and below": _placed(_kept, 0.0),
    "cut or padded all around": _placed(_kept, 0.5),
    "cut or padded at the left and above": _placed(_kept, 1.0),
    "resized with their aspect kept, and padded all around (letterbox)": _placed(_fitted, 0.5),
    "resized with their aspect kept, and padded at the right and below": _placed(_fitted, 0.0),
}
TURNS: dict[str, Callable[[np.ndarray, Sides, Sides], np.ndarray]] = {
    "turned to the left": lambda p, given, file: np.stack([p[:, 1], given[0] - p[:, 0]], 1),
    "turned to the right": lambda p, given, file: np.stack([given[1] - p[:, 1], p[:, 0]], 1),
}


def way_of(table: CocoTable, rows: np.ndarray, *, swapped: bool) -> str | None:
    """How the files of ``rows`` came to their size, where their outlines fit so, and not as they are; else None.

    Args:
        swapped: the sides are exchanged; as they are means then that only the entries are wrong, else that files and
            outlines were stretched alike.
    """
    usable = ~table.iscrowd & (table.ann_image >= 0)
    ways = TURNS if swapped else WAYS
    found = []
    for row in rows[np.unique(np.linspace(0, len(rows) - 1, min(LOOKED_AT, len(rows))).astype(int))].tolist():
        seen = picture(table, row, usable)
        if seen is None or len(seen.points) < 8:
            continue
        height, width = table.size_of(row)
        given, file = np.array([width, height], np.float64), np.array(seen.sides, np.float64)
        points = seen.points * given
        plain = points if swapped else points * (file / given)
        laid = [plain, *(way(points, given, file) for way in ways.values())]
        found.append([score(seen.ranks, p / file) for p in laid])
    if len(found) < FEWEST:
        return None
    scores = np.array(found)
    best = int(scores.mean(axis=0).argmax())
    ahead = scores[:, best] - scores[:, 0]
    if best == 0 or scores[:, best].mean() < HIGH or ahead.mean() < AHEAD or (ahead > 0).mean() < MOST:
        return None
    return list(ways)[best - 1]
