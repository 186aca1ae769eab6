"""All checks of one table, in order."""

from __future__ import annotations

from collections import Counter

import numpy as np

from maskrcnn_coco.data.audit.agreement import check_agreement
from maskrcnn_coco.data.audit.boxes import check_boxes, check_ids, check_labels, check_problems, check_sizes
from maskrcnn_coco.data.audit.catalogue import CATALOGUE, Reporter
from maskrcnn_coco.data.audit.crowds import check_crowds
from maskrcnn_coco.data.audit.pixels import Depth, check_images
from maskrcnn_coco.data.audit.segmentations import measure
from maskrcnn_coco.data.audit.sizes import SIZE_CODES
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.records import DataFinding
from maskrcnn_coco.system.garbage import without_garbage_collection

_ORDER = {"error": 0, "warning": 1, "info": 2}


def audit(
    table: CocoTable,
    *,
    images: bool | Depth = True,
    other: CocoTable | None = None,
    workers: int = 1,
    min_size: int = 800,
    max_size: int = 1333,
    smallest_anchor: int = 32,
    gathered: bool = False,
) -> list[DataFinding]:
    """Every problem of ``table``: errors first, then by code, in the file's order. Never raises because of the data.

    Args:
        images: True or "all" decodes every image file, "headers" only opens it, False or "none" leaves the files alone.
        other: the validation set, to look for images that are in both (compared byte for byte; needs the files).
        workers: threads that look at image files.
        min_size, max_size, smallest_anchor: of the model, pixels, for objects that end up too small.
        gathered: leave out errors that one finding about the whole set explains (boxes written in another way). For
            people; what training leaves out goes by each error.
    """
    depth: Depth = images if isinstance(images, str) else ("all" if images else "none")
    report = Reporter(table)
    check_problems(table, report)
    check_ids(table, report)
    check_labels(table, report)
    check_crowds(table, report)
    check_boxes(table, report)
    with without_garbage_collection():
        shapes = measure(table, report)
    explained = check_agreement(table, shapes, report)
    _gather(report, explained, gathered)
    check_sizes(table, report, min_size, max_size, smallest_anchor, explained)
    check_images(table, report, depth, other, workers, min_size=min_size, max_size=max_size)
    if gathered and any(f.code in (*SIZE_CODES, "IMAGES_CHANGED") for f in report.findings):
        report.findings = [f for f in report.findings if f.code != "IMAGE_SIZE_WRONG"]
    return sorted(report.findings, key=lambda f: (_ORDER[f.severity], f.code))


_BY_READING = frozenset(
    {
        "BOX_INVERTED",
        "BOX_EMPTY",
        "BOX_TINY",
        "BOX_OUTSIDE",
        "BOX_FAR",
        "BOX_PARTLY_OUTSIDE",
        "POLYGON_OUTSIDE",
        "POLYGON_FAR",
        "MASK_EMPTY",
        "RLE_SIZE",
        "MASK_AREA_DISAGREE",
    }
)
"""Faults of single annotations that come from how the whole set is written."""


def _gather(report: Reporter, explained: np.ndarray, errors: bool) -> None:
    """Drop the findings about annotations that the finding about the whole set explains; errors only where asked."""
    drop = [
        row >= 0 and explained[row] and f.code in _BY_READING and (errors or f.severity != "error")
        for f, row in zip(report.findings, report.rows, strict=True)
    ]
    report.findings = [f for f, gone in zip(report.findings, drop, strict=True) if not gone]
    report.rows = [r for r, gone in zip(report.rows, drop, strict=True) if not gone]


def summary(findings: list[DataFinding]) -> list[tuple[str, str, int, str]]:
    """(severity, code, objects or images, title) of each kind of finding, errors first, then by count."""
    counts: Counter[tuple[str, str]] = Counter()
    for f in findings:
        counts[f.severity, f.code] += f.count
    rows = [(severity, code, n, CATALOGUE[code].title) for (severity, code), n in counts.items()]
    return sorted(rows, key=lambda r: (_ORDER[r[0]], -r[2], r[1]))
