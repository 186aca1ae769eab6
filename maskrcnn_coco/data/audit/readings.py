"""How the boxes and masks of a set are written, found from their agreement: each reading that exporters are known for
is tried on all of them, and the one under which nearly all agree is named. Where two would do, none is.

Boxes are xyxy here, pixels of the image, float64 (A, 4), not clipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from maskrcnn_coco.data.audit.boxes import sides_of
from maskrcnn_coco.data.audit.geometry import overlap
from maskrcnn_coco.data.audit.segmentations import Shapes, along_rows
from maskrcnn_coco.data.coco.table import CocoTable

NEARLY_ALL, MOST = 0.9, 0.5
"""Share of annotations that must agree under a reading, and that may agree as they are, for it to hold for the set."""
SOME = 0.1
"""Share from which a reading is named that holds for a part of the set, the rest being right as it is."""
FEWEST = 5
SAMPLE = 20_000
"""So many annotations tell how a set is written."""
CLOSE, SAME = 2.0, 0.7
"""Pixels by which the sides of box and mask may differ, or overlap from which they are the same."""
TIE = 0.03
"""Readings whose mean overlap differs by less cannot be told apart."""

READING_CODES = frozenset(
    {
        "BOX_XYXY",
        "BOX_CENTER",
        "BOX_SWAPPED",
        "BOX_UNIT",
        "BOX_SCALED",
        "MASK_SWAPPED",
        "MASK_ROW_MAJOR",
        "MASK_SIDES",
        "MASK_UNIT",
        "MASK_SCALED",
        "ALL_UNIT",
        "ALL_SWAPPED",
    }
)
"""Findings that name how the set is written; `reread` undoes it."""

Map = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Values as in the file (A, 4), image sizes (A, 2) as width, height → xyxy in pixels."""


@dataclass(frozen=True)
class Reading:
    """A way to read a set. ``boxes`` gives xyxy from the file's four numbers, None: they are right as xywh.

    ``masks`` is None (right as they are), "swapped" (x and y), "rows" (RLE that runs along rows), "sides" (RLE whose
    size says width, height) or "scaled": by ``scale`` times ``unit``, the image's width and height where True.
    ``fitted``: it has numbers that were chosen so that it fits.
    """

    code: str
    text: str
    boxes: Map | None = None
    masks: str | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    unit: bool = False
    fitted: bool = False

    def factors(self, size: np.ndarray) -> np.ndarray:
        """By what x and y of masks are multiplied, for images of ``size``, width and height (A, 2)."""
        return np.array(self.scale) * (size if self.unit else 1.0)


@dataclass(frozen=True)
class Agreement:
    """What the tries gave: ``count`` annotations have box and mask; ``as_is`` and ``agree`` are shares of those.

    ``reading`` is the one that holds, for the annotations in ``rows``, bool (A,); those in ``explained`` agree under
    it, and not as they are. ``others`` also would: then it is not known which is true, and nothing is to be repaired.
    """

    count: int
    as_is: float
    agree: float
    reading: Reading
    rows: np.ndarray
    explained: np.ndarray
    others: tuple[Reading, ...] = ()


def agreement(table: CocoTable, shapes: Shapes) -> Agreement | None:
    """The reading of this set, None where most of it agrees as it is, or under none."""
    known = _known(table, shapes)
    count = int(known.sum())
    if count < FEWEST:
        return None
    view = _View.of(table, shapes, np.flatnonzero(known))
    right = view.agrees(None)
    left = int((~right).sum())
    if left < max(FEWEST, SOME * count):
        return None
    some = view.sample(SAMPLE)
    if shapes.rle_objects or shapes.turned_sides:
        along = along_rows(table)
        view, some = (replace(v, along=along[v.rows]) for v in (view, some))
    right_there = some.agrees(None)
    found = [(some.worth(r, right_there), r) for r in _readings(some)]
    found = [(worth, r) for worth, r in found if worth is not None]
    if not found:
        return None
    clear = some.plausible(_best(found, some))
    agree = view.agrees(clear[0])
    whole = float(agree.mean()) >= NEARLY_ALL
    rows, explained = np.zeros(len(known), bool), np.zeros(len(known), bool)
    rows[view.rows[np.ones(count, bool) if whole else agree & ~right]] = True
    explained[view.rows[agree & (whole | ~right)]] = True
    if whole and clear[0].masks is None:
        rows |= _written_alike(table, shapes, clear[0]) & ~known
    return Agreement(count, float(right.mean()), float(agree.mean()), clear[0], rows, explained, tuple(clear[1:]))


