"""Faults of the learning rate, of accumulation, and of half precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

HEADS = ("box_head", "mask_head")


def rates(
    lr: float | None = None,
    *,
    backbone: float = 1.0,
    rpn: float = 1.0,
    heads: float = 1.0,
    clip: float = 0.0,
    warmup: int | None = None,
    weight_decay: float | None = None,
) -> Callable[[Scene], None]:
    """Learning rates multiplied by component, and the settings around them."""

    def fault(scene: Scene) -> None:
        scene.lr = scene.lr if lr is None else lr
        scene.multipliers = {"backbone": backbone, "rpn": rpn, "box_head": heads, "mask_head": heads}
        scene.max_grad_norm = clip
        scene.warmup = scene.warmup if warmup is None else warmup
        scene.weight_decay = scene.weight_decay if weight_decay is None else weight_decay

    return fault


ACC = Setup(accumulate=4)
ADAM = Setup(optimizer="adamw")
FP16 = Setup(precision="fp16")
BF16 = Setup(precision="bf16")
GROUP = Setup(norm="group")

LR = (
    Scenario("lr-heads", "LR_TOO_HIGH", "facebookresearch/detectron2#508", rates(heads=30, warmup=0), Setup(),
             Culprit(HEADS), onset=0),
    Scenario("lr-heads-clipped", "LR_TOO_HIGH", "facebookresearch/detectron2#838", rates(heads=100, clip=10), GROUP,
             Culprit(HEADS), onset=1),
    Scenario("lr-backbone", "LR_TOO_HIGH", "facebookresearch/maskrcnn-benchmark#721", rates(backbone=30), Setup(),
             Culprit(("backbone",)), onset=1),
    Scenario("lr-rpn", "LR_TOO_HIGH", "facebookresearch/detectron2#1128", rates(rpn=1000), Setup(),
             Culprit(("rpn",)), onset=1),
    Scenario("lr-all", "LR_TOO_HIGH", "facebookresearch/Detectron#182", rates(2.0, warmup=0), Setup(), onset=0),
    Scenario("lr-heads-warmup", "LR_TOO_HIGH", "facebookresearch/maskrcnn-benchmark#841", rates(heads=50),
             Setup(warmup=20), Culprit(HEADS), onset=3),
    Scenario("lr-adamw", "LR_TOO_HIGH", "facebookresearch/Detectron#676", rates(0.5, warmup=0), ADAM, onset=0),
    Scenario("lr-weight-decay", "LR_TOO_HIGH", "nan_cases R-A6", rates(0.02, weight_decay=300.0), Setup(), onset=1),
    Scenario("lr-heads-fp16", "LR_TOO_HIGH", "ucbdrive/few-shot-object-detection#206", rates(heads=30), FP16,
             Culprit(HEADS), onset=1),
    Scenario("lr-heads-accumulated", "LR_TOO_HIGH", "amdegroot/ssd.pytorch#275", rates(heads=30, warmup=0), ACC,
             Culprit(HEADS), onset=0),
    Scenario("lr-backbone-bf16", "LR_TOO_HIGH", "mrlooi/rotated_maskrcnn#16", rates(backbone=30), BF16,
             Culprit(("backbone",)), onset=1),
)  # fmt: skip


def undivided(start: int, lr: float, warmup: int = 3) -> Callable[[Scene], None]:
    """From step ``start`` on the loop adds up the micro-batches' gradients without dividing; no clipping hides it."""

    def fault(scene: Scene) -> None:
        scene.lr, scene.max_grad_norm, scene.warmup = lr, 0.0, warmup
        scene.undivided = lambda step: step >= start

    return fault


