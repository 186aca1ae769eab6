"""What the bench's detectors share: a backbone in miniature, and the heads of torchvision's two-stage ones."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

SIZE = 64
CLASSES = 4

NORM_KINDS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "group": lambda channels: nn.GroupNorm(4, channels),
}


class Stem(nn.Module):
    """Three strided stages and an FPN: the smallest backbone that has every part."""

    def __init__(self, norm: Callable[[int], nn.Module] = FrozenBatchNorm2d, out: int = 16) -> None:
        super().__init__()
        self.out_channels = out
        stage = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), norm(o), nn.ReLU())  # noqa: E731
        self.body = nn.ModuleDict({"layer1": stage(3, 12, 4), "layer2": stage(12, 16, 2), "layer3": stage(16, 24, 2)})
        self.fpn = FeaturePyramidNetwork([16, 24], out)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        second = self.body["layer2"](self.body["layer1"](x))
        return self.fpn(OrderedDict([("0", second), ("1", self.body["layer3"](second))]))


def two_stage(anchors: Any = None, ratios: Any = None) -> dict[str, Any]:
    """What torchvision's two-stage detectors are built of beside their `Stem`, by argument name.

    Args:
        anchors: sizes of both levels, pixels; None: 16 and 32.
        ratios: aspect ratios of both levels; None: 0.5, 1 and 2.
    """
    generator = AnchorGenerator(anchors or ((16,), (32,)), ratios or ((0.5, 1.0, 2.0),) * 2)
    return {
        "min_size": SIZE,
        "max_size": SIZE,
        "rpn_anchor_generator": generator,
        "rpn_head": RPNHead(16, generator.num_anchors_per_location()[0]),
        "box_head": TwoMLPHead(16 * 49, 32),
        "box_predictor": FastRCNNPredictor(32, CLASSES),
        "rpn_pre_nms_top_n_train": 100,
        "rpn_post_nms_top_n_train": 50,
        "box_batch_size_per_image": 32,
    }
