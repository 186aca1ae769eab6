"""A set written down anew under the reading that its boxes and masks agree on: what `repair` goes on from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from maskrcnn_coco.data.audit.boxes import sides_of
from maskrcnn_coco.data.audit.readings import Agreement, Reading
from maskrcnn_coco.data.coco.shared_arrays import Texts
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.masks import checked_runs, encode_rle, plain_polygons
from maskrcnn_coco.errors import DataError


def reread(table: CocoTable, found: Agreement) -> CocoTable:
    """``table`` as COCO would write what ``found`` says it means; annotations outside ``found.rows`` stay."""
    size = np.stack(sides_of(table), axis=1)
    reading, boxes = found.reading, table.boxes
    if reading.boxes is not None:
        with np.errstate(over="ignore", invalid="ignore"):
            corners = reading.boxes(boxes, size)
            whole = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        # Multiplied shares carry noise of 1e-14: a thousandth of a pixel is enough.
        boxes = np.where(found.rows[:, None], np.round(whole, 3), boxes)
    texts: list[Any] = table.segmentations.between(0, len(table.ann_ids))
    if reading.masks is not None:
        for n in np.flatnonzero(found.rows).tolist():
            texts[n] = _rewritten(texts[n], reading, size[n])
    return replace(table, boxes=boxes, segmentations=Texts.of(texts), origin=None)


def _rewritten(text: bytes, reading: Reading, size: np.ndarray) -> bytes:
    try:
        value = msgspec.json.decode(text or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return text
    width, height = (int(v) for v in size.tolist())
    try:
        if isinstance(value, dict):
            new = _runs(value, str(reading.masks), height, width)
        elif isinstance(value, list) and reading.masks in ("swapped", "scaled"):
            new = [_points(p, reading, size) for p in plain_polygons(value)]
        else:
            return text
    except (DataError, TypeError, ValueError):  # this one has a fault of its own
        return text
    return msgspec.json.encode(new)


def _runs(rle: dict[str, Any], kind: str, height: int, width: int) -> dict[str, Any]:
    if kind == "sides":
        return {**rle, "size": [height, width]}
    if kind == "scaled":
        return rle
    runs = checked_runs({**rle, "size": [height, width]}, height, width)
    bits = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return encode_rle(bits.reshape(height, width))


def _points(part: Any, reading: Reading, size: np.ndarray) -> list[float]:
    points = np.array(part, np.float64).reshape(-1, 2)
    points = points[:, ::-1] if reading.masks == "swapped" else points * reading.factors(size[None])
    return np.round(points, 3).ravel().tolist()