def _written_alike(table: CocoTable, shapes: Shapes, reading: Reading) -> np.ndarray:
    """bool (A,): boxes that one tool wrote like all others of its set: of crowds, and of objects without a mask.

    Those of crowds only where their masks do not say that they are right as they are.
    """
    width, height = sides_of(table)
    finite = np.isfinite(table.boxes).all(axis=1) & np.isfinite(width) & np.isfinite(height)
    masked = np.flatnonzero(finite & np.isfinite(shapes.raw).all(axis=1))
    view = _View.of(table, shapes, masked)
    finite[masked[view.agrees(None) & ~view.agrees(reading)]] = False
    return finite


def _best(found: list[tuple[float, Reading]], view: _View) -> list[Reading]:
    """The readings that fit best, of those that come to the same one only; what is fitted must fit better."""
    best = max(worth for worth, _ in found)
    near = [r for worth, r in found if worth > best - TIE]
    near = [r for r in near if not r.fitted] or near
    kept: list[Reading] = []
    for reading in near:
        if not any(view.same(reading, k) for k in kept):
            kept.append(reading)
    return kept


def _known(table: CocoTable, shapes: Shapes) -> np.ndarray:
    """bool (A,): object with four finite numbers, an image of known size, and a mask that encloses something."""
    width, height = sides_of(table)
    masks = np.isfinite(shapes.raw).all(axis=1)
    return np.isfinite(table.boxes).all(axis=1) & np.isfinite(width) & np.isfinite(height) & masks & ~table.iscrowd


