"""Faults of the data: boxes, labels, pixels, masks. One image of 24 is bad, and comes again every epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN, INF = math.nan, math.inf
ONE = Culprit(image=True)
Change = Callable[[Tensor], Tensor]


def target(key: str, change: Change) -> Callable[[Scene], None]:
    """The bad image's target with one entry changed."""

    def fault(scene: Scene) -> None:
        scene.samples[scene.culprit][1][key] = change(scene.samples[scene.culprit][1][key].clone())

    return fault


def pixels(change: Change) -> Callable[[Scene], None]:
    """The bad image's pixels changed."""

    def fault(scene: Scene) -> None:
        image, its_target = scene.samples[scene.culprit]
        scene.samples[scene.culprit] = change(image.clone()), its_target

    return fault


def every(change: Change, key: str | None = None) -> Callable[[Scene], None]:
    """All images' pixels changed, or one entry of all targets."""

    def fault(scene: Scene) -> None:
        for i, (image, t) in enumerate(scene.samples):
            if key is None:
                scene.samples[i] = change(image.clone()), t
            else:
                t[key] = change(t[key].clone())

    return fault


def put(index: Any, value: float) -> Change:
    """One element replaced."""

    def change(tensor: Tensor) -> Tensor:
        tensor[index] = value
        return tensor

    return change


def zero_width(boxes: Tensor) -> Tensor:
    """x2 = x1 in the first box."""
    boxes[0, 2] = boxes[0, 0]
    return boxes


def shrunk(boxes: Tensor) -> Tensor:
    """Rounded to whole pixels after a rescale: nothing is left of the second box."""
    boxes[1, 2:] = boxes[1, :2] = boxes[1, :2].round()
    return boxes


def swapped_size(masks: Tensor) -> Tensor:
    """Height and width of another image: 64 × 48."""
    return masks[..., :48]


def minmax(image: Tensor) -> Tensor:
    """A constant image scaled by its own range."""
    image.fill_(0.5)
    return (image - image.min()) / (image.max() - image.min())


ACC = Setup(accumulate=4)
ADAM = Setup(optimizer="adamw")
BF16 = Setup(precision="bf16")
FP16 = Setup(precision="fp16")
BATCH = Setup(norm="batch")
GROUP = Setup(norm="group")

BOXES = (
    Scenario("box-inverted", "DATA_BOX", "pytorch/vision#997", target("boxes", lambda b: b[:, [2, 3, 0, 1]]), Setup(),
             Culprit(image=True, annotations=(0, 1))),
    Scenario("box-xywh", "DATA_BOX", "pytorch/vision#1120",
             target("boxes", lambda b: torch.cat([b[:, :2], (b[:, 2:] - b[:, :2]) / 8 - 2], 1)), BATCH,
             Culprit(image=True, annotations=(0, 1))),
    Scenario("box-zero-width", "DATA_BOX", "pytorch/vision#2235", target("boxes", zero_width), ADAM,
             Culprit(image=True, annotations=(0,))),
    Scenario("box-nan", "DATA_BOX", "pytorch/vision#2240", target("boxes", put((1, 2), NAN)), Setup(),
             Culprit(image=True, annotations=(1,))),
    Scenario("box-nan-accumulated", "DATA_BOX", "pytorch/vision#1994", target("boxes", put((0, 3), NAN)), ACC,
             Culprit(image=True, annotations=(0,))),
    Scenario("box-inf-segfault", "DATA_BOX", "pytorch/vision#9273", target("boxes", put((0, 2), INF)), Setup(),
             Culprit(image=True, annotations=(0,))),
    Scenario("box-1e9", "DATA_BOX", "tensorflow/models#1881", target("boxes", put((1, 2), 1e9)), BF16,
             Culprit(image=True, annotations=(1,))),
    Scenario("box-uint16-wrap", "DATA_BOX", "apache/mxnet#3904", target("boxes", put((0, 0), 65535.0)), FP16,
             Culprit(image=True, annotations=(0,))),
    Scenario("box-lost-in-rescale", "DATA_BOX", "explainingai-code/FasterRCNN-PyTorch#1", target("boxes", shrunk),
             GROUP, Culprit(image=True, annotations=(1,))),
)  # fmt: skip

LABELS = (
    Scenario("label-past-the-end", "DATA_LABEL", "matterport/Mask_RCNN#667", target("labels", put(0, 4)), Setup(),
             Culprit(image=True, annotations=(0,))),
    Scenario("label-background", "DATA_LABEL", "pytorch/vision#1598", target("labels", put(1, 0)), ADAM,
             Culprit(image=True, annotations=(1,))),
    Scenario("label-category-id", "DATA_LABEL", "facebookresearch/maskrcnn-benchmark#243",
             target("labels", put(0, 90)), ACC, Culprit(image=True, annotations=(0,))),
    Scenario("label-negative", "DATA_LABEL", "matterport/Mask_RCNN#296", target("labels", put(1, -1)), FP16,
             Culprit(image=True, annotations=(1,))),
)  # fmt: skip

PIXELS = (
    Scenario("pixel-nan", "DATA_PIXEL", "nan_cases R-D4", pixels(put((0, 3, 4), NAN)), Setup(), ONE),
    Scenario("pixel-inf-fp16", "DATA_PIXEL", "nan_cases R-D4", pixels(put((2, 40, 11), INF)), FP16, ONE),
    Scenario("pixel-nan-batchnorm", "DATA_PIXEL", "valeoai/fiery R-E5", pixels(put((1, 9, 9), NAN)), BATCH, ONE),
    Scenario("pixel-255-one", "DATA_PIXEL", "facebookresearch/Detectron#868", pixels(lambda i: i * 255), Setup(), ONE),
    Scenario("pixel-16-bit-one", "DATA_PIXEL", "matterport/Mask_RCNN#1997", pixels(lambda i: i * 65535), ADAM, ONE),
    Scenario("pixel-constant-minmax", "DATA_PIXEL", "nan_cases R-D3", pixels(minmax), ACC, ONE),
    Scenario("pixel-255-all", "DATA_PIXEL", "youngwanLEE/CenterMask#59", every(lambda i: i * 255), GROUP,
             Culprit(), verdict=True, onset=0),
    Scenario("pixel-16-bit-all", "DATA_PIXEL", "matterport/Mask_RCNN#1997", every(lambda i: i * 65535), BF16,
             Culprit(), verdict=True, onset=0),
)  # fmt: skip

MASKS = (
    Scenario("mask-255-one", "DATA_MASK", "milesial/Pytorch-UNet#78", target("masks", lambda m: m * 255), Setup(), ONE),
    Scenario("mask-class-index", "DATA_MASK", "pytorch/vision#8571", target("masks", lambda m: m * 7), ADAM, ONE),
    Scenario("mask-wrong-size", "DATA_MASK", "nan_cases D-6", target("masks", swapped_size), ACC, ONE),
    Scenario("mask-255-bf16", "DATA_MASK", "milesial/Pytorch-UNet#84", target("masks", lambda m: m * 255), BF16, ONE),
    Scenario("mask-255-all", "DATA_MASK", "milesial/Pytorch-UNet#78", every(lambda m: m * 255, "masks"), BATCH,
             Culprit(), verdict=True, onset=0),
)  # fmt: skip

DATA = (*BOXES, *LABELS, *PIXELS, *MASKS)
