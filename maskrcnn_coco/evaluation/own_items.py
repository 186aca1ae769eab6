"""Items of somebody's own data set, as evaluation needs them: what is plainly meant is converted, the rest is named.

Training refuses odd values through the guard; evaluation comes after an epoch, when an error would cost that epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskrcnn_coco.errors import DataError

EXPECTED = "(image float32 tensor (3, H, W) in 0..1, target dict of boxes (N, 4) xyxy and labels (N,))"


@dataclass
class Item:
    """``image`` float32 (3, H, W); ``boxes`` float64 (N, 4) xyxy pixels; ``labels`` int64 (N,).

    ``crowd`` bool (N,), ``masks`` bool (N, H, W). ``notes``: what was converted, in the same words for each item with
    that oddity.
    """

    image: Tensor
    boxes: np.ndarray
    labels: np.ndarray
    crowd: np.ndarray
    masks: np.ndarray | None
    image_id: int
    file_name: str | None
    notes: list[str] = field(default_factory=list)


def read_item(dataset: Any, row: int) -> Item:
    """``dataset[row]``, checked and converted.

    Raises:
        DataError: the data set raised, or the item holds no image or no target that could be meant; names the row.
    """
    try:
        item = dataset[row]
    except MemoryError:  # of the machine, not of this item
        raise
    except Exception as e:  # a stranger's code may raise anything
        raise _refused(row, f"the data set raised {type(e).__name__}: {e}") from e
    if not isinstance(item, (tuple, list)) or len(item) < 2 or not isinstance(item[1], Mapping):
        kinds = [type(i).__name__ for i in item] if isinstance(item, (tuple, list)) else type(item).__name__
        raise _refused(row, "it is not an image and a target dict", kinds)
    notes: list[str] = []
    try:
        image = _image(item[0], notes)
        return _with_target(image, item[1], row, notes)
    except DataError as e:
        raise _refused(row, e.what, e.got) from e
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:  # no array can be made of it
        raise _refused(row, f"its values cannot be read: {e}") from e


def _refused(row: int, why: str, got: object = None) -> DataError:
    return DataError(f"item {row}: {why}", got=got, expected=EXPECTED, fix=f"look at dataset[{row}]")


def _image(value: Any, notes: list[str]) -> Tensor:
    """float32 (3, H, W) in 0..1 of a tensor, an array or a PIL image."""
    image = value if isinstance(value, Tensor) else torch.from_numpy(np.array(value))
    if isinstance(value, np.ndarray) or not isinstance(value, Tensor):
        notes.append(f"images of type {type(value).__name__} are read as tensors")
        if image.ndim == 3 and image.shape[-1] in (1, 3, 4) and image.shape[0] not in (1, 3, 4):
            image = image.permute(2, 0, 1)
    image = image.detach().cpu()
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or 0 in image.shape:
        raise DataError("its image has no height, width and colours", got=tuple(image.shape))
    if image.shape[0] != 3:
        image = _three(image, notes)
    return _as_float(image, notes)


def _as_float(image: Tensor, notes: list[str]) -> Tensor:
    if image.dtype == torch.float32:
        return image
    if image.dtype == torch.bool or image.dtype.is_floating_point:
        notes.append(f"images of {image.dtype} are read as float32")
        return image.float()
    # Whole numbers of 32 and 64 bits are bytes that went through arithmetic.
    top = torch.iinfo(image.dtype).max if image.dtype.itemsize <= 2 else 255
    low, high = (int(n) for n in image.to(torch.int64).aminmax())
    if low < 0 or high > top:
        got = f"{image.dtype} from {low} to {high}"
        raise DataError("its image holds whole numbers that are no brightness", got=got)
    notes.append(f"images of {image.dtype} are divided by {top}")
    return image.float() / top


def _three(image: Tensor, notes: list[str]) -> Tensor:
    bands = image.shape[0]
    if bands == 1:
        notes.append("grey images are spread to three colours")
        return image.expand(3, -1, -1)
    if bands == 2:
        notes.append("of images of 2 bands the first is read, as grey")
        return image[:1].expand(3, -1, -1)
    if bands > 16 and image.shape[-1] in (3, 4):  # (H, W, 3): no camera has so many bands and so few columns
        notes.append("images of shape (H, W, colours) are turned to (colours, H, W)")
        return image.permute(2, 0, 1)[:3]
    notes.append(f"of images of {bands} bands the first three are read")
    return image[:3]


def _with_target(image: Tensor, target: Mapping[str, Any], row: int, notes: list[str]) -> Item:
    size = (int(image.shape[-2]), int(image.shape[-1]))
    masks = _masks(target.get("masks"), size)
    boxes = _boxes(target, masks, notes)
    if target.get("labels") is None:
        raise DataError("its target has no labels", got=", ".join(map(str, target)) or "an empty dict")
    labels = _array(target["labels"]).reshape(-1).astype(np.int64)
    if len(labels) != len(boxes):
        raise DataError("it has another number of labels than of boxes", got=f"{len(labels)} and {len(boxes)}")
    if masks is not None and len(masks) != len(boxes):
        raise DataError("it has another number of masks than of boxes", got=f"{len(masks)} and {len(boxes)}")
    crowd = np.zeros(len(boxes), bool)
    if target.get("iscrowd") is not None:
        given = _array(target["iscrowd"]).reshape(-1)
        crowd = given.astype(bool) if len(given) == len(boxes) else crowd
    name = target.get("file_name")
    return Item(image, boxes, labels, crowd, masks, _id(target.get("image_id"), row), name and str(name), notes)


def _id(value: Any, row: int) -> int:
    try:
        return row if value is None else int(value.item() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):  # a name, several numbers: the row is an id too
        return row


def _boxes(target: Mapping[str, Any], masks: np.ndarray | None, notes: list[str]) -> np.ndarray:
    if target.get("boxes") is not None:
        boxes = _array(target["boxes"]).astype(np.float64)
        if boxes.size % 4 or boxes.ndim > 2 or (boxes.ndim == 2 and boxes.size and boxes.shape[1] != 4):
            raise DataError("its boxes are not of shape (N, 4)", got=boxes.shape)
        return boxes.reshape(-1, 4)
    if masks is None:
        raise DataError("its target has neither boxes nor masks", got=", ".join(map(str, target)) or "an empty dict")
    notes.append("targets without boxes get those of their masks")
    return np.array([_box_of(m) for m in masks], np.float64).reshape(-1, 4)


def _box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _masks(value: Any, size: tuple[int, int]) -> np.ndarray | None:
    """bool (N, H, W), or None where there are none."""
    if value is None:
        return None
    masks = _array(value)
    if masks.ndim == 4 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if not masks.size:
        return np.zeros((len(masks) if masks.ndim == 3 else 0, *size), bool)
    if masks.ndim != 3 or masks.shape[1:] != size:
        raise DataError("its masks are of another size than its image", got=f"{masks.shape}, the image {size}")
    return masks != 0


def _array(value: Any) -> np.ndarray:
    if isinstance(value, Tensor):
        return value.detach().cpu().numpy()
    if isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
        return np.stack([_array(v) for v in value])
    return np.asarray(value)
