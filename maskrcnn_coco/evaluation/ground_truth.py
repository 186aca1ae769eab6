"""What evaluation reads: a COCO table, or any map-style data set with torchvision's targets, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
import torch

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.own_items import read_item


@dataclass
class Example:
    """One image to evaluate.

    ``image``: float32 (3, H, W) in 0..1. ``height``, ``width``: the size the annotations speak of, pixels.
    ``annotations``: COCO dicts (bbox xywh, pixels) with ``image_id`` = row and ``category_id`` = label.
    ``notes``: how the image was converted to be read.
    """

    row: int
    image_id: int
    file_name: str
    image: torch.Tensor
    height: int
    width: int
    annotations: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)


class EvalSet(Protocol):
    """Images by row; ``names``: class names from label 1 on, None where unknown; ``category_ids`` likewise.

    A category id that is None: the data does not list that class of the model.
    """

    names: list[str] | None
    category_ids: Sequence[int | None] | None
    threads: int

    def __len__(self) -> int: ...

    def order(self, rows: Sequence[int]) -> list[int]:
        """The rows in the order in which they batch best."""
        ...

    def load(self, row: int) -> Example:
        """Raises DataError where the image cannot be read."""
        ...


def as_eval_set(source: Any, class_names: Sequence[str] | None = None) -> EvalSet:
    """The rows of a `CocoTable`, of a data set that holds one as ``.table``, or of any map-style data set.

    Args:
        source: the validation data; an `EvalSet` of this file stays as it is.
        class_names: ("background", first class, …) for a data set of your own.
    """
    if isinstance(source, (TableSet, TileSet, UserSet)):
        return source
    if isinstance(source, CocoTable):
        return TableSet(source)
    table = getattr(source, "table", None)
    if isinstance(source, CocoDataset) and source.tiles is not None and not source.train:
        return TileSet(source)
    if isinstance(table, CocoTable):
        return TableSet(table)
    return UserSet(getattr(source, "dataset", source), class_names)


class TableSet:
    """A COCO table: images as stored, annotations as in the file.

    Args:
        table: the annotations.
        category_ids: what results call each label, from 1; default: the ids of the table's categories.
    """

    threads = 2

    def __init__(self, table: CocoTable, category_ids: Sequence[int | None] | None = None) -> None:
        self.table = table
        self.names: list[str] | None = list(table.class_names[1:])
        self.category_ids: Sequence[int | None] | None = category_ids or [c.id for c in table.categories]

    def __len__(self) -> int:
        return len(self.table)

    def order(self, rows: Sequence[int]) -> list[int]:
        # Images of like shape side by side need less padding.
        return sorted(rows, key=lambda r: (self.table.heights[r] / max(int(self.table.widths[r]), 1), r))

    def load(self, row: int) -> Example:
        name = self.table.file_name(row)
        pixels = read_image(
            self.table.image_root, name, self.table.bit_range, self.table.size_of(row), as_stored=self.table.as_stored
        )
        image = torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255.0)
        height = int(self.table.heights[row]) or pixels.shape[0]
        width = int(self.table.widths[row]) or pixels.shape[1]
        return Example(row, int(self.table.image_ids[row]), name, image, height, width, self.annotations(row))

    def annotations(self, row: int) -> list[dict[str, Any]]:
        """What an image's annotations say, without reading the image."""
        return [self._annotation(row, int(a)) for a in self.table.annotations_of(row)]

    def _annotation(self, row: int, a: int) -> dict[str, Any]:
        t = self.table
        return {
            "id": int(t.ann_ids[a]),
            "image_id": row,
            "category_id": int(t.labels[a]),
            "bbox": t.boxes[a].tolist(),
            "area": float(t.area[a]),
            "iscrowd": bool(t.iscrowd[a]),
            "segmentation": _json(t.segmentation_raw(a)),
        }


class TileSet:
    """The tiles of a COCO table's images, each an image of its own; what a tile cuts off too far is ignored."""

    threads = 2

    def __init__(self, dataset: CocoDataset) -> None:
        assert dataset.tiles is not None
        self.dataset, self.tiles = dataset, dataset.tiles
        whole = TableSet(dataset.table)
        self.names, self.category_ids = whole.names, whole.category_ids

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, rows: Sequence[int]) -> list[int]:
        ratios = self.dataset.aspect_ratios  # width / height: images of like shape side by side need less padding
        return sorted(rows, key=lambda r: (ratios[r], r))

    def load(self, row: int) -> Example:
        image, target = self.dataset.sample(0, row)
        height, width = int(image.shape[-2]), int(image.shape[-1])
        tile = self.tiles.rectangle(row)
        name = self.dataset.table.file_name(int(self.tiles.rows[row]))
        name = name if tile is None else f"{name} at {tile[0]}, {tile[1]}"
        annotations = []
        for n, (x0, y0, x1, y1) in enumerate(target["boxes"].tolist()):
            annotations.append({
                "id": int(target["annotation_ids"][n]), "image_id": row, "category_id": int(target["labels"][n]),
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": float(target["area"][n]),
                "iscrowd": bool(target["iscrowd"][n]), "segmentation": encode_rle(target["masks"][n].numpy()),
            })  # fmt: skip
        return Example(row, int(target["image_id"]), name, image.float() / 255, height, width, annotations)


class UserSet:
    """Any map-style data set of (image float32 (3, H, W), torchvision target dict)."""

    threads = 0  # a stranger's data set need not be thread-safe

    def __init__(self, dataset: Any, class_names: Sequence[str] | None = None) -> None:
        self.dataset = dataset
        names = class_names or getattr(dataset, "class_names", None)
        self.names: list[str] | None = list(names[1:]) if names else None
        self.category_ids: Sequence[int | None] | None = list(range(1, len(names))) if names else None

    def __len__(self) -> int:
        return len(self.dataset)

    def order(self, rows: Sequence[int]) -> list[int]:
        return list(rows)

    def load(self, row: int) -> Example:
        item = read_item(self.dataset, row)
        height, width = int(item.image.shape[-2]), int(item.image.shape[-1])
        annotations = []
        for n, (x0, y0, x1, y1) in enumerate(item.boxes.tolist()):
            mask = None if item.masks is None else item.masks[n]
            area = float(mask.sum()) if mask is not None else (x1 - x0) * (y1 - y0)
            annotations.append({
                "id": n, "image_id": row, "category_id": int(item.labels[n]), "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": area, "iscrowd": bool(item.crowd[n]),
                "segmentation": encode_rle(mask.astype(np.uint8)) if mask is not None else None,
            })  # fmt: skip
        name = item.file_name or f"image {item.image_id}"
        return Example(row, item.image_id, name, item.image, height, width, annotations, item.notes)


def _json(raw: bytes) -> Any:
    if not raw:
        return None
    try:
        return msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "not JSON"  # `ground_truth` names it as unusable


def check_label(label: int, names: list[str] | None) -> None:
    """Raise DataError where a model predicts a class that the data does not have."""
    if names is not None and not 1 <= label <= len(names):
        raise DataError(
            f"the model predicts class {label}, but the data has {len(names)} classes",
            expected=f"a model for {len(names) + 1} classes, background included",
            fix="evaluate on data with the categories the model was trained on",
        )
