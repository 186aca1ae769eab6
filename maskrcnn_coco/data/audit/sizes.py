"""Files that all have another size than their entries say: one fault of the set, not one of each image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.placing import way_of
from maskrcnn_coco.data.audit.readings import READING_CODES
from maskrcnn_coco.data.coco.shared_arrays import Texts
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import probe
from maskrcnn_coco.data.masks import decode_mask, encode_rle, plain_polygons
from maskrcnn_coco.errors import DataError

SPECK = 8
"""Pixels below which a file is no picture."""
NEARLY_ALL, FEWEST = 0.9, 3
"""Share of the files that must have another size, and how many at least."""
SIZE_CODES = frozenset({"SIZES_SWAPPED", "IMAGES_RESIZED"})
"""Findings about the sizes of the whole set that a repair follows."""


def check_sizes_of_files(table: CocoTable, sizes: Sequence[tuple[int, int]], report: Reporter) -> None:
    """One finding where (nearly) all files have another size than their entries.

    Args:
        sizes: (height, width) of each file as it is read, (0, 0) where unknown.
    """
    given = np.stack([table.heights, table.widths], axis=1)
    files = np.array(sizes, np.int64).reshape(-1, 2)
    known = (given > 0).all(axis=1) & (files > 0).all(axis=1)
    wrong = known & (given != files).any(axis=1)
    if wrong.sum() < max(FEWEST, NEARLY_ALL * known.sum()):
        return
    row = int(np.flatnonzero(wrong)[0])
    (h, w), (gh, gw) = files[row].tolist(), given[row].tolist()
    example = f"the first file has {w}×{h} pixels, its entry says {gw}×{gh}"
    count = int(wrong.sum())
    if np.median(files[wrong].min(axis=1)) < SPECK <= np.median(given[wrong].min(axis=1)):
        return  # what stands in for pictures that are missing says nothing of a size
    swapped = bool((given[wrong] == files[wrong][:, ::-1]).all())
    way = way_of(table, np.flatnonzero(wrong), swapped=swapped)
    if way is not None:
        report.add(
            "IMAGES_CHANGED", f"{count} of {len(table)} files were {way} after annotation: {example}", count=count
        )
        return
    if swapped:
        text = f"width and height of the entries are exchanged in {count} of {len(table)} images: {example}"
        report.add("SIZES_SWAPPED", text, count=count)
        # Boxes and masks are those of the files: what fits the exchanged sides better says nothing of them.
        kept = [n for n, f in enumerate(report.findings) if f.code not in READING_CODES]
        report.findings = [report.findings[n] for n in kept]
        report.rows = [report.rows[n] for n in kept]
        return
    y, x = np.median(files[wrong] / given[wrong], axis=0)
    text = (
        f"{count} of {len(table)} files have {x:.3g} × {y:.3g} times the width and height of their entries: {example}"
    )
    report.add("IMAGES_RESIZED", text, count=count)


def at_size_of_files(table: CocoTable, *, swapped: bool) -> CocoTable:
    """``table`` in the pixels of its files: sizes, boxes, masks and areas; ``swapped``: the sizes alone.

    Files that cannot be read keep what their entries say.
    """
    given = np.stack([table.heights, table.widths], axis=1).astype(np.int64)
    files = np.array([_size(table, row) for row in range(len(table))], np.int64).reshape(-1, 2)
    files = np.where((files > 0) & (given > 0), files, given)
    new = replace(table, heights=files[:, 0].astype(np.int32), widths=files[:, 1].astype(np.int32), origin=None)
    if swapped:
        return new
    row = np.maximum(table.ann_image, 0)
    scale = (files / np.maximum(given, 1))[row][:, ::-1]  # x, y
    boxes = np.round(table.boxes * np.tile(scale, 2), 3)
    texts: list[Any] = table.segmentations.between(0, len(table.ann_ids))
    for n in np.flatnonzero((scale != 1).any(axis=1)).tolist():
        texts[n] = _scaled(texts[n], scale[n], tuple(given[row[n]].tolist()), tuple(files[row[n]].tolist()))
    area = np.round(table.area * scale.prod(axis=1), 3)
    return replace(new, boxes=boxes, segmentations=Texts.of(texts), area=area)


def _size(table: CocoTable, row: int) -> tuple[int, int]:
    try:
        facts = probe(table.image_root, table.file_name(row), decode=False)
    except DataError:
        return 0, 0
    return facts.height, facts.width


def _scaled(text: bytes, scale: np.ndarray, old: tuple[int, int], new: tuple[int, int]) -> bytes:
    try:
        value = msgspec.json.decode(text or b"null")
        if isinstance(value, dict):
            mask = decode_mask(value, *old)
            rows, columns = (((np.arange(n) + 0.5) * o / n).astype(np.int64) for n, o in zip(new, old, strict=True))
            return msgspec.json.encode(encode_rle(mask[rows[:, None], columns[None]]))
        if isinstance(value, list):
            parts = [np.array(p, np.float64).reshape(-1, 2) * scale for p in plain_polygons(value)]
            return msgspec.json.encode([np.round(p, 3).ravel().tolist() for p in parts])
    except (DataError, msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError, ValueError):
        pass  # it has a fault of its own, which stays
    return text