SUMMED = ("undivided",)
ACCUMULATION = (
    Scenario("accumulate-undivided", "ACCUMULATION", "karpathy/nanoGPT#168", undivided(0, 0.1), ACC, onset=0,
             verdict=True, needs=SUMMED),
    Scenario("accumulate-undivided-late", "ACCUMULATION", "argusswift/YOLOv4-pytorch#56", undivided(8, 0.06, 10), ACC,
             onset=8, verdict=True, needs=SUMMED),
    Scenario("accumulate-undivided-group", "ACCUMULATION", "NVIDIA/DeepLearningExamples#625", undivided(0, 0.15),
             Setup(accumulate=4, norm="group"), onset=0, verdict=True, needs=SUMMED),
)  # fmt: skip


class Overflowing(nn.Module):
    """A block whose inner values pass 65504 in half precision, and mean nothing in float32."""

    def __init__(self, inner: nn.Module, channels: int, gain: float = 1e7) -> None:
        super().__init__()
        self.inner, self.gain = inner, gain
        self.scale = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.dirac_(self.scale.weight)
        self.scale.requires_grad_(False)
        self.scale.weight.mul_(gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.inner(x)) / self.scale.weight[0, 0, 0, 0]


class OverflowingRows(Overflowing):
    """The same for a linear block."""

    def __init__(self, inner: nn.Module, channels: int, gain: float = 1e7) -> None:
        nn.Module.__init__(self)
        self.inner, self.gain = inner, gain
        self.scale = nn.Linear(channels, channels, bias=False)
        with torch.no_grad():
            self.scale.weight.copy_(torch.eye(channels) * gain)
        self.scale.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale(self.inner(x)) / self.gain


def mask_block(scene: Scene) -> None:
    heads = scene.model.roi_heads
    heads.mask_head = Overflowing(heads.mask_head, 16)


def box_block(scene: Scene) -> None:
    heads = scene.model.roi_heads
    heads.box_head = OverflowingRows(heads.box_head, 32)


def stage_block(scene: Scene) -> None:
    body = scene.model.backbone.body
    body["layer3"] = Overflowing(body["layer3"], 24)


def late_block(scene: Scene) -> None:
    """The gain is 1 at first, as of a block that grows in training; at step 12 it passes the range."""
    heads = scene.model.roi_heads
    heads.mask_head = Overflowing(heads.mask_head, 16, gain=1.0)
    scene.at(12, lambda live: live.parameter("roi_heads.mask_head.scale.weight").data.mul_(1e7))


def scale_to(value: float, step: int) -> Callable[[Scene], None]:
    """The loss scale is ``value`` from ``step`` on."""

    def change(live: Live) -> None:
        if live.scaler is not None:
            live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": value})

    return lambda scene: scene.at(step, change)


HALF = (
    Scenario("fp16-mask-block", "FP16_OVERFLOW", "Peterande/D-FINE#199", mask_block, FP16,
             Culprit(("mask_head",), "roi_heads.mask_head.scale"), onset=0),
    Scenario("fp16-box-block", "FP16_OVERFLOW", "PaddlePaddle/PaddleDetection#8305", box_block, FP16,
             Culprit(("box_head",), "roi_heads.box_head.scale"), onset=0),
    Scenario("fp16-backbone-stage", "FP16_OVERFLOW", "open-mmlab/mmdetection#3605", stage_block, FP16,
             Culprit(("backbone",), "backbone.body.layer3.scale"), onset=0),
    Scenario("fp16-late-block", "FP16_OVERFLOW", "open-mmlab/mmdetection#6738", late_block, FP16,
             Culprit(("mask_head",), "roi_heads.mask_head.scale"), onset=12),
    Scenario("fp16-scale-zero", "SCALE_COLLAPSE", "pytorch/pytorch#40497", scale_to(0.0, 8), FP16, onset=8),
    Scenario("fp16-scale-tiny", "SCALE_COLLAPSE", "facebookresearch/WSL-Images#9", scale_to(2.0**-40, 5), FP16,
             onset=5),
    Scenario("fp16-scale-denormal", "SCALE_COLLAPSE", "KaihuaTang/Scene-Graph-Benchmark.pytorch#29",
             scale_to(1e-38, 15), FP16, onset=15),
)  # fmt: skip
