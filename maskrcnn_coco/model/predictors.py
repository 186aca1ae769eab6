"""Box predictors that answer in float32, so that box arithmetic is exact under autocast.

torchvision decodes boxes in the dtype of the predicted deltas and casts the ground truth to it. In bfloat16, numbers
around 300 are 2 pixels apart: small objects get boxes of no width, whose logarithm is the NaN of `loss_box_reg`, and
every detection is rounded to a 2-pixel grid. Weights and names are torchvision's.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, RPNHead


class Float32RPNHead(RPNHead):
    """torchvision's `RPNHead`; objectness and deltas of every level in no half precision."""

    def forward(self, x: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Objectness (B, A, H, W) and deltas (B, 4A, H, W) of each level."""
        objectness, deltas = super().forward(x)
        return [_exact(o) for o in objectness], [_exact(d) for d in deltas]


class Float32Predictor(FastRCNNPredictor):
    """torchvision's `FastRCNNPredictor`; computed and answered in float32: its two layers cost next to nothing."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Class scores (N, K) and box deltas (N, 4K) of box features (N, C)."""
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(_exact(x))


def _exact(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
