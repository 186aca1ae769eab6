"""One forward pass of training as a pure function of (weights, batch, seed, step, micro-batch, rank)."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskrcnn_coco.system.exact_boxes import exact_boxes
from maskrcnn_coco.system.precision import autocast

if TYPE_CHECKING:
    from maskrcnn_coco.data.batch import Batch


def step_seed(seed: int, step: int, micro: int, rank: int = 0) -> int:
    """A 63-bit seed from the run's seed and a counter: the same numbers in any process, in any order of calls."""
    key = f"{seed}:{step}:{micro}:{rank}".encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 1


class Forward:
    """``forward(batch)`` for the guard: counts micro-batches itself, seeds torch before each.

    torchvision's RPN and RoI samplers draw from torch's global generator; seeding it from a counter makes every step
    repeatable on its own, without saved generator states. Boxes stay float32 in every precision (`exact_boxes`), for a
    model of the caller's as well.
    """

    def __init__(self, model: nn.Module, *, device: torch.device, precision: str, seed: int, rank: int = 0) -> None:
        self.model = model
        self.device = device
        self.precision = precision
        self.seed = seed
        self.rank = rank
        self._step = 0
        self._micro = 0

    def begin(self, step: int) -> Forward:
        """Make the next call micro-batch 0 of planned step ``step``."""
        self._step, self._micro = step, 0
        return self

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Losses of one micro-batch, by torchvision's names; float scalars with a graph."""
        losses = self.losses(self.model, batch, self._step, self._micro)
        self._micro += 1
        return losses

    def losses(
        self, model: nn.Module, batch: Batch, step: int, micro: int, precision: str | None = None
    ) -> dict[str, Tensor]:
        """The same for any copy of the model, at any step; ``precision`` overrides the run's (for replays)."""
        batch = batch.to(self.device, non_blocking=True)
        torch.manual_seed(step_seed(self.seed, step, micro, self.rank))
        transform = getattr(model, "transform", None)
        if isinstance(transform, GeneralizedRCNNTransform):
            # Our own data sets resize (multi-scale) themselves; torchvision's transform then only normalises and pads.
            transform._skip_resize = batch.resized
        with autocast(precision or self.precision, self.device):
            losses = exact_boxes(model)(batch.images, batch.targets)
        return {name: value.float() for name, value in losses.items()}