@dataclass(frozen=True)
class _View:
    """The annotations that can be judged: file's boxes, mask extents (also read along rows), image sizes."""

    rows: np.ndarray
    boxes: np.ndarray
    extent: np.ndarray
    along: np.ndarray
    size: np.ndarray
    usable: np.ndarray

    @staticmethod
    def of(table: CocoTable, shapes: Shapes, rows: np.ndarray) -> _View:
        size = np.stack(sides_of(table), axis=1)[rows]
        usable = np.asarray(np.isfinite(shapes.extent[rows]).all(axis=1))
        unknown = np.full((len(rows), 4), np.nan)
        return _View(rows, table.boxes[rows], shapes.raw[rows], unknown, size, usable)

    def sample(self, most: int) -> _View:
        if len(self.rows) <= most:
            return self
        at = np.linspace(0, len(self.rows) - 1, most).astype(np.int64)
        return _View(*(v[at] for v in vars(self).values()))

    def is_spread(self) -> bool:
        """The masks lie at different places: where all are in one, a factor can be found for any boxes."""
        with np.errstate(invalid="ignore"):
            middle = (self.extent[:, :2] + self.extent[:, 2:]) / 2
            side = np.nanmedian(self.extent[:, 2:] - self.extent[:, :2], axis=0)
            low, high = np.nanpercentile(middle, (10, 90), axis=0)
        return bool((high - low > side / 2).any())

    def box(self, reading: Reading | None) -> np.ndarray:
        """The boxes as xyxy under ``reading``."""
        with np.errstate(over="ignore", invalid="ignore"):
            return (reading.boxes if reading is not None and reading.boxes else _xywh)(self.boxes, self.size)

    def mask(self, reading: Reading | None) -> np.ndarray:
        """The masks' extents under ``reading``."""
        kind = None if reading is None else reading.masks
        runs = np.isfinite(self.along).all(axis=1, keepdims=True)
        if kind == "rows":
            return np.where(runs, self.along, self.extent)
        if kind == "swapped":
            return np.where(runs, self.along, self.extent[:, [1, 0, 3, 2]])
        if kind == "scaled" and reading is not None:
            return np.where(runs, np.nan, self.extent * np.tile(reading.factors(self.size), 2))
        return self.extent

    def agrees(self, reading: Reading | None) -> np.ndarray:
        """bool (A,): box and mask are the same place of the image, and are in it."""
        box, extent = self.box(reading), self.mask(reading)
        limit = np.tile(self.size, 2)
        slack = np.maximum(CLOSE, 0.02 * limit)
        with np.errstate(over="ignore", invalid="ignore"):
            inside = ((box >= -slack) & (box <= limit + slack)).all(axis=1)
            inside &= ((extent[:, :2] < self.size) & (extent[:, 2:] > 0)).all(axis=1)
            sides = (box[:, 2:] - box[:, :2] >= 1).all(axis=1) & (extent[:, 2:] - extent[:, :2] >= 1).all(axis=1)
            a, b = np.clip(box, 0, limit), np.clip(extent, 0, limit)
            shared = overlap(a, b)
            close = (np.abs(a - b).max(axis=1) <= CLOSE) & (shared > 0.3)
        found = inside & sides & (close | (shared >= SAME))
        return found if reading is not None and reading.masks else found & self.usable

    def worth(self, reading: Reading, right: np.ndarray) -> float | None:
        """How well boxes and masks fit each other under ``reading``, None where that proves nothing."""
        agree = self.agrees(reading)
        share, only = float(agree.mean()), int((agree & ~right).sum())
        if only < FEWEST:
            return None
        if reading.boxes and reading.masks:
            # Box and mask changed alike agree before and after: only what leaves the image speaks for it.
            holds, count = share >= 0.99 and only >= 0.2 * len(right), agree
        elif share >= NEARLY_ALL and right.mean() <= MOST:
            holds, count = True, agree
        else:
            holds, count = (agree | right).mean() >= NEARLY_ALL and only >= SOME * len(right), agree & ~right
        return float(overlap(self.box(reading), self.mask(reading))[count].mean()) if holds else None

    def same(self, a: Reading, b: Reading) -> bool:
        """Whether two readings come to the same boxes and masks."""
        with np.errstate(over="ignore", invalid="ignore"):
            near = [np.abs(f(a) - f(b)).max(axis=1) <= CLOSE for f in (self.box, self.mask)]
        return float((near[0] & near[1]).mean()) >= 0.95

    def plausible(self, readings: list[Reading]) -> list[Reading]:
        """Those of readings that agree equally well of which what they leave unchanged can be true.

        What leaves its image is wrong as it is; an object cut off by the border ends exactly there.
        """
        if len(readings) < 2:
            return readings
        strange = [r for r in readings if self._stays_outside(r)]
        if strange and len(strange) < len(readings):
            readings = [r for r in readings if r not in strange]
        touching = [self._at_border(r) for r in readings]
        if max(touching) >= 3 and sum(t >= 3 for t in touching) == 1:
            return [readings[int(np.argmax(touching))]]
        return readings

    def _stays_outside(self, reading: Reading) -> bool:
        """What this reading leaves as it is leaves the image too often."""
        kept = self.mask(None) if reading.masks is None else self.box(None) if reading.boxes is None else None
        if kept is None:
            return False
        with np.errstate(invalid="ignore"):
            return float((kept > np.tile(self.size, 2) * 1.02 + CLOSE).any(axis=1).mean()) >= 0.02

    def _at_border(self, reading: Reading) -> int:
        """How many objects end at the right or lower border, in what this reading takes for right."""
        kept = self.mask(None) if reading.masks is None else self.box(None)
        other = self.box(None) if reading.masks is None else self.mask(None)
        with np.errstate(invalid="ignore"):
            mine, others = (np.abs(v[:, 2:] - self.size).min(axis=1) <= 0.5 for v in (kept, other))
        return int((mine & ~others).sum())


def _xywh(v: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:, :2], v[:, :2] + v[:, 2:]], axis=1)


