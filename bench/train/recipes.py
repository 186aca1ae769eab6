"""The recipes that are compared, each with what was expected of it before it ran."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import msgspec
from sets import BenchSet

from maskrcnn_coco.data import augment
from maskrcnn_coco.data.augment import Policy, Scale, _Op
from maskrcnn_coco.model import optim

FLIP_ONLY = Policy(flip="horizontal")
LSJ = Policy(flip="horizontal", scale=Scale(low=0.1, high=2.0))
TURNED = msgspec.structs.replace(augment.LIGHT, flip="both", rot90=_Op(p=0.75))


@dataclass(frozen=True)
class Arm:
    """One recipe.

    Attributes:
        expected: what was predicted before the first run.
        config: set → fields of Config that differ from today's default.
        policy: an augmentation in place of the preset's.
        steps_at: milestones of the "step" schedule, shares of the run.
        smallest: False lets a jittered scale shrink objects to nothing, as the original does.
        costs: a step costs something else than the default's, so that the budget holds another number of them.
        only: the sets that it makes sense on.
    """

    name: str
    expected: str
    config: Any = field(default=lambda s, epoch: {})
    policy: Policy | None = None
    steps_at: tuple[float, float] | None = None
    smallest: bool = True
    costs: bool = False
    only: tuple[str, ...] = ("dsb2018", "cars", "shapes")

    def fields(self, of: BenchSet, epoch: int) -> dict[str, Any]:
        """Fields of Config; ``epoch``: steps of one."""
        return self.config(of, epoch)

    @contextmanager
    def in_force(self) -> Iterator[None]:
        """What Config cannot say, for the time of one run."""
        with ExitStack() as stack:
            if self.policy is not None:
                stack.enter_context(patch("maskrcnn_coco.data.sources.policy_of_run", lambda *_, **__: self.policy))
            if self.steps_at is not None:
                stack.enter_context(patch.object(optim, "STEP_AT", self.steps_at))
            if not self.smallest:
                stack.enter_context(patch("maskrcnn_coco.data.dataset.smallest_scale", lambda *_: 0.0))
            yield


def _torchvision(of: BenchSet, epoch: int) -> dict[str, Any]:
    """references/detection/train.py: 0.02 for 8 × 2 images, 26 epochs with steps at 16 and 22, one epoch of warm-up."""
    return {
        "lr": 0.00125 * of.batch_size,
        "head_lr_multiplier": 1.0,
        "schedule": "step",
        "warmup_steps": max(1, min(1000, epoch - 1)),
        "max_grad_norm": 0.0,
    }


def _detectron2(of: BenchSet, epoch: int) -> dict[str, Any]:
    """configs/new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py: 0.1 for 64 images, steps at 8/9 and 26/27 of the run."""
    return {
        "lr": 0.1 / 64 * of.batch_size,
        "head_lr_multiplier": 1.0,
        "schedule": "step",
        "warmup_steps": max(1, min(500, epoch - 1)),
        "weight_decay": 4e-5,
        "max_grad_norm": 0.0,
    }


ARMS = {
    a.name: a
    for a in (
        Arm(
            "default",
            "the reference: backbone and FPN at 1e-3, heads at 5e-3 (shapes: 5e-3 and 2.5e-2), cosine, light",
            # As it was: today's default is "rpn x5" where the backbone alone is pretrained.
            lambda *_: {"rpn_lr_multiplier": 1.0},
        ),
        Arm(
            "torchvision",
            "below the default on nuclei and cars by a tenth (heads at half the rate), on shapes too",
            _torchvision,
            policy=FLIP_ONLY,
            steps_at=(16 / 26, 22 / 26),
            costs=True,
        ),
        Arm(
            "detectron2",
            "last on all three: jitter 0.1 to 2 is made for 100 epochs and more",
            _detectron2,
            policy=LSJ,
            steps_at=(8 / 9, 26 / 27),
            smallest=False,
            costs=True,
        ),
        Arm(
            "rates 2.5x",
            "above the default on nuclei and cars by a tenth or more: FPN, RPN and heads are random, runs short",
            lambda *_: {"lr": 2.5e-3},
            only=("dsb2018", "cars"),
        ),
        Arm(
            "rpn x5",
            "a little above the default on nuclei and cars: a random RPN at the heads' rate; shapes within noise",
            lambda *_: {"rpn_lr_multiplier": 5.0},
        ),
        Arm(
            "medium",
            "below the default by up to a tenth: wide jitter pays in long runs",
            lambda *_: {"augment": "medium"},
            costs=True,
        ),
        Arm(
            "turned",
            "nuclei within noise of the default: few epochs, little to overfit",
            policy=TURNED,
            only=("dsb2018",),
        ),
        Arm(
            "copy-paste",
            "within noise: published gains need schedules 1.5 times as long",
            lambda *_: {"copy_paste": 0.5},
            costs=True,
        ),
        Arm("short warm-up", "within noise: warm-up is a twentieth of the run already", lambda *_: {"warmup_steps": 5}),
        Arm(
            "balance",
            "cars a little above the default, the rest untouched",
            lambda *_: {"class_balance": "repeat"},
            only=("cars",),
        ),
    )
}
