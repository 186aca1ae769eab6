"""A Mask R-CNN so small that a guarded step takes some 20 ms on one core, with batches; for the sweeps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign

SIZE = 48
CLASSES = 3


class Body(nn.Module):
    """Two strided convolutions with trainable batch norm: the buffers that a forward pass poisons."""

    out_channels = 16

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, 4, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(x)))


def tiny_detector(seed: int = 0) -> MaskRCNN:
    """torchvision's MaskRCNN with the four usual components, in train mode."""
    torch.manual_seed(seed)
    return MaskRCNN(
        Body(),
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=AnchorGenerator(((12, 24),), ((1.0,),)),
        rpn_pre_nms_top_n_train=20,
        rpn_post_nms_top_n_train=8,
        rpn_batch_size_per_image=16,
        box_roi_pool=MultiScaleRoIAlign(["0"], 3, 1),
        box_head=TwoMLPHead(16 * 9, 24),
        box_predictor=FastRCNNPredictor(24, CLASSES),
        box_batch_size_per_image=8,
        mask_roi_pool=MultiScaleRoIAlign(["0"], 6, 1),
        mask_head=MaskRCNNHeads(16, [8], 1),
        mask_predictor=MaskRCNNPredictor(8, 8, CLASSES),
    ).train()


def tiny_batch(seed: int, count: int = 2, *, float_masks: bool = False) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """``count`` noisy images float32 (3, 48, 48) with two bright rectangles each, and torchvision targets."""
    g = torch.Generator().manual_seed(seed)
    images, targets = [], []
    for i in range(count):
        image = torch.rand(3, SIZE, SIZE, generator=g) * 0.3
        masks = torch.zeros(2, SIZE, SIZE, dtype=torch.float32 if float_masks else torch.uint8)
        boxes = []
        for k in range(2):
            x, y = (int(v) for v in torch.randint(0, 20, (2,), generator=g))
            w, h = (int(v) for v in torch.randint(10, 26, (2,), generator=g))
            image[k, y : y + h, x : x + w] += 0.6
            masks[k, y : y + h, x : x + w] = 1
            boxes.append([x, y, x + w, y + h])
        targets.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32),
                "labels": torch.tensor([1, 2]),
                "masks": masks,
                "image_id": 10 * seed + i,
                "annotation_ids": torch.tensor([100 * seed + 2 * i, 100 * seed + 2 * i + 1]),
            }
        )
        images.append(image)
    return images, targets


def forward_of(model: nn.Module, seed: int = 0, precision: str = "fp32") -> Any:
    """``forward(batch)`` whose random samplers are seeded, so that the same step gives the same bits."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]

    def forward(batch: Any) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        with torch.autocast("cpu", dtype=dtype, enabled=precision != "fp32"):
            losses = model(*batch)
        return {name: value.float() for name, value in losses.items()}

    return forward
