"""The detector and the pictures of the bench: torchvision only, so that every system can train them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FrozenBatchNorm2d

from nanbench.tiny_others import other_detector
from nanbench.tiny_parts import CLASSES, NORM_KINDS, SIZE, Stem, two_stage

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


def tiny_model(
    seed: int = 0, norm: Callable[[int], nn.Module] = FrozenBatchNorm2d, anchors: Any = None, ratios: Any = None
) -> MaskRCNN:
    """A Mask R-CNN of about 100,000 parameters at 64 pixels, with torchvision's component names."""
    torch.manual_seed(seed)
    stem, parts = Stem(norm), two_stage(anchors, ratios)
    masks = {"mask_head": MaskRCNNHeads(16, [16], 1), "mask_predictor": MaskRCNNPredictor(16, 16, CLASSES)}
    model = MaskRCNN(stem, None, **parts, **masks)
    with_statistics(model)
    return model


def tiny_detector(kind: str, seed: int, norm: str = "frozen", anchors: Any = None, ratios: Any = None) -> nn.Module:
    """``kind``: "mask" (`tiny_model`), "faster" (boxes only), "retina" (one stage), or one of `other_detector`."""
    if kind == "mask":
        return tiny_model(seed, NORM_KINDS[norm], anchors, ratios)
    torch.manual_seed(seed)
    # The heads of torchvision's FCOS have norms of 32 groups.
    stem = Stem(NORM_KINDS[norm], 32 if kind == "fcos" else 16)
    if kind == "retina":
        generator = AnchorGenerator(anchors or ((16,), (32,)), ratios or ((0.5, 1.0, 2.0),) * 2)
        model: nn.Module = RetinaNet(stem, CLASSES, min_size=SIZE, max_size=SIZE, anchor_generator=generator)
    elif kind == "faster":
        model = FasterRCNN(stem, None, **two_stage(anchors, ratios))
    else:
        model = other_detector(kind, stem, anchors, ratios)
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


def collated(model: nn.Module, pairs: list[Any]) -> tuple[Any, Any]:
    """What the model is called with: a list of images and one of targets, or as its own ``collate`` makes it."""
    own = getattr(model, "collate", None)
    return own(pairs) if own is not None else ([i for i, _ in pairs], [t for _, t in pairs])


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
        losses = model(*collated(model, part))
        total += float(sum(losses.values())) / (len(samples) / 4)
    return total if total == total else float("inf")
