"""What a run's data are, in a few digests: kept in its checkpoints, and compared by a resume and between processes."""

from __future__ import annotations

import hashlib
import os
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskrcnn_coco.system.plain_files import open_regular

if TYPE_CHECKING:
    from maskrcnn_coco.data.coco.table import CocoTable
    from maskrcnn_coco.data.prepare import RunData

_READ_IMAGES = 20_000
"""Beyond so many images of a set only the sizes of their files are compared: opening each would take minutes."""
_READ_BYTES = 64 << 20
"""Read of one set, at most, spread evenly over its files."""
_READ_TEXT = 256 << 20
"""Of masks only the lengths are compared where their text is longer than this."""
_WHAT = {
    "classes": "the classes",
    "images": "which images there are, their order, names or sizes",
    "files": "the content of image files",
    "annotations": "boxes, masks, labels or their order",
}


def data_fingerprint(data: RunData, *, files: bool = True) -> dict[str, str]:
    """Part → digest (hex), as ``train images``, ``val annotations`` …; a data set of your own has its classes only.

    Args:
        files: also what is in the image files: their sizes, and the beginning of each, up to 64 MB of a set.
    """
    made = {"classes": _digest("\0".join(data.class_names).encode("utf-8", "replace"))}
    for name, table in (("train", data.train), ("val", data.val)):
        if table is not None:
            made |= {f"{name} {part}": value for part, value in _of_table(table, files).items()}
    return made


def changes(before: dict[str, str], now: dict[str, str]) -> list[str]:
    """A sentence for each part that is not what it was; parts that only one of the two knows are not compared."""
    sets = {"train": "training data", "val": "validation data"}
    said = []
    for part in before:
        if part in now and before[part] != now[part]:
            which, _, what = part.partition(" ")
            said.append(f"{sets[which]}: {_WHAT[what]}" if what else _WHAT[part])
    return said


def _of_table(table: CocoTable, files: bool) -> dict[str, str]:
    names = list(table.names.decoded())
    images = [table.image_ids, table.heights, table.widths]
    objects = [table.ann_image, table.boxes, table.labels, table.iscrowd]
    text = table.segmentations.data
    masks = np.ascontiguousarray(text).data if text.nbytes <= _READ_TEXT else b""
    made = {
        "images": _digest(*(a.tobytes() for a in images), "\0".join(names).encode("utf-8", "replace")),
        "annotations": _digest(*(a.tobytes() for a in objects), table.segmentations.spans.tobytes(), masks),
    }
    if files:
        made["files"] = _digest(*(_of_file(table.image_root / name, len(names)) for name in names))
    return made


def _of_file(path: Path, count: int) -> bytes:
    try:
        size = os.stat(path).st_size
        if count > _READ_IMAGES:
            return b"%d;" % size
        with open_regular(path) as file:
            return b"%d %d;" % (size, zlib.crc32(file.read(max(1024, _READ_BYTES // count))))
    except (OSError, ValueError):
        return b"-;"


def _digest(*parts: bytes | memoryview) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(b"%d:" % len(part))
        total.update(part)
    return total.hexdigest()
