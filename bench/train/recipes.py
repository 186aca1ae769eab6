"""The recipes that are compared, each with what was expected of it before it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import msgspec
from sets import BenchSet
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from maskrcnn_coco.data import augment
from maskrcnn_coco.data.augment import Policy, Scale, _Op
from maskrcnn_coco.model import optim
from maskrcnn_coco.model.architecture import group_norm

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
    change: Callable[[Any], None] | None = None
    """What it has another way in the model, before that is made fast."""
    starts_from: str | None = None
    """The set that a detector was trained on before, by "rpn x5" in the budget of one: all but its last predictors."""
    images: int | None = None
    """So many training images alone."""
    longer: float = 1.0
    """So many times the steps: a floor of steps where the epochs of few images are short."""
    predictors: float = 1.0
    """The last predictors' rate over that of the other layers of their heads."""
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
            if self.predictors != 1:
                stack.enter_context(patch.object(optim, "parameter_groups", _predictors_apart))
                rates = lambda optimizer, lr: _apply_lr(optimizer, lr, self.predictors)  # noqa: E731
                stack.enter_context(patch("maskrcnn_coco.training.session.apply_lr", rates))
            if not self.smallest:
                stack.enter_context(patch("maskrcnn_coco.data.dataset.smallest_scale", lambda *_: 0.0))
            yield


def _torchvision(of: BenchSet, epoch: int) -> dict[str, Any]:
    """references/detection/train.py: 0.02 for 8 × 2 images, 26 epochs with steps at 16 and 22, one epoch of warm-up."""
    return {
        "lr": 0.00125 * of.batch_size,
        "head_lr_multiplier": 1.0,
        "rpn_lr_multiplier": 1.0,
        "schedule": "step",
        "warmup_steps": max(1, min(1000, epoch - 1)),
        "max_grad_norm": 0.0,
    }


def _detectron2(of: BenchSet, epoch: int) -> dict[str, Any]:
    """configs/new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py: 0.1 for 64 images, steps at 8/9 and 26/27 of the run."""
    return {
        "lr": 0.1 / 64 * of.batch_size,
        "head_lr_multiplier": 1.0,
        "rpn_lr_multiplier": 1.0,
        "schedule": "step",
        "warmup_steps": max(1, min(500, epoch - 1)),
        "weight_decay": 4e-5,
        "max_grad_norm": 0.0,
    }


def _group_norm(model: Any) -> None:
    """In the FPN and the mask head, as detectron2's GN configs have it; the box head of two layers has no place."""
    fpn, head = model.backbone.fpn, model.roi_heads.mask_head
    widths, channels = [b[0].in_channels for b in fpn.inner_blocks], fpn.inner_blocks[0][0].out_channels
    model.backbone.fpn = FeaturePyramidNetwork(widths, channels, LastLevelMaxPool(), norm_layer=group_norm)
    layers = [block[0].out_channels for block in head]
    model.roi_heads.mask_head = MaskRCNNHeads(channels, layers, 1, norm_layer=group_norm)


def _small_anchors(model: Any) -> None:
    """Four fifths of the nuclei lie between the first and third of these; today's first three are 6, 13 and 26."""
    model.rpn.anchor_generator = AnchorGenerator(((4,), (8,), (16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 5)


def _loose_nms(model: Any) -> None:
    """Neighbours that touch keep a proposal each: 0.7 takes boxes that overlap more as one."""
    model.rpn.nms_thresh = 0.85


PREDICTORS = ("cls_score", "bbox_pred", "mask_fcn_logits")
"""The layers whose size follows the classes: random, whatever a detector starts from."""


def _predictors_apart(model: nn.Module, weight_decay: float) -> list[dict]:
    """`optim.parameter_groups`, each head's in two."""
    heads = model.get_submodule("roi_heads").named_parameters()
    last = {id(p) for name, p in heads if any(part in name for part in PREDICTORS)}
    groups = []
    for group in _PLAIN_GROUPS(model, weight_decay):
        for apart in (False, True):
            params = [p for p in group["params"] if (id(p) in last) == apart]
            if params:
                groups.append({**group, "params": params, "apart": apart})
    return groups


_PLAIN_GROUPS, _PLAIN_RATES = optim.parameter_groups, optim.apply_lr


def _apply_lr(optimizer: Any, lr: Any, predictors: float) -> None:
    _PLAIN_RATES(optimizer, lr)
    for group in optimizer.param_groups:
        group["lr"] *= predictors if group["apart"] else 1.0


ARMS = {
    a.name: a
    for a in (
        Arm(
            "default",
            "the reference: backbone and FPN at 1e-3, heads at 5e-3 (shapes: 5e-3 and 2.5e-2), cosine, light",
            # As it was: today's default is "fpn x5" where the backbone alone is pretrained.
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
        # All that follow stand beside "rpn x5", which was the default between the first and "fpn x5".
        Arm(
            "group norm",
            "above rpn x5 by a tenth where steps are few: random layers begin at a known scale; a step costs 1.05",
            lambda *_: {"rpn_lr_multiplier": 5.0},
            change=_group_norm,
            costs=True,
            only=("dsb2018", "cars"),
        ),
        Arm(
            "small anchors",
            "within noise of rpn x5: 6, 13 and 26 fit nuclei of 4 to 24 pixels, half of them 11, as well",
            lambda *_: {"rpn_lr_multiplier": 5.0},
            change=_small_anchors,
            only=("dsb2018",),
        ),
        Arm(
            "rpn nms 0.85",
            "within noise or below rpn x5: 32 proposals an image are sampled, and near copies crowd out others",
            lambda *_: {"rpn_lr_multiplier": 5.0},
            change=_loose_nms,
            only=("dsb2018",),
        ),
        Arm(
            "trained heads x5",
            "far above rpn x5 at the same steps: everything but two predictors was trained on cars",
            lambda *_: {"rpn_lr_multiplier": 1.0},
            starts_from="cars",
            only=("dsb2018",),
        ),
        Arm(
            "trained heads x1, predictors x5",
            "within noise of trained heads x5: on other objects the heads have to learn anew all the same",
            lambda *_: {"rpn_lr_multiplier": 1.0, "head_lr_multiplier": 1.0},
            starts_from="cars",
            predictors=5.0,
            only=("dsb2018",),
        ),
        Arm(
            "fpn x5",
            "a tenth above rpn x5 on both: a random FPN at the body's rate feeds everything behind it",
            lambda *_: {"rpn_lr_multiplier": 5.0, "fpn_lr_multiplier": 5.0},
            only=("dsb2018", "cars"),
        ),
        Arm(
            "rates 2.5x, rpn x5",
            "above rpn x5 on cars, whose 750 steps learn little, and below fpn x5 on nuclei: the body forgets",
            lambda *_: {"lr": 2.5e-3, "rpn_lr_multiplier": 5.0},
            only=("dsb2018", "cars"),
        ),
        Arm(
            "20 images",
            "two thirds of rpn x5's AP on all images at the same steps",
            lambda *_: {"rpn_lr_multiplier": 5.0},
            images=20,
            only=("dsb2018",),
        ),
        Arm(
            "20 images, 3 times the steps",
            "above 20 images by a fifth: at 300 steps nothing is overfitted yet",
            lambda *_: {"rpn_lr_multiplier": 5.0},
            images=20,
            longer=3.0,
            only=("dsb2018",),
        ),
    )
}
