"""Image files: there, whole, of the size their entry says, and each only once."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.near_copies import near_copies
from maskrcnn_coco.data.audit.sizes import check_sizes_of_files
from maskrcnn_coco.data.bit_depth import BitRange
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.file_names import FileIndex
from maskrcnn_coco.data.images import MAX_PIXELS, ImageFacts, is_thin, open_inside, probe
from maskrcnn_coco.data.stacks import shared_stacks
from maskrcnn_coco.errors import DataError

Depth = Literal["none", "headers", "all"]
FEW = 16
"""Levels of brightness below which a picture has lost what was in it, where there were four times as many."""


_NEAR = 100
"""Missing files whose neighbours are looked for, most."""


@dataclass(frozen=True)
class _Seen:
    """What one file showed: findings as (code, text), and its size in bytes, -1 where it cannot be opened."""

    found: tuple[tuple[str, str], ...]
    bytes: int
    size: tuple[int, int] = (0, 0)
    views: np.ndarray | None = None


def check_images(
    table: CocoTable,
    report: Reporter,
    depth: Depth,
    other: CocoTable | None,
    workers: int,
    *,
    min_size: int = 800,
    max_size: int = 1333,
) -> None:
    """Look at each file: "headers" opens it and reads its size, "all" also decodes it. Then duplicates and leaks."""
    _check_sides(table, report, min_size, max_size)
    if other is not None and other.json_path.resolve() == table.json_path.resolve():
        # Two parts of one file, as the run itself makes them, share no image; the same file twice shares all.
        shared = int(np.isin(table.image_ids, other.image_ids).sum())
        if shared:
            which = f"all {shared}" if shared == len(table) else f"{shared} of {len(table)}"
            text = f"training and validation are the same file: {which} images are in both"
            report.add("IMAGE_LEAK", text, count=shared)
            other = None
    if depth == "none":
        return
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        views = other is not None and depth == "all"
        seen = list(pool.map(lambda row: _look(table, row, depth == "all", views), range(len(table)), chunksize=16))
    _name_near(table, seen)
    stacks = _check_stacks(table, report)
    for row, one in enumerate(seen):
        for code, text in one.found:
            if not (code == "IMAGE_PAGES" and row in stacks):
                report.add(code, text, image=row)
    check_sizes_of_files(table, [s.size for s in seen], report)
    _check_same(table, [s.bytes for s in seen], other, report)
    if other is not None and depth == "all":
        _check_near(table, other, report, workers, [s.views for s in seen])


def _check_near(
    table: CocoTable, other: CocoTable, report: Reporter, workers: int, views: list[np.ndarray | None]
) -> None:
    """Copies that were saved anew, resized, cut, mirrored or turned; those equal byte for byte have been told."""
    told = {f.image_id for f in report.findings if f.code == "IMAGE_LEAK"}
    for copy in near_copies(table, other, workers, views):
        if int(table.image_ids[copy.one]) in told:
            continue
        how = f", {copy.how}" if copy.how else ""
        name = other.file_name(copy.other)
        report.add(
            "IMAGE_NEAR_LEAK", f"nearly the same picture as {name!r} of {other.json_path.name}{how}", image=copy.one
        )


def _check_sides(table: CocoTable, report: Reporter, min_size: int, max_size: int) -> None:
    pixels = table.heights.astype(np.int64) * table.widths
    short, long = np.minimum(table.heights, table.widths), np.maximum(table.heights, table.widths)
    for row in np.flatnonzero((pixels > MAX_PIXELS) | ((short > 0) & (long > max_size))).tolist():
        height, width = int(table.heights[row]), int(table.widths[row])
        if height * width > MAX_PIXELS:
            report.add("IMAGE_TOO_LARGE", f"{width}×{height} pixels, at most {MAX_PIXELS} can be used", image=row)
        elif is_thin(height, width, min_size, max_size):
            text = f"nothing is left of {width}×{height} pixels at a longest side of {max_size}"
            report.add("IMAGE_THIN", text, image=row)


def _look(table: CocoTable, row: int, decode: bool, views: bool = False) -> _Seen:
    name = table.file_name(row)
    try:
        facts = probe(table.image_root, name, decode=decode, bit_range=table.bit_range, views=views)
    except DataError as e:
        return _Seen(((_code_of(e), e.what),), -1)
    found = []
    height, width = int(table.heights[row]), int(table.widths[row])
    shown, stored = (facts.height, facts.width), (facts.stored_height, facts.stored_width)
    if (height, width) != shown and height > 0 and width > 0:
        if (height, width) == stored:
            turned = f"from {stored[1]}×{stored[0]} to {shown[1]}×{shown[0]}"
            text = f"the EXIF tag turns it {turned}, its entry says {width}×{height}"
            found.append(("IMAGE_EXIF_MISMATCH", text))
        else:
            found.append(
                ("IMAGE_SIZE_WRONG", f"the file has {shown[1]}×{shown[0]} pixels, its entry says {width}×{height}")
            )
    elif facts.turned and table.as_stored:
        found.append(("IMAGE_EXIF_MISMATCH", f"EXIF orientation {facts.orientation}, annotated as it is stored"))
    elif facts.turned:
        found.append(("IMAGE_EXIF_ROTATED", f"EXIF orientation {facts.orientation}"))
    size = stored if (height, width) == stored else shown
    return _Seen((*found, *_depth(facts, table.bit_range)), facts.bytes, size, facts.views)


def _depth(facts: ImageFacts, scale: BitRange | None) -> Iterator[tuple[str, str]]:
    """What becomes of an image's numbers on the way to bytes, and which part of the file they are."""
    if facts.tiff is not None and facts.tiff.pages > 1:
        yield "IMAGE_PAGES", f"the first of {facts.tiff.pages} pages is read"
    if facts.moving:
        yield "IMAGE_PAGES", "the first picture of an animation is read"
    if facts.tiff is not None and facts.tiff.bands > 3:
        yield "IMAGE_BANDS", f"the first 3 of {facts.tiff.bands} bands are read, as red, green and blue"
    if facts.deep:
        yield "IMAGE_16BIT", f"mode {facts.mode}; {'its own range' if scale is None else scale} becomes 0..255"
    levels = facts.levels
    if levels is None:
        return
    values = f"its values {levels.first:g}..{levels.last:g} with the scale {scale}"
    if levels.constant:
        lost = facts.deep and levels.values > 1
        yield "IMAGE_CONSTANT", "all pixels have the same value" + (f" after decoding: {values}" if lost else "")
    elif facts.deep and levels.count < FEW and levels.values > 4 * levels.count:
        yield "IMAGE_FEW_LEVELS", f"{levels.count} of {levels.values} levels are left: {values}"
    elif not facts.deep and levels.high - levels.low < FEW // 2:
        yield "IMAGE_FEW_LEVELS", f"its pixels go from {levels.low} to {levels.high} of 0..255"


