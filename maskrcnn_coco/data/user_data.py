"""The wrapper around a data set that a user brings: repeatable, checked by name, and without what was left out."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_coco.data.batch import Batch, SampleError, Target, image_id
from maskrcnn_coco.data.dataset import seeded
from maskrcnn_coco.data.images import too_thin
from maskrcnn_coco.data.item_form import is_sample, refusal
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.errors import DataError

BOXES = frozenset({torch.int64, torch.int32, torch.int16, torch.float64, torch.float16, torch.bfloat16})
"""Kinds of numbers that boxes of a data set of one's own come in, and mean the same as in float32."""


class UserData(Dataset):
    """A user's map-style data set, made repeatable: what it draws from the global generators is seeded by the key.

    Values pass through unchanged, NaN and infinities too: the guard refuses them by name. Image ids are those of the
    targets' ``image_id``, known once an image has been read; positions where there are none.

    Args:
        dataset: ``dataset[i]`` gives ``(image float32 (3, H, W) in 0..1, target)``.
        seed: of the run.

    Attributes:
        longest: the longest side, pixels, to which the model resizes; an image of which nothing would be left is
            refused. None: the model does not resize.
        by_place: images go by their position, because the ids of the targets do not tell them apart.
    """

    provisional = True
    longest: int | None = None
    by_place = False
    resized = False
    aspect_ratios = None

    def __init__(self, dataset: Any, *, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed
        self._positions = np.arange(len(dataset), dtype=np.int64)
        self._left_out: dict[int | None, set[int]] = {}

    @property
    def image_ids(self) -> np.ndarray:
        """int64 (N,): positions, until samples tell the true ids."""
        return self._positions

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.sample(0, index)

    def images_of_one_id(self) -> tuple[int, int, int] | None:
        """Two of eight items, spread over the set, that give the same image id, and that id; None: there are none."""
        first: dict[int, int] = {}
        for index in np.unique(np.linspace(0, len(self) - 1, 8).astype(int)).tolist():
            try:
                target = self.sample(0, index)[1]
            except (DataError, MemoryError):  # told when its turn comes
                continue
            number = image_id(target, -1)
            if first.setdefault(number, index) != index and number >= 0:
                return first[number], index, number
        return None

    def quarantine(self, annotation_ids: Iterable[int], image_ids: Iterable[int] | None = None) -> None:
        """Leave these annotations out of all targets that have ``annotation_ids``; start running loaders anew.

        ``image_ids``: in these images alone, because ids often start again in each; None: wherever they are met.
        """
        gone = {int(a) for a in annotation_ids}
        for image in (None,) if image_ids is None else map(int, image_ids):
            self._left_out.setdefault(image, set()).update(gone)

    def sample(self, epoch: int, index: int, repeat: int = 0) -> tuple[Tensor, Target]:
        """What the data set yields at ``index``, with the generators seeded from (seed, epoch, index, repeat).

        Raises:
            DataError: the data set raised, or yielded something other than an image and a dict.
        """
        with seeded(self.seed, epoch, index, 3, *((repeat,) if repeat else ())):
            try:
                item = self.dataset[index]
            except MemoryError:  # of the machine, not of this item: it can be tried again
                raise
            except Exception as e:  # a user's code may raise anything; the sentence must name the item
                raise DataError(
                    f"the data set failed at item {index}: {type(e).__name__}: {e}",
                    fix=f"look at dataset[{index}]; --debug shows where it was raised",
                ) from e
        image, target = _checked_item(item, index)
        if self.by_place:
            target["image_id"] = index
        self._require_thick(image, target, index)
        ids = unique_in_image(target.pop("annotation_ids", None))
        if ids is None:
            return image, target
        target["annotation_ids"] = ids
        gone = self._left_out.get(None, set()) | self._left_out.get(image_id(target, index), set())
        if gone:
            batch = Batch([image], [target], [SampleKey(epoch, index, index)])
            target = batch.drop_annotations(0, gone).targets[0]
        return image, target

    def _require_thick(self, image: Tensor, target: Target, index: int) -> None:
        if self.longest is None or image.ndim != 3:  # of another form: that is refused by its own name
            return
        thin = too_thin(int(image.shape[1]), int(image.shape[2]), self.longest)
        if thin is not None:
            number = image_id(target, index)
            error = DataError(
                f"item {index} of the data set (image {number}): {thin.what}",
                fix=f"cut it into pieces, or raise the model's max_size above {self.longest}",
            )
            raise SampleError(error, SampleKey(0, index, number))


def unique_in_image(given: Any) -> Tensor | None:
    """Annotation ids of one target, int64 (N,), unique there: those that stand for several of its objects (0 for all of
    them, say), are below 0 or no whole numbers become the object's place, -1 for the first, as in `CocoTable.ann_ids`.
    None: ``given`` is no list of ids.
    """
    try:
        count = len(given)
        ids = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return -1 - torch.arange(len(given)) if isinstance(given, (list, tuple, np.ndarray)) else None
    if ids.ndim != 1 or ids.is_complex():
        return None
    whole = ids.to(torch.int64)
    shared = (whole[:, None] == whole).sum(dim=1) > 1
    return torch.where(shared | (whole < 0) | (whole != ids), -1 - torch.arange(count), whole)


def _usual(target: Target) -> Target:
    """``target`` without gradients, and with boxes in float32, which whole numbers and NumPy's floats are not."""
    usual = {k: v.detach() if isinstance(v, Tensor) and v.requires_grad else v for k, v in target.items()}
    boxes = usual.get("boxes")
    if isinstance(boxes, Tensor) and boxes.dtype in BOXES:
        usual["boxes"] = boxes.float()
    return usual


def _checked_item(item: Any, index: int) -> tuple[Tensor, Target]:
    if is_sample(item):
        image = item[0].detach() if item[0].requires_grad else item[0]
        # NumPy's floats are float64, and half precision saves room on a disk: their values mean the same.
        return image.float() if image.is_floating_point() else image, _usual(item[1])
    error = refusal(item, index)
    # Some part of it may say which image it is all the same.
    targets = [p for p in (item if isinstance(item, (tuple, list)) else [item]) if isinstance(p, dict)]
    number = image_id(targets[0], -1) if targets else -1
    raise error if number < 0 else SampleError(error, SampleKey(0, index, number))
