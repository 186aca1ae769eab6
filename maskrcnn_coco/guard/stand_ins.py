"""What an attached model is given in the place of samples that it must not see.

A loop of somebody's own calls its model whatever the guard found, and nothing but an error could keep it from that; an
error ends the loop. So the bad samples of a detector's batch give way to sound ones: of the same batch, or the one
that is remembered. The first time the step is refused all the same; it is about the loop to go on.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.guard import inputs
from maskrcnn_coco.guard.inputs import Expected

Sample = tuple[Any, Mapping[str, Any]]


class StandIns:
    """Finds sound samples for the arguments of one model's forward passes; of other batches than a detector's none."""

    def __init__(self) -> None:
        self._known: Sample | None = None

    def learn(self, args: tuple[Any, ...]) -> None:
        """A sound batch: a copy of the first sample with objects is kept, for a batch that has no sound one itself."""
        pair = inputs.detection_pair(args) if self._known is None else None
        if pair is not None:
            first = next(((i, t) for i, t in zip(*pair, strict=False) if len(t["boxes"])), None)
            self._known = None if first is None else _copy(first)

    def instead(
        self, args: tuple[Any, ...], expected: Expected, ids: Collection[int] | None = None
    ) -> tuple[Any, ...] | None:
        """``args`` with copies of sound samples in the place of those that the model must not see.

        Args:
            ids: only where a bad sample is of one of these images.

        Returns:
            ``args`` itself where nothing is bad; None where nothing sound is known, or the batch as such is wrong.
        """
        problems = inputs.check([args], expected)
        bad = {p.position for p in problems if ids is None or p.image_id in ids}
        if not bad:
            return args
        pair = inputs.detection_pair(args)
        if pair is None or any(p.kind == "batch" for p in problems):
            return None
        images, targets = list(pair[0]), list(pair[1])
        places = {p.position for p in problems}
        sound = [(images[i], targets[i]) for i in range(len(images)) if i not in places]
        if not sound and self._known is not None and not inputs.check([_alone(self._known)], expected):
            sound = [self._known]
        if not sound:
            return None
        for n, place in enumerate(sorted(bad)):
            images[place], targets[place] = _copy(sound[n % len(sound)])
        if isinstance(pair[0], Tensor):
            if len({i.shape for i in images}) > 1:
                return None
            return torch.stack(images), _like(targets, pair[1])
        return _like(images, pair[0]), _like(targets, pair[1])


def _alone(sample: Sample) -> tuple[list[Any], list[Any]]:
    return [sample[0]], [sample[1]]


def _copy(sample: Sample) -> Sample:
    image, target = sample
    clone = lambda v: v.clone() if isinstance(v, Tensor) else v  # noqa: E731
    return clone(image), {k: clone(v) for k, v in target.items()}


def _like(made: list[Any], given: Any) -> Any:
    """As a tuple, where ``given`` was one."""
    return tuple(made) if isinstance(given, tuple) else made
