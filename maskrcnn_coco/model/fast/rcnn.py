"""The detector itself in training: torchvision's forward pass without its look at every image's boxes."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from maskrcnn_coco.model.fast.rpn import FastRPN


class _Fast(GeneralizedRCNN):
    """torchvision asks the device for each image whether a box has no width or height; `FastRPN` asks once."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]] | None = None) -> Any:
        """As torchvision's: a dict of losses in training, else a list of detections."""
        if not self.training or not images or images[0].device.type == "cpu" or type(self.rpn) is not FastRPN:
            return super().forward(images, targets)
        if targets is None:
            raise AssertionError("targets should not be none when in training mode")
        for target in targets:
            boxes = target["boxes"]
            if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[-1] != 4:
                got = getattr(boxes, "shape", type(boxes))
                raise AssertionError(f"Expected target boxes to be a tensor of shape [N, 4], got {got}.")
        packed, targets = self.transform(images, targets)
        features = self.backbone(packed.tensors)
        features = {"0": features} if isinstance(features, Tensor) else features
        proposals, proposal_losses = self.rpn(packed, features, targets)
        _, losses = self.roi_heads(features, proposals, packed.image_sizes, targets)
        return {**losses, **proposal_losses}


class FastMaskRCNN(_Fast, MaskRCNN):
    """`MaskRCNN` with the same parameters, calls and losses."""


class FastFasterRCNN(_Fast, FasterRCNN):
    """`FasterRCNN` with the same parameters, calls and losses."""