def _xyxy(v: np.ndarray, _: np.ndarray) -> np.ndarray:
    return v


def _center(v: np.ndarray, _: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:, :2] - v[:, 2:] / 2, v[:, :2] + v[:, 2:] / 2], axis=1)


_FORMS: tuple[tuple[str, Map], ...] = (
    ("[x, y, width, height]", _xywh),
    ("[x1, y1, x2, y2]", _xyxy),
    ("[center x, center y, width, height]", _center),
)


def _turned(form: Map) -> Map:
    """``form`` of numbers that name y before x."""
    return lambda v, size: form(v[:, [1, 0, 3, 2]], size)


def _times(form: Map, scale: tuple[float, float], unit: bool) -> Map:
    factors = np.array(scale)
    return lambda v, size: form(v, size) * np.tile(factors * (size if unit else 1.0), 2)


def _readings(view: _View) -> Iterator[Reading]:
    """Every reading there is to try, plain ones first."""
    yield Reading("BOX_XYXY", "[x1, y1, x2, y2]", boxes=_xyxy)
    yield Reading("BOX_CENTER", "[center x, center y, width, height]", boxes=_center)
    for name, form in _FORMS[:2]:
        yield Reading("BOX_SWAPPED", f"{name} with x and y swapped", boxes=_turned(form))
    yield Reading("MASK_ROW_MAJOR", "RLE masks that run along rows", masks="rows")
    yield Reading("MASK_SWAPPED", "masks with x and y swapped", masks="swapped")
    yield Reading("MASK_SIDES", "RLE masks whose size says [width, height]", masks="sides")
    for name, form in _FORMS:
        yield Reading("BOX_UNIT", f"{name} in shares of the image, 0 to 1", boxes=_times(form, (1.0, 1.0), True))
    yield Reading("MASK_UNIT", "masks in shares of the image, 0 to 1", masks="scaled", unit=True)
    for name, form in _FORMS:
        both = _times(form, (1.0, 1.0), True)
        yield Reading(
            "ALL_UNIT", f"boxes ({name}) and masks in shares of the image", boxes=both, masks="scaled", unit=True
        )
    yield Reading("ALL_SWAPPED", "boxes and masks with x and y swapped", boxes=_turned(_xywh), masks="swapped")
    for name, form in _FORMS[:2]:
        yield from _scaled(view, name, form)


def _scaled(view: _View, name: str, form: Map) -> Iterator[Reading]:
    """Boxes, or masks, of images of another size: by one factor, or from images all of one size."""
    if not view.is_spread():
        return
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        box, extent = form(view.boxes, view.size), view.extent
        ratio = extent[:, 2:] / box[:, 2:]
        ratio[~(np.isfinite(ratio) & (ratio > 0)).all(axis=1)] = np.nan
        if not np.isfinite(ratio).any():
            return
        fixed, shared = np.nanmedian(ratio, axis=0), np.nanmedian(ratio / view.size, axis=0)
    for scale, unit in ((fixed, False), (shared, True)):
        sx, sy = (float(v) for v in scale)
        if not unit and max(abs(np.log(sx)), abs(np.log(sy))) < 0.05:
            continue
        meant = f"images {1 / sx:.0f}×{1 / sy:.0f}" if unit else f"images {1 / sx:.3g} × {1 / sy:.3g} times the size"
        yield Reading("BOX_SCALED", f"{name} in {meant}", boxes=_times(form, (sx, sy), unit), fitted=True)
        if form is _xywh and not unit:
            back = f"masks of images {sx:.3g} × {sy:.3g} times the size"
            yield Reading("MASK_SCALED", back, masks="scaled", scale=(1 / sx, 1 / sy), fitted=True)
        elif form is _xywh:
            tx, ty = (float(v) for v in np.nanmedian(view.size * ratio, axis=0))
            back = f"masks of images {tx:.0f}×{ty:.0f}"
            yield Reading("MASK_SCALED", back, masks="scaled", scale=(1 / tx, 1 / ty), unit=True, fitted=True)
