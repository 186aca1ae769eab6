"""Segmentations: what each encloses, without drawing it, and what is wrong with it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import msgspec
import numpy as np

from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.geometry import Rings, boxes_of_runs, nested
from maskrcnn_coco.data.audit.rle_runs import RunLists
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.masks import MAX_WALK, checked_runs, decode_mask, plain_polygons
from maskrcnn_coco.errors import DataError

CHUNK = 5_000
NESTED_SAMPLE = 5_000
"""Objects of several parts that are looked at for parts within parts: how a set is written shows in so many."""
CROSSING_SAMPLE = 60_000
"""Most polygon parts that are examined for self-crossing: it costs points squared, and is only worth an info."""

Polygons = list[list[float]]


class _Rle(msgspec.Struct, gc=False):
    size: tuple[int, int]
    counts: str | list[int]


Segment = Polygons | dict[str, msgspec.Raw] | None
_typed = msgspec.json.Decoder(list[Polygons | _Rle | None])
_segment = msgspec.json.Decoder(Segment)
_rle_object = msgspec.json.Decoder(dict[str, msgspec.Raw])
_any = msgspec.json.Decoder()
_RLE_CODES = (("RLE has size", "RLE_SIZE"), ("add up", "RLE_SUM"))


@dataclass
class Shapes:
    """What each mask encloses: ``extent`` xyxy float64 (A, 4), clipped to the image, and ``area`` (A,), both
    NaN where the segmentation is missing or bad. ``raw`` is the extent as written, also where it leaves the image or an
    RLE says its sides the other way round. ``missing`` bool (A,). Counts for the findings about the whole set."""

    extent: np.ndarray
    raw: np.ndarray
    area: np.ndarray
    missing: np.ndarray
    multipart: int = 0
    nested: dict[int, float] = field(default_factory=dict)
    """Rows with a part within another of their parts → what such parts enclose, square pixels."""
    rle_objects: int = 0
    crossing_seen: int = 0
    odd_forms: int = 0
    turned_sides: int = 0

    @staticmethod
    def none(count: int) -> Shapes:
        """Of ``count`` annotations, nothing known yet."""
        return Shapes(
            np.full((count, 4), np.nan), np.full((count, 4), np.nan), np.full(count, np.nan), np.zeros(count, bool)
        )


def measure(table: CocoTable, report: Reporter) -> Shapes:
    """Look at every segmentation; findings about single ones go to ``report``."""
    shapes = Shapes.none(len(table.ann_ids))
    for rows, texts in _chunks(table):
        try:
            segments = _typed.decode(b"[" + b",".join(texts) + b"]")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            _one_by_one(table, list(zip(rows, texts, strict=True)), shapes, report)
            continue
        polygons: list[Polygons] = []
        masks: list[_Rle] = []
        where: dict[type, list[int]] = {list: [], _Rle: [], type(None): []}
        for row, segment in zip(rows, segments, strict=True):
            kind = type(segment)
            where[kind].append(row)
            if kind is list:
                polygons.append(segment)  # pyright: ignore[reportArgumentType]
            elif kind is _Rle:
                masks.append(segment)  # pyright: ignore[reportArgumentType]
        shapes.missing[where[type(None)]] = True
        _polygons(table, where[list], polygons, shapes, report)
        _rles(table, np.array(where[_Rle], np.int64), masks, shapes, report)
    return shapes


def along_rows(table: CocoTable) -> np.ndarray:
    """Extents of RLE masks as if their runs went along rows, xyxy float64 (A, 4); NaN for polygons and what is bad."""
    found = np.full((len(table.ann_ids), 4), np.nan)
    for rows, texts in _chunks(table):
        for ann, text in zip(rows, texts, strict=True):
            size = _image_size(table, ann) if text[:1] == b"{" else None
            if size is None:
                continue
            try:
                value = _any.decode(text)
                sides = value.get("size")
                runs = checked_runs(value, *(size if list(sides or []) == [*size] else size[::-1]))
            except (DataError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, AttributeError):
                continue
            found[ann] = boxes_of_runs(runs, size[1])[1][[1, 0, 3, 2]]
    return found


def _chunks(table: CocoTable) -> Iterator[tuple[range, list[bytes]]]:
    count = len(table.ann_ids)
    for start in range(0, count, CHUNK):
        rows = range(start, min(start + CHUNK, count))
        yield rows, [t or b"null" for t in table.segmentations.between(rows.start, rows.stop)]


def _rles(table: CocoTable, anns: np.ndarray, found: list[_Rle], shapes: Shapes, report: Reporter) -> None:
    """Judge RLE masks at once; those with a fault, and what is rare, one by one."""
    if not found:
        return
    rows = np.maximum(table.ann_image[anns], 0)
    sizes = np.stack([table.heights[rows], table.widths[rows]], axis=1).astype(np.int64)
    try:
        given = np.fromiter(chain.from_iterable([f.size for f in found]), np.int64, 2 * len(found)).reshape(-1, 2)
    except OverflowError:
        given = np.zeros_like(sizes)
    plain = (table.ann_image[anns] >= 0) & (sizes > 0).all(axis=1) & (given == sizes).all(axis=1)
    texts = np.fromiter([type(f.counts) is str for f in found], bool, len(found))
    filled = np.fromiter([len(f.counts) > 0 for f in found], bool, len(found))
    slow = ~(plain & filled)
    for kind, some in ((True, texts), (False, ~texts)):
        at = np.flatnonzero(some & plain & filled)
        if not len(at):
            continue
        pixels = sizes[at].prod(axis=1)
        counts: list[Any] = [found[i].counts for i in at.tolist()]
        try:
            runs = (
                RunLists.of_texts([c.encode() for c in counts], pixels) if kind else RunLists.of_lists(counts, pixels)
            )
        except (OverflowError, UnicodeEncodeError):  # a run beyond 64 bits, half a character
            slow[at] = True
            continue
        slow[at] = ~runs.good
        area, extents = runs.extents(sizes[at, 0])
        _note_rles(anns[at][runs.good], area[runs.good], extents[runs.good], table, shapes, report)
    for ann in anns[slow].tolist():
        _rle(table, ann, _rle_object.decode(table.segmentation_raw(ann)), shapes, report)


def _note_rles(
    anns: np.ndarray, pixels: np.ndarray, extents: np.ndarray, table: CocoTable, shapes: Shapes, report: Reporter
) -> None:
    shapes.rle_objects += int((~table.iscrowd[anns]).sum())
    shapes.area[anns] = pixels
    shapes.extent[anns] = shapes.raw[anns] = extents
    for ann in anns[pixels == 0].tolist():
        report.add("MASK_EMPTY", "the RLE has no foreground pixel", ann=ann)


def _one_by_one(table: CocoTable, texts: list[tuple[int, bytes]], shapes: Shapes, report: Reporter) -> None:
    """A chunk that holds something else than polygons of numbers and RLE: what does not fit."""
    plain: list[tuple[int, Polygons]] = []
    odd: list[tuple[int, Polygons]] = []
    for ann, text in texts:
        into = plain
        try:
            segment: object = _segment.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            segment, into = _untyped(text), odd
        if isinstance(segment, dict):
            _rle(table, ann, segment, shapes, report)
        elif isinstance(segment, list):
            into.append((ann, segment))
        elif segment is None or segment == "NaN":  # pandas writes NaN where there is nothing
            shapes.missing[ann] = True
        else:
            report.add("SEGMENTATION_BAD", f"it is {str(segment)[:40]!r}", ann=ann)
    _polygons(table, [a for a, _ in plain], [s for _, s in plain], shapes, report)
    _polygons_apart(table, odd, shapes, report)


def _untyped(text: bytes) -> object:
    """What is neither polygons of numbers nor RLE, decoded as far as it goes."""
    try:
        return _any.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        return [[f"{e}"]] if text[:1] == b"[" else str(e)


def _image_size(table: CocoTable, ann: int) -> tuple[int, int] | None:
    row = int(table.ann_image[ann])
    if row < 0 or table.heights[row] <= 0 or table.widths[row] <= 0:
        return None
    return int(table.heights[row]), int(table.widths[row])


def _rle(table: CocoTable, ann: int, segment: dict[str, msgspec.Raw], shapes: Shapes, report: Reporter) -> None:
    size = _image_size(table, ann)
    if size is None:
        return
    value: dict[str, Any] = {}
    try:
        value = {k: _any.decode(v) if k in ("size", "counts") else None for k, v in segment.items()}
        runs = checked_runs(value, *size)
    except (DataError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        text = str(e.what if isinstance(e, DataError) else e).removeprefix("the segmentation cannot be used: ")
        other = "RLE_BAD" if {"size", "counts"} & segment.keys() else "SEGMENTATION_BAD"
        report.add(next((c for word, c in _RLE_CODES if word in text), other), text, ann=ann)
        if value.get("size") == [size[1], size[0]]:
            _turned(ann, value, size, shapes)
        return
    shapes.rle_objects += not table.iscrowd[ann]
    shapes.area[ann], extent = boxes_of_runs(runs, size[0])
    shapes.extent[ann] = shapes.raw[ann] = extent
    if shapes.area[ann] == 0:
        report.add("MASK_EMPTY", "the RLE has no foreground pixel", ann=ann)


def _turned(ann: int, value: dict[str, Any], size: tuple[int, int], shapes: Shapes) -> None:
    """An RLE that gives width before height: where it would lie if its runs are right."""
    with contextlib.suppress(DataError):
        shapes.raw[ann] = boxes_of_runs(checked_runs(value, size[1], size[0]), size[0])[1]
        shapes.turned_sides += 1


def _polygons(table: CocoTable, anns: list[int], found: list[Polygons], shapes: Shapes, report: Reporter) -> None:
    """Judge lists of numbers; where all have the right lengths, which is the rule, none is looked at one by one."""
    parts = list(chain.from_iterable(found))
    counts = np.fromiter(map(len, found), np.int64, len(found))
    lengths = np.fromiter(map(len, parts), np.int64, len(parts))
    if len(parts) and (counts > 0).all() and ((lengths >= 6) & (lengths % 2 == 0)).all():
        _judge(table, Rings.of(parts), np.repeat(np.array(anns, np.int64), counts), shapes, report)
    else:
        _polygons_apart(table, list(zip(anns, found, strict=True)), shapes, report)


def _polygons_apart(table: CocoTable, found: list[tuple[int, Polygons]], shapes: Shapes, report: Reporter) -> None:
    """Judge polygons of which some have faults: those are reported, the rest is judged as usual."""
    parts: list[list[float]] = []
    owners: list[int] = []
    for ann, segment in found:
        if not segment:
            shapes.missing[ann] = True
        usual = plain_polygons(segment)
        shapes.odd_forms += usual is not segment
        kept = _sound_parts(ann, usual, report) if segment else []
        parts += kept
        owners += [ann] * len(kept)
    if parts:
        _judge(table, Rings.of(parts), np.array(owners), shapes, report)


def _numbers(part: list[float]) -> bool:
    if not all(type(v) is float or type(v) is int for v in part):
        return False
    try:
        return bool(np.isfinite(np.array(part, np.float64)).all())
    except (OverflowError, TypeError, ValueError):
        return False


def _sound_parts(ann: int, segment: Polygons, report: Reporter) -> list[list[float]]:
    """The parts that enclose something; what is wrong with the others is reported."""
    for p in segment:
        if not isinstance(p, list):
            report.add("SEGMENTATION_BAD", f"a polygon is {str(p)[:40]!r}, expected a list of numbers", ann=ann)
            return []
        if not _numbers(p):
            report.add("POLYGON_NONFINITE", "a polygon holds something other than finite numbers", ann=ann)
            return []
        if len(p) % 2:
            report.add("POLYGON_ODD", f"a polygon has {len(p)} coordinates", ann=ann)
            return []
    kept = [p for p in segment if len(p) >= 6]
    if not kept:
        report.add(
            "POLYGON_SHORT", f"the longest of {len(segment)} parts has {max(map(len, segment)) // 2} points", ann=ann
        )
    elif len(kept) < len(segment):
        report.add(
            "POLYGON_PART_SHORT", f"{len(segment) - len(kept)} of {len(segment)} parts have under 3 points", ann=ann
        )
    return kept


def _judge(table: CocoTable, rings: Rings, owner: np.ndarray, shapes: Shapes, report: Reporter) -> None:
    first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
    anns = owner[first]
    before = shapes.multipart
    shapes.multipart += int((np.diff(first, append=len(owner)) > 1).sum())
    shapes.nested |= nested(rings, owner, first, max(0, NESTED_SAMPLE - before))
    extents = rings.extents()
    extent = np.concatenate(
        [np.minimum.reduceat(extents[:, :2], first, axis=0), np.maximum.reduceat(extents[:, 2:], first, axis=0)], axis=1
    )
    known = table.ann_image[anns] >= 0
    rows = np.where(known, table.ann_image[anns], 0)
    size = np.stack([table.widths[rows], table.heights[rows]], axis=1).astype(np.float64)
    size[~known | (size <= 0).any(axis=1)] = np.nan
    reach = 100 + 4 * size.sum(axis=1)
    finite = np.logical_and.reduceat(rings.finite(), first)
    with np.errstate(invalid="ignore"):
        far = finite & ((extent.min(axis=1) < -reach) | (extent.max(axis=1) > reach))
        over = np.maximum(-extent[:, :2], extent[:, 2:] - size).max(axis=1)
    clipped = np.stack(
        [*(np.clip(extent[:, i], 0, size[:, i % 2]) for i in range(4))], axis=1
    )  # np.clip keeps NaN sizes out: they become NaN
    area = np.add.reduceat(rings.areas(), first)
    for i in np.flatnonzero(~finite).tolist():
        report.add("POLYGON_NONFINITE", "a coordinate is not finite", ann=int(anns[i]))
    for i in np.flatnonzero(far).tolist():
        report.add("POLYGON_FAR", f"a polygon spans {_shown(extent[i])}", ann=int(anns[i]))
    walk = np.add.reduceat(rings.outlines(), first)
    for i in np.flatnonzero(finite & ~far & (walk > MAX_WALK)).tolist():
        report.add("POLYGON_LONG", f"its outline is {walk[i]:.3g} pixels long", ann=int(anns[i]))
    good = finite & ~far & (walk <= MAX_WALK)
    for i in np.flatnonzero(good & (over >= 1)).tolist():
        w, h = size[i].tolist()
        report.add("POLYGON_OUTSIDE", f"it spans {_shown(extent[i])}, the image is {w:g}×{h:g}", ann=int(anns[i]))
    shapes.extent[anns[good]] = clipped[good]
    shapes.raw[anns[finite]] = extent[finite]
    shapes.area[anns[good]] = area[good]
    inside = np.minimum(clipped[:, 2] - clipped[:, 0], clipped[:, 3] - clipped[:, 1])
    # Only what is small, thin as a sliver, or over the border can miss all pixel centres: the rest is not drawn.
    thin = (area < np.maximum(walk, 4)) | (inside < 2) | (over > 0)
    for i in np.flatnonzero(good & thin).tolist():
        _draw(table, int(anns[i]), shapes, report)
    _crossings(rings, owner, shapes, report)


def _crossings(rings: Rings, owner: np.ndarray, shapes: Shapes, report: Reporter) -> None:
    room = CROSSING_SAMPLE - shapes.crossing_seen
    if room <= 0:
        return
    count = min(room, len(rings.starts))
    shapes.crossing_seen += count
    some = Rings(rings.x, rings.y, rings.starts[:count], rings.lengths[:count])
    with np.errstate(over="ignore", invalid="ignore"):
        crossing = np.flatnonzero(some.crossing())
    for ann in np.unique(owner[crossing]).tolist():
        report.add("POLYGON_CROSSING", "two of its edges cross", ann=ann)


def _draw(table: CocoTable, ann: int, shapes: Shapes, report: Reporter) -> None:
    """Draw one mask to see whether it is empty, and count its pixels."""
    size = _image_size(table, ann)
    if size is None:
        return
    try:
        pixels = int(decode_mask(table.segmentation_raw(ann), *size).sum())
    except DataError as e:
        report.add("POLYGON_FAR", e.what, ann=ann)
        return
    shapes.area[ann] = pixels
    if pixels == 0:
        report.add("MASK_EMPTY", "the polygon covers no pixel of the image", ann=ann)


def _shown(extent: np.ndarray) -> str:
    x1, y1, x2, y2 = (f"{v:.6g}" for v in extent.tolist())
    return f"x {x1} to {x2}, y {y1} to {y2}"
