"""Whether a set was annotated on its images as they are stored, or as their EXIF tags turn them: the pictures tell.

Sides that differ tell it image by image (`images.read_image`). A turn by half, a mirror image, and any turn of a square
leave the sides as they are; there outlines are laid on the edges of the pictures, both ways.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from maskrcnn_coco.data.audit.content import picture
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import probe
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.findings.content import score

LOOKED_AT, DECODED = 400, 16
"""Headers that are read, and turned images that are decoded, most."""
FEWEST, AHEAD, MOST = 3, 0.05, 0.9
"""Turned images that are needed; by how much of a rank, and in which share of them, the stored ones must fit better."""


def with_orientation(table: CocoTable, known: bool | None = None) -> tuple[CocoTable, str | None]:
    """``table``, to be read as it was annotated, and what to say about it; None where nothing is turned, or as usual.

    Args:
        known: how the training data were read, for a set that has too few turned images to tell; None: of no other.
    """
    rows = [row for row in _spread(len(table), LOOKED_AT) if _is_silent(table, row)]
    usable = ~table.iscrowd & (table.ann_image >= 0)
    gains = []
    for row in [rows[i] for i in _spread(len(rows), DECODED)]:
        shown = picture(table, row, usable, as_stored=False)
        stored = picture(table, row, usable, as_stored=True)
        if shown is not None and stored is not None and len(shown.points) >= 8:
            gains.append(score(stored.ranks, stored.points) - score(shown.ranks, shown.points))
    if len(gains) < FEWEST:
        return (replace(table, as_stored=True), None) if known else (table, None)
    found = np.array(gains)
    if found.mean() < AHEAD or (found > 0).mean() < MOST:
        return table, None
    text = (
        f"{len(rows)} of the images looked at have an EXIF tag that turns them, and boxes and masks that lie on them "
        f"as they are stored ({int((found > 0).sum())} of {len(found)}): they are not turned"
    )
    return replace(table, as_stored=True), text


def saved_orientation(contents: Mapping[str, Any]) -> bool | None:
    """Whether a checkpoint's images were read as stored; None where it does not say."""
    kept = contents.get("as_stored")
    return kept if isinstance(kept, bool) else None


def _is_silent(table: CocoTable, row: int) -> bool:
    """The tag turns this image, and its sides do not tell whether it was annotated so."""
    try:
        facts = probe(table.image_root, table.file_name(row), decode=False)
    except DataError:
        return False
    return facts.turned and (facts.height, facts.width) == (facts.stored_height, facts.stored_width)


def _spread(count: int, most: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(most, count)).astype(int)).tolist() if count else []
