"""Samples: the data set of an annotation file, and the wrapper around a data set that a user brings.

A training sample is a pure function of (seed, epoch, image id). The data set resizes to the final size itself
(multi-scale), so that the model's own transform has only to normalise and pad (`Batch.resized`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from maskrcnn_coco.data.audit.targets import MIN_SIDE
from maskrcnn_coco.data.batch import Batch, Target
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.masks import checked_polygons, checked_runs
from maskrcnn_coco.data.outlines import Outline, Outlines, Runs, draw_masks, move_outlines
from maskrcnn_coco.data.plan import SampleKey, mix
from maskrcnn_coco.data.transforms import SCALES, Recipe, change_boxes, change_image, draw_recipe
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import annotation_words

Transform = Callable[[Tensor, Target], tuple[Tensor, Target]]


class CocoDataset(Dataset):
    """Images and targets of an annotation table; also a torchvision data set: ``image, target = ds[i]``.

    Args:
        table: the annotations.
        train: flip, multi-scale resizing and mild brightness and contrast; crowd regions are no targets. Otherwise
            images come as they are, and crowd regions have ``iscrowd`` 1.
        seed: of the run.
        min_size, max_size: of the resized image, pixels, as the model's; training draws the shorter side from
            ``scales`` times min_size.
        scales: multi-scale training; (1.0,) is off.
        transform: your own augmentation, after this one's, on (image uint8 (3, H, W), target); it may draw from
            torch's, numpy's and Python's global generators, which are seeded for each sample.
        masks: False leaves ``masks`` out, where only boxes are needed.

    Attributes:
        outlines: training targets carry `Outlines` as ``outlines`` in place of ``masks``; for models that take them
            (`fast.takes_outlines`). Never with a ``transform``, which expects masks.
    """

    provisional = False

    def __init__(
        self,
        table: CocoTable,
        *,
        train: bool,
        seed: int = 0,
        min_size: int = 800,
        max_size: int = 1333,
        scales: tuple[float, ...] = SCALES,
        transform: Transform | None = None,
        masks: bool = True,
    ) -> None:
        self.table, self.train, self.seed, self.max_size = table, train, seed, max_size
        self.min_sizes = tuple(round(min_size * s) for s in scales)
        self.transform, self.masks, self.outlines = transform, masks, False
        self.resized = train
        self.epoch = 0
        self._left_out = np.zeros(0, np.int64)
        if len(table):
            table.annotations_of(0)  # its index is made once here, and shared by the workers that are forked later

    def __len__(self) -> int:
        return len(self.table)

    @property
    def image_ids(self) -> np.ndarray:
        """int64 (N,)."""
        return self.table.image_ids

    @property
    def aspect_ratios(self) -> np.ndarray:
        """Width / height as the file says, float64 (N,); 1 where it does not."""
        height, width = self.table.heights.astype(np.float64), self.table.widths.astype(np.float64)
        known = (height > 0) & (width > 0)
        return np.where(known, width, 1.0) / np.where(known, height, 1.0)

    def quarantine(self, annotation_ids: Iterable[int]) -> None:
        """Leave these annotations out of all targets from now on; running loaders must be started anew."""
        self._left_out = np.union1d(self._left_out, np.array(list(annotation_ids), np.int64))

    def set_epoch(self, epoch: int) -> None:
        """The epoch whose augmentation ``ds[i]`` shows."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        """Image float32 (3, H, W) in 0..1, and its target."""
        image, target = self.sample(self.epoch, index)
        return image / 255, target

    def sample(self, epoch: int, index: int) -> tuple[Tensor, Target]:
        """Image uint8 (3, H, W) and target (see `Batch`): a pure function of (seed, epoch, image id).

        Raises:
            DataError: the image cannot be read, or a segmentation is broken; names file and annotation.
        """
        pixels = read_image(self.table.image_root, self.table.file_name(index), self.table.bit_range)
        size = (pixels.shape[0], pixels.shape[1])
        image_id = int(self.table.image_ids[index])
        if self.train:
            recipe = draw_recipe(self.seed, epoch, image_id, size, self.min_sizes, self.max_size)
        else:
            recipe = Recipe(*size)
        image, target = change_image(pixels, recipe), self._target(index, size, recipe)
        if self.transform is None:
            return image, target
        with seeded(self.seed, epoch, image_id, 2):
            return self.transform(image, target)

    def _target(self, index: int, size: tuple[int, int], recipe: Recipe) -> Target:
        table = self.table
        rows = table.annotations_of(index)
        rows = rows[(table.labels[rows] > 0) & ~np.isin(table.ann_ids[rows], self._left_out)]
        if self.train:
            rows = rows[~table.iscrowd[rows]]
        boxes = change_boxes(table.boxes[rows], size, recipe)
        # Written so that a NaN stays in: it is refused by name later, not dropped here.
        large = ~((boxes[:, 2:] - boxes[:, :2]) < MIN_SIDE).any(axis=1)
        rows, boxes = rows[large], boxes[large]
        drawn: Target = {}
        if self.masks:
            outlines = [self._outline(index, row, size) for row in rows]
            if self.outlines and self.train and self.transform is None:
                moved, seen = move_outlines(outlines, size, recipe)
                drawn = {"outlines": Outlines.of(moved, (recipe.height, recipe.width))}
            else:
                masks, seen = draw_masks(outlines, size, recipe)
                drawn = {"masks": masks if seen.all() else masks[torch.from_numpy(seen)]}
            rows, boxes = rows[seen], boxes[seen]
        factor = (recipe.height * recipe.width) / (size[0] * size[1])
        return {
            "boxes": torch.from_numpy(boxes),
            "labels": torch.from_numpy(table.labels[rows].astype(np.int64)),
            "image_id": int(table.image_ids[index]),
            "annotation_ids": torch.from_numpy(table.ann_ids[rows]),
            "iscrowd": torch.from_numpy(table.iscrowd[rows].astype(np.int64)),
            "area": torch.from_numpy((table.area[rows] * factor).astype(np.float32)),
            **drawn,
        }

    def _outline(self, index: int, row: int, size: tuple[int, int]) -> Outline:
        raw = self.table.segmentation_raw(row)
        try:
            value = msgspec.json.decode(raw) if raw else None
            if isinstance(value, dict):
                return Runs(checked_runs(value, *size), size)
            if isinstance(value, list):
                return checked_polygons(value, *size)
            problem = (
                "it has no segmentation" if value is None else f"its segmentation is of type {type(value).__name__}"
            )
            got = expected = None
        except msgspec.DecodeError as e:
            problem, got, expected = f"its segmentation is not JSON: {e}", None, None
        except DataError as e:
            problem, got, expected = e.what, e.got, e.expected
        raise DataError(
            f"{annotation_words([int(self.table.ann_ids[row])])} of image {int(self.table.image_ids[index])} "
            f"({self.table.file_name(index)}): {problem}",
            got=got,
            expected=expected or "polygons or RLE",
            fix="maskrcnn-coco check lists such annotations; --fix OUT.json writes a copy without them",
        )


class seeded:  # noqa: N801
    """The global generators of torch, numpy and Python, seeded from ``numbers`` inside, as before after."""

    def __init__(self, *numbers: int) -> None:
        self.seed = int.from_bytes(mix(*numbers)[:8], "little") >> 1

    def __enter__(self) -> None:
        self._before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        torch.manual_seed(self.seed)
        np.random.seed(self.seed % 2**32)
        random.seed(self.seed)

    def __exit__(self, *_: object) -> None:
        torch_state, numpy_state, python_state = self._before
        torch.set_rng_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)


class UserData(Dataset):
    """A user's map-style data set, made repeatable: what it draws from the global generators is seeded by the key.

    Values pass through unchanged, NaN and infinities too: the guard refuses them by name. Image ids are those of the
    targets' ``image_id``, known once an image has been read; positions where there are none.

    Args:
        dataset: ``dataset[i]`` gives ``(image float32 (3, H, W) in 0..1, target)``.
        seed: of the run.
    """

    provisional = True
    resized = False
    aspect_ratios = None

    def __init__(self, dataset: Any, *, seed: int = 0) -> None:
        self.dataset, self.seed = dataset, seed
        self._positions = np.arange(len(dataset), dtype=np.int64)
        self._left_out: set[int] = set()

    @property
    def image_ids(self) -> np.ndarray:
        """int64 (N,): positions, until samples tell the true ids."""
        return self._positions

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Target]:
        return self.sample(0, index)

    def quarantine(self, annotation_ids: Iterable[int]) -> None:
        """Leave these annotations out of all targets that have ``annotation_ids``; start running loaders anew."""
        self._left_out |= {int(a) for a in annotation_ids}

    def sample(self, epoch: int, index: int) -> tuple[Tensor, Target]:
        """What the data set yields at ``index``, with the generators seeded from (seed, epoch, index).

        Raises:
            DataError: the data set raised, or yielded something other than an image and a dict.
        """
        with seeded(self.seed, epoch, index, 3):
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
        if self._left_out and "annotation_ids" in target:
            batch = Batch([image], [target], [SampleKey(epoch, index, index)])
            target = batch.drop_annotations(0, self._left_out).targets[0]
        return image, target


def _checked_item(item: Any, index: int) -> tuple[Tensor, Target]:
    if isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Tensor) and isinstance(item[1], dict):
        return item[0], dict(item[1])
    parts = [type(i).__name__ for i in item] if isinstance(item, (tuple, list)) else type(item).__name__
    raise DataError(
        f"the data set yields something else at item {index}",
        got=str(parts),
        expected="(image float32 tensor (3, H, W) in 0..1, target dict)",
        fix="return what torchvision's detection models take",
    )
