"""Masks against boxes and areas: whether the three numbers of an annotation tell the same story."""

from __future__ import annotations

import numpy as np

from maskrcnn_coco.data.audit.boxes import check_corners
from maskrcnn_coco.data.audit.catalogue import Reporter
from maskrcnn_coco.data.audit.geometry import overlap
from maskrcnn_coco.data.audit.inside_out import check_holes, check_inverted
from maskrcnn_coco.data.audit.readings import FEWEST, MOST, Agreement, agreement
from maskrcnn_coco.data.audit.segmentations import Shapes
from maskrcnn_coco.data.coco.table import CocoTable

SLACK = 3.0
"""Pixels by which box sides may differ from the mask's before overlap counts: rounding, half-pixel conventions."""
MANY, RECTANGLE = 50, 0.98
"""So many masks, each this share of its box or more, are rectangles by the way they were made, not by chance."""


def corners(table: CocoTable) -> np.ndarray:
    """Boxes as x1, y1, x2, y2, float64 (A, 4), clipped to the image where its size is known."""
    with np.errstate(over="ignore", invalid="ignore"):
        boxes = np.concatenate([table.boxes[:, :2], table.boxes[:, :2] + table.boxes[:, 2:]], axis=1)
    known = table.ann_image >= 0
    rows = np.where(known, table.ann_image, 0)
    for i, side in enumerate((table.widths, table.heights, table.widths, table.heights)):
        limit = np.where(known & (side[rows] > 0), side[rows], np.inf)
        boxes[:, i] = np.clip(boxes[:, i], 0, limit)
    return boxes


def check_agreement(table: CocoTable, shapes: Shapes, report: Reporter) -> np.ndarray:
    """Findings where mask, box and area disagree, and about masks of the whole set.

    Returns:
        bool (A,): annotations whose faults are those of the whole set, read another way: one finding says it for all.
    """
    if not len(table.ann_ids):
        return np.zeros(0, bool)
    _check_missing(table, shapes, report)
    boxes = corners(table)
    found = agreement(table, shapes)
    explained = found.explained if found is not None else np.zeros(len(boxes), bool)
    if found is not None:
        _say_reading(found, report)
    with np.errstate(invalid="ignore"):
        measured = np.isfinite(shapes.extent).all(axis=1) & (shapes.area > 0) & (table.boxes[:, 2:] > 0).all(axis=1)
        apart = np.abs(boxes - shapes.extent).max(axis=1) > SLACK
        disagree = measured & ~explained & apart & (overlap(boxes, shapes.extent) < 0.5)
        inside = np.asarray(((shapes.extent - boxes) * (1, 1, -1, -1) >= -SLACK).all(axis=1))
    if found is None and (measured.sum() < FEWEST or disagree.sum() >= MOST * measured.sum()):
        check_corners(table, report)
    inverted = check_inverted(table, shapes, report)
    measured, disagree = measured & ~inverted, disagree & ~inverted
    _say_disagreement(table, shapes, disagree, inside, int(measured.sum()), report)
    _check_area(table, shapes, report, measured & ~explained)
    count = len(table.ann_ids)
    if shapes.multipart:
        report.add(
            "POLYGON_MULTIPART", f"{shapes.multipart} of {count} objects have several parts", count=shapes.multipart
        )
    check_holes(table, shapes, report)
    if shapes.rle_objects:
        report.add(
            "RLE_NOT_CROWD",
            f"{shapes.rle_objects} of {count} objects that are not crowds have RLE masks",
            count=shapes.rle_objects,
        )
    if shapes.odd_forms:
        report.add(
            "POLYGON_FORM",
            f"{shapes.odd_forms} of {count} objects have polygons as flat lists or as points",
            count=shapes.odd_forms,
        )
    return explained


def _say_reading(found: Agreement, report: Reporter) -> None:
    as_is = f"{found.as_is:.0%} of {found.count} boxes agree with their masks as they are"
    if found.others:
        ways = " or as ".join(r.text for r in (found.reading, *found.others))
        report.add(
            "READINGS_TIE",
            f"{as_is}; {found.agree:.0%} if read as {ways}: which of these is true is not known",
            count=found.explained.sum(),
        )
    else:
        report.add(
            found.reading.code,
            f"{as_is}, {found.agree:.0%} if read as {found.reading.text}",
            count=found.explained.sum(),
        )


def _say_disagreement(
    table: CocoTable, shapes: Shapes, disagree: np.ndarray, inside: np.ndarray, measured: int, report: Reporter
) -> None:
    """One finding an annotation, unless it is so often so that the set is to blame."""
    within = disagree & inside
    if within.sum() >= max(FEWEST, 0.05 * measured):
        report.add(
            "MASK_INSIDE_BOX",
            f"{within.sum()} of {measured} boxes are more than twice as large as their masks",
            count=within.sum(),
        )
        disagree = disagree & ~inside
    if disagree.sum() >= max(FEWEST, MOST * measured):
        report.add(
            "MASK_BOX_UNRELATED",
            f"{disagree.sum()} of {measured} boxes are not where their masks are",
            count=disagree.sum(),
        )
        return
    for ann in np.flatnonzero(disagree).tolist():
        x1, y1, x2, y2 = (f"{v:.6g}" for v in shapes.extent[ann].tolist())
        box = [float(f"{v:.6g}") for v in table.boxes[ann].tolist()]
        text = f"the box is {box}, the mask spans x {x1} to {x2}, y {y1} to {y2}"
        report.add("MASK_BOX_DISAGREE", text, ann=ann)


def _check_missing(table: CocoTable, shapes: Shapes, report: Reporter) -> None:
    missing = int(shapes.missing.sum())
    if missing == len(shapes.missing):
        report.add(
            "NO_MASKS",
            f"none of the {missing} annotations has a segmentation: a box-only data set, Mask R-CNN needs masks",
            count=missing,
        )
        return
    for ann in np.flatnonzero(shapes.missing).tolist():
        report.add(
            "SEGMENTATION_MISSING", f"it has no segmentation ({missing} of {len(shapes.missing)} have none)", ann=ann
        )


def _check_area(table: CocoTable, shapes: Shapes, report: Reporter, measured: np.ndarray) -> None:
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        boxed = table.boxes[:, 2] * table.boxes[:, 3]
        is_box = measured & (np.abs(table.area - boxed) <= 0.01 * boxed) & (shapes.area < 0.9 * boxed)
        ratio = table.area / shapes.area
        rectangles = measured & (shapes.area >= RECTANGLE * boxed) & (shapes.area * RECTANGLE <= boxed)
        off = measured & ~is_box & ((ratio < 0.5) | (ratio > 2)) & (np.abs(table.area - shapes.area) > 20)
    if is_box.any():
        report.add(
            "AREA_IS_BOX",
            f"`area` is width × height of the box for {int(is_box.sum())} of {len(is_box)} annotations",
            count=is_box.sum(),
        )
    if rectangles.sum() >= MANY and (measured & ~rectangles).sum() <= 0.02 * rectangles.sum():
        report.add(
            "MASK_IS_BOX",
            f"{int(rectangles.sum())} of {int(measured.sum())} masks fill their boxes: a model learns rectangles from "
            "them, not outlines",
            count=rectangles.sum(),
        )
    missing = int((~np.isfinite(table.area)).sum())
    if missing:
        report.add("AREA_MISSING", f"{missing} of {len(is_box)} annotations have no area", count=missing)
    for ann in np.flatnonzero(off).tolist():
        report.add(
            "MASK_AREA_DISAGREE", f"area is {table.area[ann]:.6g}, the mask has {shapes.area[ann]:.6g} pixels", ann=ann
        )
