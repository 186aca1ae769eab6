"""From findings to what training leaves out."""

from __future__ import annotations

from collections import Counter

from maskrcnn_coco.data.audit.targets import count_targets
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import DataFinding
from maskrcnn_coco.wording import named

_WHOLE_SET = ("NO_MASKS", "NO_ANNOTATIONS", "CROWD_ALL")


def annotation_of(finding: DataFinding) -> int | None:
    """The annotation a finding is about, as in `CocoTable.ann_ids`; None where it is about none."""
    return finding.annotation_id if finding.row is None else -1 - finding.row


def to_quarantine(findings: list[DataFinding]) -> tuple[set[int], set[int]]:
    """(image ids, annotations as in `CocoTable.ann_ids`) that findings of severity error say to leave out.

    A fault in one annotation costs that annotation; the image goes only where the image itself cannot be used.
    """
    errors = [f for f in findings if f.severity == "error"]
    annotations = {a for f in errors if (a := annotation_of(f)) is not None}
    images = {f.image_id for f in errors if f.annotation_id is None and f.image_id is not None}
    return images, annotations


def require_usable(table: CocoTable, findings: list[DataFinding], *, min_size: int = 800, max_size: int = 1333) -> None:
    """Raise the DataError that says why nothing is left to train on, if so: no masks at all, or errors everywhere.

    ``min_size``, ``max_size``: of the model, pixels.
    """
    for f in findings:
        if f.code in _WHOLE_SET:
            raise DataError(f.message, fix=f.fix)
    images, annotations = to_quarantine(findings)
    errors = [f for f in findings if f.severity == "error"]
    first = next((f.message for f in errors), None)
    lists = named("maskrcnn-coco check --data PATH lists why", table.flags)
    if errors:  # what to do about the fault that most have
        most = Counter(f.code for f in errors).most_common(1)[0][0]
        fix = next(f.fix for f in errors if f.code == most)
        lists = fix if "maskrcnn-coco check" in fix else f"{fix}; {lists}"
        first = next(f.message for f in errors if f.code == most)
    if set(table.image_ids.tolist()) <= images:
        raise DataError(f"no image of {table.json_path} can be used", got=first, fix=lists)
    left = count_targets(table, images, annotations, min_size=min_size, max_size=max_size)
    if left.left:
        return
    if left.crowds:
        first = f"{left.crowds} have iscrowd 1, which training leaves out" + (f"; else {first}" if first else "")
    elif left.thin:
        first = f"{left.thin} are under a pixel wide or high once the images are resized"
    raise DataError(f"no annotation of {table.json_path} can be used", got=first, fix=lists)
