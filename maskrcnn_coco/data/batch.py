"""Batches that know which samples they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from maskrcnn_coco.data.outlines import Outlines
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.errors import DataError

Target = dict[str, Any]


class Source(Protocol):
    """Where training samples come from: `data.CocoDataset` or `data.UserData`.

    ``image_ids`` int64 (N,); ``provisional``: they are only positions, the samples tell the true ones.
    ``resized``: images have their final size, the model must not resize them again.
    """

    provisional: bool
    resized: bool

    @property
    def image_ids(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def sample(self, epoch: int, index: int, repeat: int = 0) -> tuple[Tensor, Target]:
        """Image and target, a pure function of the run's seed and the arguments, see `SampleKey`."""
        ...


@dataclass
class Batch:
    """Images of one forward pass.

    Attributes:
        images: (3, H, W) each, uint8, or float32 in 0..1.
        targets: one dict an image: ``boxes`` float32 (N, 4) xyxy pixels of that image, ``labels`` int64 (N,),
            ``masks`` uint8 (N, H, W) or ``outlines``, `Outlines` of N objects, ``image_id`` int, ``annotation_ids``
            int64 (N,), ``iscrowd`` int64 (N,), ``area`` float32 (N,); of a user's data set, whatever it yields.
        keys: what each sample can be made again from.
        resized: the images have their final size; the model's own resizing is to be left out in training.
    """

    images: list[Tensor]
    targets: list[Target]
    keys: list[SampleKey]
    resized: bool = False

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_ids(self) -> list[int]:
        """Image ids, in order."""
        return [key.image_id for key in self.keys]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """On ``device``, images float32 in 0..1: they travel as bytes and are divided there. Masks stay uint8."""
        images = [_unit(image.to(device, non_blocking=non_blocking)) for image in self.images]
        return replace(self, images=images, targets=[_moved(t, device, non_blocking) for t in self.targets])

    def pin_memory(self) -> Batch:
        """In page-locked memory, for copies that do not wait; torch's DataLoader calls this."""
        targets = [{k: v.pin_memory() if isinstance(v, Tensor) else v for k, v in t.items()} for t in self.targets]
        return replace(self, images=[image.pin_memory() for image in self.images], targets=targets)

    def subset(self, positions: Sequence[int]) -> Batch:
        """The samples at ``positions``, in that order."""
        pick = lambda items: [items[p] for p in positions]  # noqa: E731
        return replace(self, images=pick(self.images), targets=pick(self.targets), keys=pick(self.keys))

    def drop_annotations(self, position: int, annotation_ids: Iterable[int]) -> Batch:
        """Without these annotations of the image at ``position``; everything that has a row an object follows.

        Raises:
            ValueError: the target has no ``annotation_ids``.
        """
        target = self.targets[position]
        ids = target.get("annotation_ids")
        if ids is None:
            raise ValueError(f"image {self.keys[position].image_id} has no annotation_ids")
        keep = ~torch.isin(torch.as_tensor(ids), torch.tensor(sorted(annotation_ids), dtype=torch.int64))
        targets = list(self.targets)
        targets[position] = {k: _kept(v, keep) for k, v in target.items()}
        return replace(self, targets=targets)


def _kept(value: Any, keep: Tensor) -> Any:
    if isinstance(value, Outlines):
        return value[keep]
    per_object = isinstance(value, Tensor) and value.ndim > 0 and len(value) == len(keep)
    return value[keep.to(value.device)] if per_object else value


def _unit(image: Tensor) -> Tensor:
    return image / 255 if image.dtype == torch.uint8 else image


def _moved(target: Target, device: torch.device | str, non_blocking: bool) -> Target:
    return {k: v.to(device, non_blocking=non_blocking) if isinstance(v, Tensor) else v for k, v in target.items()}


class SampleError(DataError):
    """A sample that cannot be made. ``key`` says which: its image may be left out, and the run go on."""

    def __init__(self, error: DataError, key: SampleKey) -> None:
        super().__init__(error.what, got=error.got, expected=error.expected, fix=error.fix)
        self.key = key


def make_batch(source: Source, keys: Sequence[SampleKey]) -> Batch:
    """The batch of these samples: the same one each time, in any process.

    Raises:
        SampleError: a sample cannot be read.
    """
    samples: list[tuple[Tensor, Target]] = []
    for key in keys:
        try:
            samples.append(source.sample(key.epoch, key.index, key.repeat))
        except SampleError as e:  # it was read, and has said its true id
            raise SampleError(e, key._replace(image_id=e.key.image_id)) from e
        except DataError as e:
            raise SampleError(e, key) from e
    if source.provisional:
        keys = [key._replace(image_id=image_id(t, key.index)) for key, (_, t) in zip(keys, samples, strict=True)]
    return Batch([i for i, _ in samples], [t for _, t in samples], list(keys), resized=source.resized)


def image_id(target: Target, default: int) -> int:
    """The id that a target gives its image: an int of 64 bits or a tensor of one; ``default`` where it gives none."""
    value = target.get("image_id")
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_floating_point():
        return int(value)
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        return default
    return int(value) if -(2**63) <= int(value) < 2**63 else default
