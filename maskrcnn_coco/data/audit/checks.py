"""All checks of one table, in order."""

from __future__ import annotations

from collections import Counter

from maskrcnn_coco.data.audit.agreement import check_agreement
from maskrcnn_coco.data.audit.boxes import check_boxes, check_ids, check_labels, check_problems, check_sizes
from maskrcnn_coco.data.audit.catalogue import CATALOGUE, Reporter
from maskrcnn_coco.data.audit.pixels import Depth, check_images
from maskrcnn_coco.data.audit.segmentations import measure
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.records import DataFinding

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
) -> list[DataFinding]:
    """Every problem of ``table``: errors first, then by code, in the file's order. Never raises because of the data.

    Args:
        images: True or "all" decodes every image file, "headers" only opens it, False or "none" leaves the files alone.
        other: the validation set, to look for images that are in both (compared byte for byte; needs the files).
        workers: threads that look at image files.
        min_size, max_size, smallest_anchor: of the model, pixels, for objects that end up too small.
    """
    depth: Depth = images if isinstance(images, str) else ("all" if images else "none")
    report = Reporter(table)
    check_problems(table, report)
    check_ids(table, report)
    check_labels(table, report)
    check_boxes(table, report)
    check_agreement(table, measure(table, report), report)
    check_sizes(table, report, min_size, max_size, smallest_anchor)
    check_images(table, report, depth, other, workers, min_size=min_size, max_size=max_size)
    return sorted(report.findings, key=lambda f: (_ORDER[f.severity], f.code))


def summary(findings: list[DataFinding]) -> list[tuple[str, str, int, str]]:
    """(severity, code, count, title) of each kind of finding, errors first, then by count."""
    counts = Counter((f.severity, f.code) for f in findings)
    rows = [(severity, code, n, CATALOGUE[code].title) for (severity, code), n in counts.items()]
    return sorted(rows, key=lambda r: (_ORDER[r[0]], -r[2], r[1]))
