"""One annotation file through everything that reads it, as training would, and what must hold afterwards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.gallery import write_gallery
from maskrcnn_coco.data.audit.quarantine import to_quarantine
from maskrcnn_coco.data.audit.repair import repair
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError


def exercise(json_path: Path, root: Path, *, images: bool = True, out: Path | None = None) -> list[str]:
    """Load, check, and read all that the check lets pass.

    Returns:
        Codes of the findings, each once, or ["DataError: <what>"] where the file itself is refused.

    Raises:
        AssertionError: something that the check let pass cannot be used. Any other exception is a bug as well.
    """
    try:
        table = load_coco(json_path, root)
    except DataError as e:
        assert all(line.isprintable() for line in str(e).splitlines()), repr(str(e))
        return [f"DataError: {e}"]
    findings = audit(table, images=images)
    for f in findings:
        assert f.message and f.fix, f
        assert f.message.isprintable(), f.message
    bad_images, bad_annotations = to_quarantine(findings)
    if not {"NO_MASKS"} & {f.code for f in findings}:
        _use(table, bad_images, bad_annotations, images)
    if out is not None:
        write_gallery(table, findings, out / "gallery.html")
        copy = out / "repaired.json"
        copy.unlink(missing_ok=True)
        try:
            repair(table, findings, copy)
            again = audit(load_coco(copy, root), images=images)
        except DataError:
            again = []  # nothing was left to write or to read
        left = {f.code for f in again if f.severity == "error"} - {"NO_MASKS", "NO_ANNOTATIONS"}
        assert not left, f"the repaired copy still has {left}"
    return sorted({f.code for f in findings})


def _use(table: CocoTable, bad_images: set[int], bad_annotations: set[int], images: bool) -> None:
    for row in range(len(table)):
        if int(table.image_ids[row]) in bad_images:
            continue
        if images:
            shape = read_image(table.image_root, table.file_name(row), size=table.size_of(row)).shape
            assert shape == (table.heights[row], table.widths[row], 3), table.file_name(row)
        for ann in table.annotations_of(row).tolist():
            if int(table.ann_ids[ann]) in bad_annotations:
                continue
            box = table.boxes[ann]
            assert np.isfinite(box).all() and (box[2:] > 0).all(), box
            assert 1 <= table.labels[ann] < table.num_classes
            mask = decode_mask(table.segmentation_raw(ann), int(table.heights[row]), int(table.widths[row]))
            assert mask.dtype == np.uint8 and mask.shape == (table.heights[row], table.widths[row])
            assert mask.max() == 1, f"annotation {table.ann_ids[ann]} has an empty mask"
