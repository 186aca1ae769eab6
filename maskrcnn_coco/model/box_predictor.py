"""A box predictor that computes in float32 under autocast, as the rest of the box arithmetic (`exact_boxes`) does."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from maskrcnn_coco.system.exact_boxes import in_float32


class Float32Predictor(FastRCNNPredictor):
    """torchvision's `FastRCNNPredictor`; computed and answered in float32: its two layers cost next to nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (N, K) and box deltas (N, 4K) of box features (N, C)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(in_float32(x))
