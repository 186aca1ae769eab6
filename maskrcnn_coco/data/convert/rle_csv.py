"""Tables of runs, as competitions have them: a row an object, "start length start length …", counted from 1."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from maskrcnn_coco.data.convert.document import Document
from maskrcnn_coco.data.convert.images_of import Images
from maskrcnn_coco.data.convert.reading import read_text

IMAGE = ("imageid", "image_id", "img_id", "image", "filename", "file_name", "id")
RUNS = ("encodedpixels", "rle", "annotation", "rle_mask", "mask_rle", "segmentation", "encoded_pixels", "mask")
CLASS = ("classid", "class_id", "class", "label", "cell_type", "category", "class_name")
_RUNS = re.compile(r"\s*\d+\s+\d+(\s+\d+\s+\d+)*\s*")
LOOKED_AT = 60


def is_rle_csv(text: str) -> bool:
    """Whether a table has a column of images and one of runs."""
    rows = _rows(text[: 1 << 20])
    few = [row for row, _ in zip(rows, range(400), strict=False)]
    return any(_RUNS.fullmatch(r["runs"]) for r in few)


def convert_rle_csv(path: Path, root: Path, images: Path | None) -> Document:
    """Objects of a table. Whether runs go down columns or along rows, the shapes themselves say, and it is told."""
    document, found = Document(images or root), Images(root, images)
    ids: dict[str, int | None] = {}
    rows = list(_rows(read_text(path)))
    for row in rows:
        if row["image"] not in ids:
            ids[row["image"]] = document.add_image(found.find(row["image"], [path.parent]))
    objects = [
        (i, r) for r in rows if (i := ids[r["image"]]) is not None and r["runs"].strip() not in ("", "-1", "nan")
    ]
    by_rows = _along_rows(document, [(i, r["runs"]) for i, r in objects[:: max(1, len(objects) // LOOKED_AT)]])
    document.said = f"runs go {'along rows' if by_rows else 'down columns'}, counted from 1"
    for image_id, row in objects:
        mask = _mask(document, image_id, row["runs"], by_rows)
        if mask is None:
            document.skip("runs that leave their image, or are no numbers")
        else:
            document.add_mask(image_id, row["class"] or "object", mask)
    return document


def _rows(text: str) -> Iterator[Mapping[str, str]]:
    """``image``, ``runs``, ``class`` of each row; nothing where the table has no such columns."""
    csv.field_size_limit(1 << 26)
    reader = csv.DictReader(io.StringIO(text))
    names = {str(n).strip().lower(): n for n in reader.fieldnames or () if n is not None}
    image, runs = (next((names[k] for k in keys if k in names), None) for keys in (IMAGE, RUNS))
    kind = next((names[k] for k in CLASS if k in names), None)
    if image is None or runs is None:
        return
    for row in reader:
        name, value = row.get(image), row.get(runs)
        if name:
            yield {"image": name, "runs": value or "", "class": (row.get(kind) or "") if kind is not None else ""}


def _mask(document: Document, image_id: int, runs: str, by_rows: bool) -> np.ndarray | None:
    """bool (H, W), or None where the runs leave the image."""
    image = document.images[image_id - 1]
    height, width = image["height"], image["width"]
    if not _RUNS.fullmatch(runs):
        return None
    numbers = np.array(runs.split(), np.int64)
    starts, ends = numbers[0::2] - 1, numbers[0::2] - 1 + numbers[1::2]
    if starts.min() < 0 or ends.max() > height * width:
        return None
    steps = np.zeros(height * width + 1, np.int32)
    np.add.at(steps, starts, 1)
    np.add.at(steps, ends, -1)
    flat = np.cumsum(steps[:-1]) > 0
    return flat.reshape(height, width) if by_rows else flat.reshape(width, height).T


def _along_rows(document: Document, few: list[tuple[int, str]]) -> bool:
    """The order in which the shapes hold together: read in the wrong one, they fall into stripes."""
    lengths = [0, 0]
    for image_id, runs in few:
        for order in (0, 1):
            mask = _mask(document, image_id, runs, bool(order))
            if mask is not None:
                padded = np.pad(mask, 1).astype(np.int8)
                lengths[order] += int(np.abs(np.diff(padded, axis=0)).sum() + np.abs(np.diff(padded, axis=1)).sum())
    return lengths[1] < lengths[0]
