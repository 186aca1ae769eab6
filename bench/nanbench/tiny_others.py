"""Other detectors of the bench's size: FCOS, SSD and Keypoint R-CNN of torchvision, and one that a caller wrote."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, KeypointRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.ssd import SSD

from nanbench.tiny_more import MORE_KINDS
from nanbench.tiny_parts import CLASSES, SIZE, two_stage
from nanbench.tiny_tasks import KINDS

POINTS = 3
"""Keypoints of an object."""


class TwoMaps(nn.Module):
    """The two feature maps of a `Stem` without its pyramid: what an SSD looks at."""

    out_channels = (16, 24)

    def __init__(self, stem: Any) -> None:
        super().__init__()
        self.body = stem.body

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        second = self.body["layer2"](self.body["layer1"](x))
        return OrderedDict([("0", second), ("1", self.body["layer3"](second))])


class OneMap(nn.Module):
    """A pyramid that lost its upper level."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.out_channels = inner, inner.out_channels

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.inner(x)
        return OrderedDict([("0", maps["0"])])


class GridDetector(nn.Module):
    """A caller's own detector: one class and one box for each cell of a grid of 8 pixels.

    torchvision's contract, and nothing else of it: no transform, no anchors, no ``roi_heads``.
    """

    def __init__(self, stem: Any, size: int, classes: int) -> None:
        super().__init__()
        self.size, self.classes = size, classes
        self.stem = stem.body
        self.neck = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.GroupNorm(4, 32), nn.SiLU())
        self.head = nn.Conv2d(32, classes + 4, 1)

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        x = torch.stack([(i - 0.45) / 0.25 for i in images])
        out = self.head(self.neck(self.stem["layer2"](self.stem["layer1"](x)))).permute(0, 2, 3, 1)
        scores, boxes = out[..., : self.classes], out[..., self.classes :]
        if targets is None:
            return [self._found(s, b) for s, b in zip(scores, boxes, strict=True)]
        truth = torch.zeros(scores.shape[:-1], dtype=torch.int64)
        where, wanted = [], []
        for i, target in enumerate(targets):
            for box, label in zip(target["boxes"], target["labels"], strict=True):
                x, y = ((box[:2] + box[2:]) / 16).long().clamp(0, scores.shape[1] - 1).tolist()
                truth[i, y, x] = label
                where.append((i, y, x))
                wanted.append(box / self.size)
        losses = {"cls": nn.functional.cross_entropy(scores.reshape(-1, self.classes), truth.reshape(-1))}
        if where:
            rows, ys, xs = (torch.tensor(v) for v in zip(*where, strict=True))
            losses["box"] = nn.functional.smooth_l1_loss(boxes[rows, ys, xs], torch.stack(wanted))
        else:
            losses["box"] = boxes.sum() * 0.0
        return losses

    def _found(self, scores: Tensor, boxes: Tensor) -> dict[str, Tensor]:
        best, labels = scores.softmax(-1).reshape(-1, self.classes).max(-1)
        keep = labels > 0
        return {"boxes": boxes.reshape(-1, 4)[keep] * self.size, "labels": labels[keep], "scores": best[keep]}


def other_detector(kind: str, stem: Any, anchors: Any, ratios: Any) -> nn.Module:
    """``kind``: "fcos", "ssd", "keypoint", "own", or one of `tiny_tasks.KINDS` and `tiny_more.MORE_KINDS`."""
    if kind in KINDS or kind in MORE_KINDS:
        return (KINDS | MORE_KINDS)[kind](stem)
    if kind == "own":
        return GridDetector(stem, SIZE, CLASSES)
    if kind == "fcos":
        generator = AnchorGenerator(anchors or ((8,), (16,)), ratios or ((1.0,),) * 2)
        return FCOS(stem, CLASSES, min_size=SIZE, max_size=SIZE, anchor_generator=generator)
    if kind == "ssd":
        made = anchors or DefaultBoxGenerator([[2], [2]], scales=[0.25, 0.5, 0.75])
        return SSD(TwoMaps(stem), made, (SIZE, SIZE), CLASSES, image_mean=[0.45] * 3, image_std=[0.25] * 3)
    parts, points = two_stage(anchors, ratios), KeypointRCNNHeads(16, (16,))
    return KeypointRCNN(stem, None, **parts, keypoint_head=points, keypoint_predictor=KeypointRCNNPredictor(16, POINTS))


def with_keypoints(target: dict[str, Any]) -> dict[str, Any]:
    """A target with three points an object: two corners and the middle, all visible."""
    boxes = target["boxes"]
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    points = torch.stack([boxes[:, :2], middle, boxes[:, 2:] - 1], 1)
    return {**target, "keypoints": torch.cat([points, torch.ones(len(boxes), POINTS, 1)], 2)}
