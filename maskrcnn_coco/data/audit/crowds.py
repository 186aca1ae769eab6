"""Crowds (``iscrowd`` 1) that are none: a set where nothing else is left, and crowds that look like single objects."""

from __future__ import annotations

import numpy as np

from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.coco.table import CocoTable

SUSPECT = 0.1
"""Share of the annotations that real crowds rarely reach: COCO has one in a hundred."""


def check_crowds(table: CocoTable, report: Reporter) -> None:
    """Objects that are called crowds, so that nothing is learned from them: all of them, or many that look single."""
    crowds, count = int(table.iscrowd.sum()), len(table.ann_ids)
    if not crowds:
        return
    if crowds == count:
        report.add(
            "CROWD_ALL",
            f"all {count} annotations have iscrowd 1: training leaves crowds out, so none is left",
            count=count,
        )
    elif crowds >= max(3, SUSPECT * count) and (why := _look_single(table)):
        report.add(
            "CROWD_SINGLE", f"{crowds} of {count} annotations have iscrowd 1 and are left out; {why}", count=crowds
        )


def _look_single(table: CocoTable) -> str | None:
    """Why these crowds are not COCO's: those are one region for all that was not told apart in an image."""
    rows = np.flatnonzero(table.iscrowd & (table.ann_image >= 0))
    if not len(rows):
        return None
    where = table.ann_image[rows] * table.num_classes + table.labels[rows]
    _, which, counts = np.unique(where, return_inverse=True, return_counts=True)
    shared = float((counts[which] > 1).mean())
    if shared >= 0.3:
        return f"{shared:.0%} of them share image and class with another, which crowds do not"
    sizes = table.boxes[:, 2] * table.boxes[:, 3]
    with np.errstate(invalid="ignore"):
        crowd, single = np.nanmedian(sizes[rows]), np.nanmedian(sizes[~table.iscrowd])
    if 0.5 * single <= crowd <= 1.5 * single:
        return "they are as large as single objects"
    return None
