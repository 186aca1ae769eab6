"""Boxes against the extents of their masks, as they are and read otherwise. NumPy only.

Boxes and extents are x1, y1, x2, y2 in pixels, the far corner outside; extents are NaN where a mask is empty.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from maskrcnn_coco.findings.facts import Geometry

SLACK, AGREE, RESTORED = 2.0, 0.5, 0.7
"""Pixels by which sides may differ; IoU from which a box and a mask agree; and the stricter one of a reading."""
UNIT, FEW = 1.5, 5
"""Corners up to here are shares of the image; objects that a reading with free numbers needs."""


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes row by row, float64 (N,); 0 where one is inverted or NaN."""
    with np.errstate(invalid="ignore"):
        near, far = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, 2:], b[:, 2:])
        inside = np.clip(far - near, 0, None).prod(axis=1)
        areas = [np.clip(x[:, 2:] - x[:, :2], 0, None).prod(axis=1) for x in (a, b)]
        union = areas[0] + areas[1] - inside
    return np.where(union > 0, inside / np.where(union > 0, union, 1), 0.0)


def agree(boxes: np.ndarray, extents: np.ndarray, least: float = AGREE) -> np.ndarray:
    """bool (N,): each box fits its extent, by overlap or to within `SLACK` pixels and a quarter of its size."""
    with np.errstate(invalid="ignore"):
        size = np.clip((extents[:, 2:] - extents[:, :2]).min(axis=1) / 4, 1, SLACK)
        close = (np.abs(boxes - extents).max(axis=1) <= size) & (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    return close | (overlap(boxes, extents) >= least)


def amodal(boxes: np.ndarray, extents: np.ndarray) -> np.ndarray:
    """bool (N,): the mask lies in its box, which reaches beyond it."""
    with np.errstate(invalid="ignore"):
        near, far = boxes[:, :2] <= extents[:, :2] + SLACK, boxes[:, 2:] >= extents[:, 2:] - SLACK
    return np.all(np.hstack([near, far]), axis=1)


@dataclass
class Objects:
    """Boxes, extents and image sizes (height, width) of objects, and their masks' extents if counted along rows."""

    boxes: np.ndarray
    extents: np.ndarray
    sizes: np.ndarray
    image_ids: np.ndarray
    by_rows: list[np.ndarray] = field(default_factory=list)
    """Extents under both ways of having mixed up rows and columns; NaN where it was not tried."""


def geometry_of(o: Objects, of: str = "training data") -> Geometry:
    """How many agree as they are, and of the others how many under each reading."""
    boxes, extents = o.boxes.astype(np.float64), o.extents.astype(np.float64)
    h, w = o.sizes[:, 0].astype(np.float64), o.sizes[:, 1].astype(np.float64)
    sides = np.stack([w, h, w, h], axis=1)
    with np.errstate(invalid="ignore"):
        known = np.isfinite(extents).all(axis=1) & np.isfinite(boxes).all(axis=1)
        unit = (boxes >= -0.01).all(1) & (boxes <= UNIT).all(1) & (np.minimum(h, w) >= 16)
        outside = ((boxes < -1) | (boxes > sides + 1)).any(axis=1)
    fits = agree(boxes, extents)
    bad = known & ~fits
    of_bad = bad & amodal(boxes, extents)
    geometry = Geometry(
        measured=int(known.sum()),
        agree=int((known & fits).sum()),
        disagree=int(bad.sum()),
        amodal=int(of_bad.sum()),
        boxes=len(boxes),
        unit_boxes=int(unit.sum()),
        outside=int(outside.sum()),
        of=of,
    )
    shown = bad if bad.any() else unit | outside
    geometry.image_ids = list(dict.fromkeys(int(i) for i in o.image_ids[shown]))[:20]
    if bad.any():
        readings = _readings(boxes[bad], extents[bad], sides[bad], [r[bad] for r in o.by_rows])
        geometry.readings = {name: int(n) for name, n in readings.items() if n}
    return geometry


BOXES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "boxes as x, y, width, height": lambda b, _: np.concatenate([b[:, :2], b[:, :2] + b[:, 2:]], axis=1),
    "boxes as corners": lambda b, _: np.concatenate([b[:, :2], b[:, 2:] - b[:, :2]], axis=1),
    "boxes as centre and size": lambda b, _: np.concatenate([b[:, :2] - b[:, 2:] / 2, b[:, :2] + b[:, 2:] / 2], axis=1),
    "x and y of boxes exchanged": lambda b, _: b[:, [1, 0, 3, 2]],
    "boxes 0..1": lambda b, sides: b * sides,
}
"""Reading → what boxes (N, 4) in images of ``sides``, width and height twice (N, 4), are under it."""


def _readings(boxes: np.ndarray, extents: np.ndarray, sides: np.ndarray, by_rows: list[np.ndarray]) -> dict[str, int]:
    w, h = sides[:, 0], sides[:, 1]
    mirrored = np.stack([w - extents[:, 2], extents[:, 1], w - extents[:, 0], extents[:, 3]], axis=1)
    turned = np.stack([extents[:, 0], h - extents[:, 3], extents[:, 2], h - extents[:, 1]], axis=1)
    pairs = {name: (read(boxes, sides), extents) for name, read in BOXES.items()}
    pairs |= {"masks mirrored left to right": (boxes, mirrored), "masks mirrored top to bottom": (boxes, turned)}
    found = {name: int(agree(a, b, RESTORED).sum()) for name, (a, b) in pairs.items()}
    if by_rows:
        fits = np.logical_or.reduce([agree(boxes, e, RESTORED) for e in by_rows])
        found["masks counted along rows"] = int(fits.sum())
    # A transposition of masks and one of boxes are the same sight: only of images that are no squares, whose masks
    # would not fit them, is it known which of the two it is.
    if bool((w == h).all()):
        found["x and y exchanged"] = found.pop("x and y of boxes exchanged")
    if len(boxes) >= FEW:
        found |= _fitted(boxes, extents)
    return found


def _fitted(boxes: np.ndarray, extents: np.ndarray) -> dict[str, int]:
    """Readings with numbers of their own: one scale an axis, or one way, for all objects."""
    with np.errstate(invalid="ignore", divide="ignore"):
        ratio = np.concatenate([extents[:, :2] + extents[:, 2:], extents[:, 2:] - extents[:, :2]], axis=1)
        ratio /= np.concatenate([boxes[:, :2] + boxes[:, 2:], boxes[:, 2:] - boxes[:, :2]], axis=1)
        scale = np.median(ratio[:, 2:], axis=0)
        way = np.median((extents[:, :2] + extents[:, 2:] - boxes[:, :2] - boxes[:, 2:]) / 2, axis=0)
    found = {}
    if np.isfinite(scale).all() and (scale > 0).all() and np.abs(np.log(scale)).max() > 0.15:
        found["boxes of another image size"] = int(agree(boxes * np.tile(scale, 2), extents, RESTORED).sum())
    if np.isfinite(way).all() and np.abs(way).max() > SLACK:
        found["masks moved"] = int(agree(boxes + np.tile(way, 2), extents, RESTORED).sum())
    return found
