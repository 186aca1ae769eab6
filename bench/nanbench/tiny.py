"""The detector and the pictures of the bench: torchvision only, so that every system can train them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import FeaturePyramidNetwork, FrozenBatchNorm2d

from nanbench.tiny_others import other_detector

SIZE = 64
CLASSES = 4
COMPONENTS = ("backbone", "rpn", "box_head", "mask_head")
Sample = tuple[Tensor, dict[str, Any]]


def sample(image_id: int, objects: int = 2) -> Sample:
    """A picture float32 (3, 64, 64) in 0..1 with bright rectangles, one colour a class: a pure function of its id."""
    g = torch.Generator().manual_seed(image_id)
    image = torch.rand(3, SIZE, SIZE, generator=g) * 0.3
    boxes, labels, masks = [], [], []
    for _ in range(objects):
        x, y = (int(v) for v in torch.randint(2, SIZE - 34, (2,), generator=g))
        w, h = (int(v) for v in torch.randint(12, 32, (2,), generator=g))
        label = int(torch.randint(1, CLASSES, (1,), generator=g))
        image[label - 1, y : y + h, x : x + w] = 0.9
        mask = torch.zeros(SIZE, SIZE, dtype=torch.uint8)
        mask[y : y + h, x : x + w] = 1
        boxes.append([x, y, x + w, y + h])
        labels.append(label)
        masks.append(mask)
    target = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": torch.stack(masks) if masks else torch.zeros(0, SIZE, SIZE, dtype=torch.uint8),
        "image_id": image_id,
        "annotation_ids": torch.arange(objects) + image_id * 10,
    }
    return image, target


NORMS: dict[str, Callable[[int], nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "batch": nn.BatchNorm2d,
    "group": lambda channels: nn.GroupNorm(4, channels),
}


class Stem(nn.Module):
    """Three strided stages and an FPN: the smallest backbone that has every part."""

    def __init__(self, norm: str, out: int = 16) -> None:
        super().__init__()
        self.out_channels = out
        make = NORMS[norm]
        stage = lambda i, o, s: nn.Sequential(nn.Conv2d(i, o, 3, s, 1, bias=False), make(o), nn.ReLU())  # noqa: E731
        self.body = nn.ModuleDict({"layer1": stage(3, 12, 4), "layer2": stage(12, 16, 2), "layer3": stage(16, 24, 2)})
        self.fpn = FeaturePyramidNetwork([16, 24], out)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        second = self.body["layer2"](self.body["layer1"](x))
        return self.fpn(OrderedDict([("0", second), ("1", self.body["layer3"](second))]))


def tiny_model(seed: int, norm: str = "frozen", anchors: Any = None, ratios: Any = None) -> MaskRCNN:
    """A Mask R-CNN of about 100,000 parameters at 64 pixels, with torchvision's component names."""
    torch.manual_seed(seed)
    generator = AnchorGenerator(anchors or ((16,), (32,)), ratios or ((0.5, 1.0, 2.0),) * 2)
    model = MaskRCNN(
        Stem(norm),
        None,
        min_size=SIZE,
        max_size=SIZE,
        rpn_anchor_generator=generator,
        rpn_head=RPNHead(16, generator.num_anchors_per_location()[0]),
        box_head=TwoMLPHead(16 * 49, 32),
        box_predictor=FastRCNNPredictor(32, CLASSES),
        mask_head=MaskRCNNHeads(16, [16], 1),
        mask_predictor=MaskRCNNPredictor(16, 16, CLASSES),
        rpn_pre_nms_top_n_train=100,
        rpn_post_nms_top_n_train=50,
        box_batch_size_per_image=32,
    )
    with_statistics(model)
    return model


def tiny_detector(kind: str, seed: int, norm: str = "frozen", anchors: Any = None, ratios: Any = None) -> nn.Module:
    """``kind``: "mask" (`tiny_model`), "faster" (boxes only), "retina" (one stage), or one of `other_detector`."""
    if kind == "mask":
        return tiny_model(seed, norm, anchors, ratios)
    torch.manual_seed(seed)
    if kind in ("fcos", "ssd", "keypoint", "own"):
        # Both one-stage heads of torchvision have norms of 32 groups.
        stem = Stem(norm, 32 if kind == "fcos" else 16)
        return with_statistics(other_detector(kind, stem, SIZE, CLASSES, anchors, ratios))
    generator = AnchorGenerator(anchors or ((16,), (32,)), ratios or ((0.5, 1.0, 2.0),) * 2)
    if kind == "retina":
        model: nn.Module = RetinaNet(Stem(norm), CLASSES, min_size=SIZE, max_size=SIZE, anchor_generator=generator)
    else:
        model = FasterRCNN(
            Stem(norm),
            None,
            min_size=SIZE,
            max_size=SIZE,
            rpn_anchor_generator=generator,
            rpn_head=RPNHead(16, generator.num_anchors_per_location()[0]),
            box_head=TwoMLPHead(16 * 49, 32),
            box_predictor=FastRCNNPredictor(32, CLASSES),
            rpn_pre_nms_top_n_train=100,
            rpn_post_nms_top_n_train=50,
            box_batch_size_per_image=32,
        )
    return with_statistics(model)


def with_statistics(model: nn.Module) -> nn.Module:
    """Frozen norms at identity shrink the signal of a random net: statistics as a checkpoint would give them."""
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.get_buffer("running_var").fill_(0.1)
    return model


def component_of(name: str) -> str:
    """The component of a parameter or module name."""
    if name.startswith("roi_heads.mask"):
        return "mask_head"
    if name.startswith("roi_heads"):
        return "box_head"
    return "rpn" if name.startswith("rpn") else "backbone"


@torch.no_grad()
def evaluation_loss(model: nn.Module, samples: list[Sample]) -> float:
    """Mean total loss on held-out pictures in float32, norms with their running statistics; inf where not finite."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    total = 0.0
    for start in range(0, len(samples), 4):
        torch.manual_seed(start)
        part = samples[start : start + 4]
        losses = model([i for i, _ in part], [t for _, t in part])
        total += float(sum(losses.values())) / (len(samples) / 4)
    return total if total == total else float("inf")
