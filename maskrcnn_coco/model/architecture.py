"""How the detectors are put together: widths, anchors and samplers by size, norm layers, frozen stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, RPNHead, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.model.backbones import BODIES, ChannelsFirst, NormLayer
from maskrcnn_coco.model.box_predictor import Float32Predictor
from maskrcnn_coco.model.timm_bodies import PREFIX, TimmFeatures, timm_backbone
from maskrcnn_coco.system.exact_boxes import exact_boxes

DEFAULT_FREEZE = 2
"""Backbone stages frozen when weights are loaded: stem and first stage, as torchvision does."""


@dataclass(frozen=True)
class Size:
    """Widths, anchors (pixels of the resized image) and sampler sizes of a detector."""

    channels: int = 256
    box_width: int = 1024
    mask_layers: tuple[int, ...] = (256, 256, 256, 256)
    mask_width: int = 256
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    canonical_scale: int = 224
    rpn_batch: int = 256
    box_batch: int = 512
    proposals_train: tuple[int, int] = (2000, 2000)
    proposals_test: tuple[int, int] = (1000, 1000)


FULL = Size()
SMALL = Size(
    channels=128,
    box_width=256,
    mask_layers=(64, 64),
    mask_width=64,
    anchors=(12, 24, 48, 72, 96),
    rpn_batch=128,
    box_batch=64,
    proposals_train=(300, 200),
    proposals_test=(300, 100),
)
"""The small variant for 128-pixel images with objects of 12 to 90 pixels.

All boxes up to 112 pixels pool from stride 4, as in the full size: a 64-pixel object has 16 cells there, but 4 at
stride 16. Heads have no norm, as torchvision's have none, so that the learning rate matters here as it does there.
"""


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm in at most 32 groups, as many as divide ``channels``."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


NORMS: dict[str, NormLayer] = {"frozen": FrozenBatchNorm2d, "group": group_norm}


def assemble(
    name: str,
    num_classes: int,
    size: Size,
    body_norm: str,
    head_norm: str,
    *,
    min_size: int,
    max_size: int,
    detections: int,
) -> MaskRCNN:
    """A Mask R-CNN with random weights. Norms are keys of `NORMS`; ``head_norm`` matters to resnet50_fpn_v2 only."""
    v2 = name == "maskrcnn_resnet50_fpn_v2"
    norm = NORMS[head_norm] if v2 else None
    backbone = _backbone(name, size.channels, NORMS[body_norm], norm)
    anchors = AnchorGenerator(tuple((s,) for s in size.anchors), ((0.5, 1.0, 2.0),) * len(size.anchors))
    per_cell = anchors.num_anchors_per_location()[0]
    pool = ["0", "1", "2", "3"]
    scale = size.canonical_scale
    if v2:
        box_head: nn.Module = FastRCNNConvFCHead((size.channels, 7, 7), [256] * 4, [size.box_width], norm_layer=norm)
    else:
        box_head = TwoMLPHead(size.channels * 7 * 7, size.box_width)
    model = MaskRCNN(
        backbone,
        min_size=min_size,
        max_size=max_size,
        rpn_anchor_generator=anchors,
        rpn_head=RPNHead(size.channels, per_cell, conv_depth=2 if v2 else 1),
        rpn_batch_size_per_image=size.rpn_batch,
        rpn_pre_nms_top_n_train=size.proposals_train[0],
        rpn_post_nms_top_n_train=size.proposals_train[1],
        rpn_pre_nms_top_n_test=size.proposals_test[0],
        rpn_post_nms_top_n_test=size.proposals_test[1],
        box_roi_pool=MultiScaleRoIAlign(pool, 7, 2, canonical_scale=scale),
        box_head=box_head,
        box_predictor=Float32Predictor(size.box_width, num_classes),
        box_batch_size_per_image=size.box_batch,
        box_detections_per_img=detections,
        mask_roi_pool=MultiScaleRoIAlign(pool, 14, 2, canonical_scale=scale),
        mask_head=MaskRCNNHeads(size.channels, list(size.mask_layers), 1, norm_layer=norm),
        mask_predictor=MaskRCNNPredictor(size.mask_layers[-1], size.mask_width, num_classes),
    )
    exact_boxes(model)
    return model


def _backbone(name: str, channels: int, norm: NormLayer, fpn_norm: NormLayer | None) -> BackboneWithFPN:
    if name.startswith(PREFIX):
        return timm_backbone(name.removeprefix(PREFIX), channels, norm)
    body = BODIES[name]
    made, taps = body.build(norm), {child: str(n) for n, child in enumerate(body.taps)}
    backbone = BackboneWithFPN(made, taps, list(body.widths), channels, norm_layer=fpn_norm)
    if body.channels_last:
        backbone.body = ChannelsFirst(made, taps)
    return backbone


def freeze(model: MaskRCNN, name: str, stages: int | None, *, loaded: bool) -> None:
    """Stop training of the first ``stages`` backbone stages; None: `DEFAULT_FREEZE` where weights were ``loaded``.

    Raises:
        ConfigError: past the last stage, or freezing weights that were never trained.
    """
    if stages and not loaded:
        raise ConfigError(
            "--freeze-stages freezes backbone weights that were never trained",
            got=f"--freeze-stages {stages} with --weights none",
            fix="give --weights or --backbone-weights, or --freeze-stages 0",
        )
    count = (DEFAULT_FREEZE if loaded else 0) if stages is None else stages
    if count > 5:
        raise ConfigError("--freeze-stages is past the last stage", got=count, expected="0 to 5")
    body = model.get_submodule("backbone.body")
    if isinstance(body, TimmFeatures):
        body.freeze(count)
        return
    stage_of = BODIES[name].stage_of
    for child, module in body.named_children():
        if stage_of(child) < count:
            module.requires_grad_(False)