def _check_stacks(table: CocoTable, report: Reporter) -> set[int]:
    """Rows of entries that share a file of several pages; they are not to be merged."""
    stacks = shared_stacks(table)
    for row, text in stacks.items():
        report.add("IMAGE_STACK", text, image=row)
    shared = {int(table.image_ids[row]) for row in stacks}
    same = [f.code == "IMAGE_NAME_DUPLICATE" and f.image_id in shared for f in report.findings]
    report.rows = [r for r, gone in zip(report.rows, same, strict=True) if not gone]
    report.findings = [f for f, gone in zip(report.findings, same, strict=True) if not gone]
    return set(stacks)


def _name_near(table: CocoTable, seen: list[_Seen]) -> None:
    """Add to what is said of missing files which files of the folder have names like theirs."""
    missing = [row for row, one in enumerate(seen) if any(code == "IMAGE_MISSING" for code, _ in one.found)]
    if not missing or len(missing) == len(seen):  # of a folder that is not there nothing is near
        return
    index = FileIndex(table.image_root)
    for row in missing[:_NEAR]:
        near = index.near(table.file_name(row))
        if near:
            ((code, text), *rest) = seen[row].found
            text += f"; the folder has {', '.join(map(repr, near))}"
            seen[row] = _Seen(((code, text), *rest), seen[row].bytes)


def _code_of(error: DataError) -> str:
    text = error.what
    if "does not exist" in text:
        return "IMAGE_MISSING"
    if "not opened" in text:
        return "IMAGE_PATH"
    if "not supported" in text:
        return "IMAGE_UNSUPPORTED"
    return "IMAGE_TOO_LARGE" if "too large" in text else "IMAGE_UNREADABLE"


def _check_same(table: CocoTable, sizes: list[int], other: CocoTable | None, report: Reporter) -> None:
    """Files of equal size are compared by hash, within the table and with ``other``: only those are read once more."""
    by_size: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    for row, size in enumerate(sizes):
        by_size[size].append((0, row))
    tables = (table, other)
    if other is not None:
        for row in range(len(other)):
            by_size[_bytes_of(other, row)].append((1, row))
    for size, members in by_size.items():
        if size < 0 or len(members) < 2:
            continue
        first: dict[tuple[int, bytes], int] = {}
        for which, row in members:
            source = tables[which]
            digest = _digest(source, row) if source is not None else None
            if digest is None:
                continue
            twin = first.setdefault((0, digest), row) if which == 0 else first.get((0, digest))
            if which == 0 and twin != row and twin is not None and table.file_name(twin) != table.file_name(row):
                report.add("IMAGE_DUPLICATE", f"the same bytes as {table.file_name(twin)!r}", image=row)
            if which == 1 and twin is not None and source is not None:
                report.add(
                    "IMAGE_LEAK", f"{source.json_path.name} has it too, as {source.file_name(row)!r}", image=twin
                )


def _bytes_of(table: CocoTable, row: int) -> int:
    try:
        with open_inside(table.image_root, table.file_name(row)) as file:
            return os.fstat(file.fileno()).st_size
    except DataError:
        return -1


def _digest(table: CocoTable, row: int) -> bytes | None:
    try:
        with open_inside(table.image_root, table.file_name(row)) as file:
            total = hashlib.blake2b()
            while chunk := file.read(1 << 20):
                total.update(chunk)
            return total.digest()
    except (DataError, OSError):
        return None


def file_state(root: Path, name: str) -> tuple[int, int]:
    """(bytes, mtime in ns) of a file, (-1, 0) where there is none: for the fingerprint."""
    try:
        info = os.stat(f"{root}/{name}", follow_symlinks=False)  # a Path of each would take three times as long
    except (OSError, ValueError):
        return -1, 0
    return info.st_size, info.st_mtime_ns
