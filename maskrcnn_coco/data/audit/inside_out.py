"""Masks of which the wrong side is filled: all but the object, or the holes in it."""

from __future__ import annotations

import numpy as np

from maskrcnn_coco.data.audit.boxes import sides_of
from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.segmentations import Shapes
from maskrcnn_coco.data.coco.table import CocoTable

FEWEST, NEARLY_ALL, HALF = 5, 0.8, 0.5
"""Annotations, and their share, from which on masks of a set are inside out: two objects of one class in an image
cannot both cover more than half of it."""
OFTEN = 0.05
"""Share of the objects from which on parts within parts are no slip of the mouse."""


def check_inverted(table: CocoTable, shapes: Shapes, report: Reporter) -> np.ndarray:
    """One finding where the masks of a set cover what is around their objects; bool (A,): the masks it is about."""
    width, height = sides_of(table)
    with np.errstate(invalid="ignore", over="ignore"):
        image = width * height
        known = np.isfinite(image) & np.isfinite(shapes.area) & ~table.iscrowd & (table.ann_image >= 0)
        box = table.boxes[:, 2] * table.boxes[:, 3]
        # Of one class: a page and the table on it, a car and its door may both be large.
        kind = np.maximum(table.ann_image, 0) * table.num_classes + table.labels
        several = np.bincount(kind[known], minlength=len(table) * table.num_classes)[kind] > 1
        large = known & (shapes.area > HALF * image)
        # Beside a box that is right, such a mask is all that the box is not.
        around = large & (box < HALF * image) & (shapes.area >= 0.98 * (image - box))
        told = known & (several | (box < HALF * image))
    inverted = (large & several) | around
    if inverted.sum() < FEWEST or inverted.sum() < NEARLY_ALL * told.sum():
        return np.zeros(len(known), bool)
    report.add(
        "MASK_INVERTED",
        f"{int(inverted.sum())} of {int(told.sum())} masks cover more than half of an image that has more of their "
        "class, or all that their box does not",
        count=inverted.sum(),
    )
    return inverted


def check_holes(table: CocoTable, shapes: Shapes, report: Reporter) -> None:
    """One finding about objects of which one part lies within another: parts are added up, and a hole is filled."""
    rows = np.array(sorted(shapes.nested), np.int64)
    count = len(table.ann_ids)
    if not len(rows):
        return
    hole = np.array([shapes.nested[n] for n in rows.tolist()])
    filled = shapes.area[rows]
    with np.errstate(invalid="ignore"):
        left_out = np.abs(table.area[rows] - (filled - 2 * hole)) < np.abs(table.area[rows] - (filled - hole))
    said = "; their `area` leaves it out" if left_out.mean() > HALF else ""
    often = len(rows) >= max(FEWEST, OFTEN * count)
    report.add(
        "POLYGON_HOLE",
        f"{len(rows)} of {count} objects have a part within another of their parts, which COCO fills{said}",
        severity="warning" if often else "info",
        count=len(rows),
    )
