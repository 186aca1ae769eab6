"""What training sees: sixteen augmented training images with their masks on one sheet."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from maskrcnn_coco.data.batch import Source
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.draw import Shape, colour_of, draw
from maskrcnn_coco.system.files import write_bytes

SHEET = "training_images.jpg"
COLUMNS, CELL = 4, 320
"""Images in a row, and the side of each on the sheet, pixels."""


def save_training_sheet(logdir: str | Path, source: Source, plan: Plan, names: Sequence[str]) -> Path | None:
    """``logdir``/training_images.jpg: the first samples of the plan, as the network is given them.

    Args:
        names: of the labels, background first.

    Returns:
        the file; None where no sample could be made.

    Raises:
        OSError: the folder cannot be written.
    """
    cells = list(islice(_cells(source, plan, names), COLUMNS * COLUMNS))
    if not cells:
        return None
    rows = -(-len(cells) // COLUMNS)
    sheet = Image.new("RGB", (COLUMNS * CELL, rows * CELL), (24, 24, 27))
    for n, cell in enumerate(cells):
        cell.thumbnail((CELL - 4, CELL - 4))
        left, top = n % COLUMNS * CELL + (CELL - cell.width) // 2, n // COLUMNS * CELL + (CELL - cell.height) // 2
        sheet.paste(cell, (left, top))
    packed = io.BytesIO()
    sheet.save(packed, "JPEG", quality=88)
    path = Path(logdir) / SHEET
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, packed.getvalue())
    return path


def _cells(source: Source, plan: Plan, names: Sequence[str]) -> Iterable[Image.Image]:
    for step in range(plan.steps_per_epoch):
        for micro in plan.step(step)[1]:
            for key in micro:
                try:
                    image, target = source.sample(key.epoch, key.index, key.repeat)
                except DataError:
                    continue  # it is told, and left out, when training meets it
                yield draw(_pixels(image), shapes_in(target, names))


def _pixels(image: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of an image uint8 or float32 in 0..1, (C, H, W); one channel becomes three, a fourth is left."""
    values = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    values = values[:3] if len(values) >= 3 else values[:1].expand(3, -1, -1)
    return np.ascontiguousarray(values.permute(1, 2, 0).numpy())


def shapes_in(target: dict[str, Any], names: Sequence[str]) -> list[Shape]:
    """The objects of a training target, drawn or as outlines, one colour a class (an object, with a single class)."""
    outlines, masks = target.get("outlines"), target.get("masks")
    masks = outlines.masks() if outlines is not None else masks
    single = len(names) <= 2
    shapes = []
    for n, box in enumerate(target["boxes"].tolist()):
        label = int(target["labels"][n])
        text = "" if single else names[label] if 0 <= label < len(names) else str(label)
        mask = None if masks is None or n >= len(masks) else masks[n].numpy() > 0
        wide = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
        shapes.append(Shape(wide, mask, text, colour_of(n if single else max(0, label - 1))))
    return shapes
