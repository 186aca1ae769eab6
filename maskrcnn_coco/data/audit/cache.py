"""Checks are made once: findings are kept under the fingerprint of what was checked."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

import msgspec
import numpy as np

from maskrcnn_coco.data.audit.catalogue import fix_of
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.audit.pixels import file_state
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.records import DataFinding, to_json
from maskrcnn_coco.system.files import cache_folder, write_text

VERSION = 11
"""Raised whenever a check changes, so that older findings are not read."""
DECODE_LIMIT = 3000
"""Up to this many images a check before training decodes every file; beyond, it opens each one's header."""


def fingerprint(table: CocoTable, *, files: bool = True) -> str:
    """SHA-256 over all columns of ``table`` and, with ``files``, size and time of change of each image file. Hex."""
    read = f"{table.bit_range}:{table.as_stored}"
    head = f"{VERSION}:{table.image_root}:{read}:{table.categories}:{table.problems}"
    total = hashlib.sha256(head.encode("utf-8", "replace"))
    for name in (
        "image_ids",
        "heights",
        "widths",
        "ann_ids",
        "given_ids",
        "ann_image",
        "boxes",
        "labels",
        "iscrowd",
        "area",
        "category_ids",
    ):
        total.update(getattr(table, name).tobytes())
    total.update(str(table.origin).encode())
    for texts in (table.names, table.segmentations):
        total.update(texts.spans.tobytes())
        if table.origin is None:  # else it stands for half a gigabyte of text
            total.update(np.ascontiguousarray(texts.data).data)
    if files:
        for name in table.names.decoded():
            total.update(b"%d %d;" % file_state(table.image_root, name))
    return total.hexdigest()


def audit_cached(
    table: CocoTable, *, other: CocoTable | None = None, folder: str | Path | None = None, workers: int = 1
) -> list[DataFinding]:
    """`audit`, or its findings from an earlier run on the same annotations and files.

    Args:
        folder: where findings are kept; None: the user's cache folder. One that cannot be written costs only time.
    """
    keys = [fingerprint(t) for t in (table, other) if t is not None]
    return _kept(table, other, keys, folder, workers)


def audit_parts(
    train: CocoTable, val: CocoTable | None, folder: str | Path | None = None
) -> tuple[list[DataFinding], list[DataFinding]]:
    """`audit_cached` of the training data, with leaks into ``val``, and of the validation data by itself."""
    if val is None:
        return audit_cached(train, folder=folder), []
    keys = [fingerprint(train), fingerprint(val)]
    return _kept(train, val, keys, folder, 1), _kept(val, None, keys[1:], folder, 1)


def _kept(
    table: CocoTable, other: CocoTable | None, keys: list[str], folder: str | Path | None, workers: int
) -> list[DataFinding]:
    key = hashlib.sha256(" ".join(keys).encode()).hexdigest()
    path = Path(folder or cache_folder("checks")) / f"{key}.json"
    kept = _read(path)
    if kept is not None:
        for finding in kept:  # the same data may be named in another way now
            finding.fix = fix_of(finding.code, table)
        return kept
    depth = "all" if len(table) <= DECODE_LIMIT else "headers"
    findings = audit(table, images=depth, other=other, workers=workers)
    with contextlib.suppress(OSError):
        write_text(path, to_json(findings))
    return findings


def _read(path: Path) -> list[DataFinding] | None:
    try:
        return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), list[DataFinding])
    except (OSError, ValueError, RecursionError):
        return None
