"""Whether the outlines of a set lie on the edges of its pictures: a few of them are opened, and looked at."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.findings.content import OBJECTS, Picture, content_of, picture_of
from maskrcnn_coco.findings.facts import Content

BLOCKS, TOGETHER = 8, 3
"""Pictures that are looked at stand together by three: annotations may belong to the next one."""


def content_of_table(
    table: CocoTable, of: str = "training data", left_out: Iterable[int] = (), annotations: Iterable[int] = ()
) -> Content | None:
    """How the outlines of ``table`` fit its pictures; None where too few can be looked at. Never raises.

    Args:
        of: what messages call the data. left_out: image ids, annotations: as in ``ann_ids``, that are not to be used.
    """
    usable = ~table.iscrowd & ~np.isin(table.ann_ids, list(annotations)) & (table.ann_image >= 0)
    known = np.zeros(len(table), bool)
    known[np.unique(table.ann_image[usable])] = True
    rows = np.flatnonzero(known & ~np.isin(table.image_ids, list(left_out)))
    most = BLOCKS * TOGETHER
    if len(rows) > most:
        starts = np.linspace(0, len(rows) - TOGETHER, BLOCKS).astype(np.int64)
        rows = rows[np.unique(starts[:, None] + np.arange(TOGETHER))]
    return content_of([p for row in rows.tolist() if (p := picture(table, row, usable)) is not None], of)


def picture(table: CocoTable, row: int, usable: np.ndarray, *, as_stored: bool | None = None) -> Picture | None:
    """One picture with the outlines of its ``usable`` annotations, bool (A,); None where it cannot be read.

    Args:
        as_stored: without, or with the turn that its EXIF tag tells; None: as the table is read.
    """
    name, size = table.file_name(row), table.size_of(row)
    try:
        stored = table.as_stored if as_stored is None else as_stored
        pixels = read_image(table.image_root, name, table.bit_range, size, as_stored=stored)
    except DataError:
        return None
    height, width = size if min(size) > 0 else pixels.shape[:2]
    chosen = table.annotations_of(row)
    chosen = chosen[usable[chosen]]
    masks = []
    for n in chosen[:: max(1, -(-len(chosen) // OBJECTS))].tolist():
        try:
            masks.append(decode_mask(table.segmentation_raw(n), height, width) != 0)
        except DataError:
            continue
    if not masks:
        return None
    return picture_of(pixels.transpose(2, 0, 1), np.array(masks), int(table.image_ids[row]), row)
