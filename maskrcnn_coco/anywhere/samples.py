"""A batch of any kind that can be cut along its sample axis: what diagnosis leaves samples out of.

Any nest of tensors, lists and mappings: tensors whose first dimension is the number of samples are cut, and so are
lists of that length; everything else (a temperature, an attention mask for all) belongs to the whole batch. A
``select`` of the caller's own takes the place of that rule.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.guard.inputs import DEEP, image_ids
from maskrcnn_coco.guard.norms import as_real, has_fractions

CHANNELS = (1, 3, 4)
"""Of a picture, the first dimension of its tensor."""
OF_OBJECTS = {"boxes", "labels", "masks", "bbox", "bboxes", "segmentation", "category_id"}
"""Keys one of which every target of a detector has, in torchvision's words or COCO's."""
Select = Callable[[Any, list[int]], Any]
"""(batch, positions) → the batch with these samples only."""


@dataclasses.dataclass(frozen=True)
class Key:
    """Which sample of which step: how a batch is found again. ``index`` tells samples apart, as their ids do."""

    step: int
    micro: int
    position: int
    index: Any
    image_id: int


@dataclasses.dataclass(frozen=True)
class Detection:
    """Images and targets of a micro-batch, in whatever form they came, and the id of each."""

    images: list[Any]
    targets: list[Any]
    image_ids: list[int]


class Samples:
    """One micro-batch as diagnosis wants it: ids, keys, rows to scan, and parts of itself.

    Args:
        data: the caller's batch.
        ids: of each sample; numbers of this run where the caller gave none.
        holes: NaN and infinities among the inputs are usual in this run, so none of them is a fault.
    """

    resized = False

    def __init__(
        self, data: Any, ids: Sequence[int], keys: Sequence[Key], *, select: Select | None = None, holes: bool = False
    ) -> None:
        self.data, self.image_ids, self.keys = data, list(ids), list(keys)
        self._select, self.holes = select, holes
        self._targets: list[dict[str, Any]] = [{} for _ in self.image_ids]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def targets(self) -> list[dict[str, Any]]:
        """Nothing is known of targets as such: they are tensors like all others."""
        return self._targets

    @property
    def images(self) -> list[Tensor]:
        """All floating values of each sample, of complex ones both parts, float32 (n,), scaled to 1 at most: only
        whether they are finite.
        """
        return [self._row(i) for i in range(len(self))]

    @property
    def detection(self) -> Detection | None:
        """The batch as a detector has it, where it is one of images and targets; else None."""
        data = self.data
        if isinstance(data, tuple) and len(data) == 2 and isinstance(data[0], tuple) and isinstance(data[1], dict):
            data = data[0]  # the arguments of a forward pass
        if not isinstance(data, (tuple, list)) or len(data) != 2:
            return None
        images, targets = data
        if not all(isinstance(v, (list, tuple)) and len(v) == len(self) for v in (images, targets)):
            return None
        known = any(isinstance(t, Mapping) and not OF_OBJECTS.isdisjoint(t) for t in targets)
        return Detection(list(images), list(targets), self.image_ids) if known else None

    def subset(self, positions: Sequence[int]) -> Samples:
        """The batch with the samples at ``positions`` only."""
        positions = list(positions)
        data = self._select(self.data, positions) if self._select else cut(self.data, positions, len(self))
        ids, keys = [self.image_ids[p] for p in positions], [self.keys[p] for p in positions]
        return Samples(data, ids, keys, select=self._select, holes=self.holes)

    def _row(self, position: int) -> Tensor:
        part = self._select(self.data, [position]) if self._select else cut(self.data, [position], len(self))
        whole = {id(t) for t in leaves(self.data)}  # what is not cut is not this sample's
        mine = [as_real(t) for t in leaves(part) if has_fractions(t) and id(t) not in whole]
        row = torch.cat([t.detach().reshape(-1).float().cpu() for t in mine] or [torch.zeros(1)])
        if self.holes:
            row = torch.nan_to_num(row, 0.0, 0.0, 0.0)
        largest = float(torch.nan_to_num(row.abs(), 0.0, 0.0, 0.0).max())
        return row / largest if largest > 1.0 else row


def own_ids(data: Any, size: int) -> list[int] | None:
    """The image ids that a detection batch of ``size`` samples carries itself; None where it has none, or not one each.

    They name samples, in the words of the guard's own check; nothing is left out by them, as nobody promised that they
    tell the images of a data set apart.
    """
    found = image_ids([data])
    if not found and isinstance(data, tuple) and len(data) == 2 and isinstance(data[1], dict):
        found = image_ids([data[0]])  # the arguments of a forward pass
    return found if len(found) == size == len(set(found)) else None


def leaves(value: Any, levels: int = DEEP) -> Iterator[Tensor]:
    """Every tensor in a nest."""
    if isinstance(value, Tensor):
        yield value
    elif not levels:
        return
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from leaves(v, levels - 1)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from leaves(v, levels - 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from leaves(getattr(value, f.name), levels - 1)


def size_of(value: Any) -> int:
    """The number of samples: the most common first dimension of the tensors and lists in a nest; 1 without any."""
    sizes = Counter(_lengths(value))
    return max(sizes, key=lambda n: (sizes[n], n)) if sizes else 1


def _lengths(value: Any, levels: int = DEEP) -> Iterator[int]:
    if isinstance(value, Tensor):
        if value.ndim:
            yield len(value)
    elif not levels:
        return
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _lengths(v, levels - 1)
    elif isinstance(value, list) and not _fields(value):
        yield len(value)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _lengths(v, levels - 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _lengths(getattr(value, f.name), levels - 1)


def cut(value: Any, positions: list[int], size: int, levels: int = DEEP) -> Any:
    """The samples at ``positions`` of a nest of ``size`` samples; what is not per sample stays as it is."""
    if isinstance(value, Tensor):
        return value[positions] if value.ndim and len(value) == size else value
    if not levels:
        return value
    deeper = levels - 1
    if isinstance(value, Mapping):
        made = {k: cut(v, positions, size, deeper) for k, v in value.items()}
        return made if type(value) is dict else _same_kind(value, made)
    if isinstance(value, list):
        per_sample = len(value) == size and not _fields(value)
        return [value[p] for p in positions] if per_sample else [cut(v, positions, size, deeper) for v in value]
    if isinstance(value, tuple):
        parts = [cut(v, positions, size, deeper) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: cut(getattr(value, f.name), positions, size, deeper) for f in dataclasses.fields(value)}
        )
    return value


def _fields(value: list[Any]) -> bool:
    """Whether a list stands for the fields of a batch ([inputs, labels], as torch collates), not for its samples.

    Pictures are samples, also where one of them came in another form: other bits, a matrix, no tensor at all.
    """
    tensors = [t for t in value if isinstance(t, Tensor)]
    kinds = {(t.dtype, t.ndim) for t in tensors}
    if not kinds or (len(kinds) == 1 and len(tensors) == len(value)):
        return False
    pictures = sum(t.ndim == 3 and t.shape[0] in CHANNELS for t in tensors)
    nested = any(isinstance(v, (list, tuple, Mapping)) for v in value)
    return nested or not (2 * pictures > len(value) or pictures == len(tensors))


def _same_kind(value: Mapping[Any, Any], made: dict[Any, Any]) -> Any:
    try:
        return type(value)(made)  # type: ignore[call-arg]
    except Exception:  # a mapping with a constructor of its own
        return made
