"""The bodies of the detectors: torchvision's classifiers without their heads, and where the FPN taps them.

Each has its own way with norms: ResNets and MobileNet take frozen batch norms where their weights are loaded and
GroupNorm from scratch; ConvNeXt and Swin bring LayerNorm, which no batch can spoil.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torchvision
from torch import Tensor, nn
from torchvision.models import _utils

NormLayer = Callable[[int], nn.Module]


@dataclass(frozen=True)
class Body:
    """How a body is made and tapped.

    Attributes:
        make: torchvision's builder.
        weights: torchvision's ImageNet weights.
        taps: the children whose outputs feed the FPN, finest (stride 4) first.
        widths: channels of each.
        stages: the last child of each stage, stem first; for ResNets by name.
        own_norm: it brings LayerNorm; the builder takes no ``norm_layer``.
        channels_last: its features are (N, H, W, C).
    """

    make: Callable[..., nn.Module]
    weights: Any
    taps: tuple[str, str, str, str]
    widths: tuple[int, int, int, int]
    stages: tuple[int, ...] = ()
    own_norm: bool = False
    channels_last: bool = False

    def build(self, norm: NormLayer) -> nn.Module:
        """The body with random weights."""
        if self.own_norm:
            return self.make(weights=None).get_submodule("features")
        made = self.make(weights=None, norm_layer=norm)
        return made.get_submodule("features") if self.stages else made

    def stage_of(self, child: str) -> int:
        """The stage, from 0 for the stem, that a child belongs to; a stage ends where the next resolution begins."""
        if not self.stages:
            return int(child.removeprefix("layer")) if child.startswith("layer") else 0
        return next(stage for stage, last in enumerate(self.stages) if int(child) <= last)


class ChannelsFirst(_utils.IntermediateLayerGetter):
    """Taps features (N, H, W, C), as Swin has them, and hands them on as the (N, C, H, W) that an FPN takes."""

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Name → features (N, C, H, W)."""
        return OrderedDict((name, v.permute(0, 3, 1, 2).contiguous()) for name, v in super().forward(x).items())


_M = torchvision.models
_LAYERS = ("layer1", "layer2", "layer3", "layer4")
_WIDE = (256, 512, 1024, 2048)
_PLAIN = ("1", "3", "5", "7")
_NEXT = (96, 192, 384, 768)

BODIES: dict[str, Body] = {
    "maskrcnn_resnet18_fpn": Body(_M.resnet18, _M.ResNet18_Weights.IMAGENET1K_V1, _LAYERS, (64, 128, 256, 512)),
    "maskrcnn_resnet50_fpn": Body(_M.resnet50, _M.ResNet50_Weights.IMAGENET1K_V1, _LAYERS, _WIDE),
    "maskrcnn_resnet50_fpn_v2": Body(_M.resnet50, _M.ResNet50_Weights.IMAGENET1K_V1, _LAYERS, _WIDE),
    "maskrcnn_resnet101_fpn": Body(_M.resnet101, _M.ResNet101_Weights.IMAGENET1K_V2, _LAYERS, _WIDE),
    "maskrcnn_resnext50_32x4d_fpn": Body(_M.resnext50_32x4d, _M.ResNeXt50_32X4D_Weights.IMAGENET1K_V2, _LAYERS, _WIDE),
    "maskrcnn_resnext101_64x4d_fpn": Body(
        _M.resnext101_64x4d, _M.ResNeXt101_64X4D_Weights.IMAGENET1K_V1, _LAYERS, _WIDE
    ),
    "maskrcnn_mobilenet_v2_fpn": Body(
        _M.mobilenet_v2,
        _M.MobileNet_V2_Weights.IMAGENET1K_V1,
        ("3", "6", "13", "18"),
        (24, 32, 96, 1280),
        stages=(1, 3, 6, 13, 18),
    ),
    "maskrcnn_convnext_tiny_fpn": Body(
        _M.convnext_tiny, _M.ConvNeXt_Tiny_Weights.IMAGENET1K_V1, _PLAIN, _NEXT, (0, 1, 3, 5, 7), own_norm=True
    ),
    "maskrcnn_convnext_small_fpn": Body(
        _M.convnext_small, _M.ConvNeXt_Small_Weights.IMAGENET1K_V1, _PLAIN, _NEXT, (0, 1, 3, 5, 7), own_norm=True
    ),
    "maskrcnn_swin_t_fpn": Body(
        *(_M.swin_t, _M.Swin_T_Weights.IMAGENET1K_V1, _PLAIN, _NEXT, (0, 1, 3, 5, 7)), own_norm=True, channels_last=True
    ),
    "maskrcnn_swin_s_fpn": Body(
        *(_M.swin_s, _M.Swin_S_Weights.IMAGENET1K_V1, _PLAIN, _NEXT, (0, 1, 3, 5, 7)), own_norm=True, channels_last=True
    ),
}
"""By the names of `config.settings.MODELS`."""
