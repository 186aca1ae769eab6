"""State, hooks, files and precision beside the usual: gradients that a hook ruins, saved bits, other detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_lr import Overflowing, scale_to
from nanbench.faults_once import in_optimizer, levels, loss_once, scaled
from nanbench.faults_small import raises
from nanbench.faults_state import FC6, STAGE2, at_load, between, resumed, weight, wrong_gradient, wrong_once
from nanbench.faults_wild import ADAM, BATCH, BF16, FASTER, FCOS, FP16, GROUP, INF, NAN, ONE, OWN, RETINA, SGD, SSD
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny_others import OneMap

FILE = Culprit(checkpoint=True)


def gradient_always(name: str, start: int) -> Callable[[Scene], None]:
    """A hook makes one gradient infinite, from ``start`` on."""

    def fault(scene: Scene) -> None:
        scene.model.get_parameter(name).register_hook(lambda g: g * INF if scene.step >= start else None)

    return fault


def in_forward(module: str, step: int, factor: float) -> Callable[[Scene], None]:
    """A hook multiplies a weight during the forward pass, once."""

    def fault(scene: Scene) -> None:
        left = [True]

        def hook(m: Any, _: Any) -> None:
            if scene.active and scene.step == step and left:
                left.pop()
                m.weight.data.mul_(factor)

        scene.model.get_submodule(module).register_forward_pre_hook(hook)

    return fault


def buffers(suffix: str, value: float) -> Callable[[Live], None]:
    """Every buffer of that name is filled."""

    def change(live: Live) -> None:
        for name, buffer in live.model.named_buffers():
            if name.endswith(suffix):
                buffer.fill_(value)

    return change


def group_eps(model: nn.Module) -> None:
    """A negative eps: the root of a variance below zero."""
    for module in model.modules():
        if isinstance(module, nn.GroupNorm):
            module.eps = -1e3


def filled(suffix: str, value: float) -> Callable[[nn.Module], None]:
    """Statistics that are no numbers, from the start."""

    def change(model: nn.Module) -> None:
        for name, buffer in model.named_buffers():
            if name.endswith(suffix):
                buffer[0] = value

    return change


def one_map(scene: Scene) -> None:
    """The pyramid hands on one level of two."""
    scene.model.backbone = OneMap(scene.model.backbone)  # type: ignore[arg-type]


def norm_of_one_value(scene: Scene) -> None:
    """A BatchNorm over one value a channel: a global pool at batch 1."""
    neck: Any = scene.model.neck
    scene.model.neck = nn.Sequential(neck, Squeeze(32))


class Squeeze(nn.Module):
    """Scales channels by what a pooled vector says, through a BatchNorm."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.norm(x.mean((2, 3), keepdim=True)))


def neck_block(scene: Scene) -> None:
    """The caller's neck overflows in half precision."""
    scene.model.neck = Overflowing(scene.model.neck, 32)  # type: ignore[arg-type]


def flipped(name: str) -> Callable[[dict[str, Any]], None]:
    """One exponent bit of one saved weight."""

    def change(state: dict[str, Any]) -> None:
        flat = state["model"][name].view(-1)
        flat.view(torch.int32)[5] ^= 1 << 30

    return change


def shuffled(prefix: str) -> Callable[[dict[str, Any]], None]:
    """Rows of the weights changed places, as of another order of channels or classes."""

    def change(state: dict[str, Any]) -> None:
        for name, value in state["model"].items():
            if name.startswith(prefix):
                value.copy_(value.flip(0))

    return change


def scaler_of(value: float) -> Callable[[dict[str, Any]], None]:
    """The saved loss scale."""
    return lambda state: state["scaler"].__setitem__("scale", value)


def average(state: dict[str, Any]) -> None:
    """The saved average of the weights holds a NaN."""
    values = [v for v in _tensors(state.get("ema")) if v.is_floating_point() and v.numel()]
    values[0].view(-1)[0] = NAN


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [t for part in parts for t in _tensors(part)]


def with_average(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """The run keeps an average."""

    def fault(scene: Scene) -> None:
        scene.settings["ema"] = 0.9
        change(scene)

    return fault


STATE = (
    Scenario(
        "wild-gradient-inf-always",
        "LOSS_MATH",
        "pytorch/pytorch#4132",
        gradient_always(f"{FC6}.weight", 6),
        SGD,
        onset=6,
        also=("UNKNOWN",),
        verdict=True,
    ),
    Scenario(
        "wild-gradient-inf-own",
        "LOSS_MATH",
        "pytorch/pytorch#4132",
        gradient_always("head.weight", 9),
        OWN,
        onset=9,
        also=("UNKNOWN",),
        verdict=True,
    ),
    Scenario(
        "wild-gradient-once-own", "TRANSIENT", "pytorch/FBGEMM#5754", wrong_gradient("head.weight", 11), OWN, onset=11
    ),
    Scenario(
        "wild-hook-nan-once-fcos",
        "TRANSIENT",
        "NVIDIA/apex#1322",
        wrong_once("backbone.body.layer3", 9, NAN),
        FCOS,
        onset=9,
    ),
    Scenario(
        "wild-hook-huge-once-ssd",
        "TRANSIENT",
        "NVIDIA/apex#1322",
        wrong_once("backbone.body.layer3", 10, 1e7),
        SSD,
        onset=10,
    ),
    Scenario("wild-hook-huge-once-own", "TRANSIENT", "NVIDIA/apex#1322", wrong_once("neck", 13, 1e9), OWN, onset=13),
    Scenario(
        "wild-glitch-rmsprop",
        "TRANSIENT",
        "pytorch/FBGEMM#5754",
        loss_once(11, NAN),
        Setup(optimizer="rmsprop"),
        onset=11,
    ),
    Scenario(
        "wild-glitch-adagrad",
        "TRANSIENT",
        "pytorch/FBGEMM#5754",
        wrong_once("roi_heads.box_head", 12, 1e8),
        Setup(optimizer="adagrad"),
        onset=12,
    ),
    Scenario(
        "wild-in-forward",
        "TRANSIENT",
        "AlexeyAB/darknet#5547",
        in_forward("roi_heads.box_head.fc6", 9, -1e4),
        SGD,
        onset=9,
    ),
    Scenario(
        "wild-weight-inf-fcos",
        "POISONED_STATE",
        "AlexeyAB/darknet#5547",
        between(11, weight("head.classification_head.cls_logits.weight", INF)),
        FCOS,
        Culprit(("head",)),
        onset=11,
        also=("TRANSIENT",),
    ),
    Scenario(
        "wild-weight-bit-own",
        "TRANSIENT",
        "microsoft/dion#76",
        between(15, weight("neck.0.weight", 3e37)),
        OWN,
        Culprit(("neck",)),
        onset=15,
    ),
    Scenario(
        "wild-buffer-leap",
        "NORM_STATE",
        "fiery#20",
        between(10, buffers("layer2.1.running_mean", 1e12)),
        BATCH,
        onset=10,
        also=("TRANSIENT", "POISONED_STATE"),
    ),
    Scenario(
        "wild-buffer-leap-frozen",
        "NORM_STATE",
        "fiery#20",
        between(10, buffers("layer2.1.running_mean", -1e9)),
        SGD,
        onset=10,
        also=("TRANSIENT", "POISONED_STATE"),
    ),
    Scenario(
        "wild-norm-nan-frozen",
        "NORM_STATE",
        "nan_cases R-E3",
        at_load(filled("layer2.1.running_var", NAN)),
        SGD,
        Culprit(("backbone",)),
        onset=0,
        also=("POISONED_STATE",),
        verdict=True,
    ),
    Scenario("wild-norm-group-eps", "NORM_STATE", "nan_cases R-E3", at_load(group_eps), GROUP, onset=0, verdict=True),
    Scenario(
        "wild-norm-one-value",
        "UNKNOWN",
        "pytorch/pytorch#4534",
        norm_of_one_value,
        Setup(model="own", batch=1),
        onset=0,
        also=("NORM_STATE",),
        verdict=True,
    ),
    Scenario(
        "wild-anchors-one-map",
        "ANCHORS",
        "pytorch/vision#2435",
        one_map,
        FASTER,
        Culprit(("rpn",)),
        onset=0,
        verdict=True,
    ),
    Scenario("wild-anchors-one-map-fcos", "ANCHORS", "pytorch/vision#2435", one_map, FCOS, onset=0, verdict=True),
    Scenario(
        "wild-anchors-zero",
        "ANCHORS",
        "facebookresearch/maskrcnn-benchmark#1005",
        levels("faster", ((0,), (0,)), ((0.5, 1.0, 2.0),) * 2),
        FASTER,
        Culprit(("rpn",)),
        onset=0,
        verdict=True,
    ),
    Scenario(
        "wild-anchors-zero-retina",
        "ANCHORS",
        "facebookresearch/maskrcnn-benchmark#1005",
        levels("retina", ((0,), (0,)), ((0.5, 1.0, 2.0),) * 2),
        RETINA,
        onset=0,
        verdict=True,
    ),
    Scenario(
        "wild-anchors-fraction",
        "ANCHORS",
        "open-mmlab/mmdetection#10041",
        levels("mask", ((0.1,), (0.2,)), ((0.5, 1.0, 2.0),) * 2),
        ADAM,
        Culprit(("rpn",)),
        onset=0,
        verdict=True,
    ),
    Scenario(
        "wild-fp16-neck",
        "FP16_OVERFLOW",
        "Peterande/D-FINE#199",
        neck_block,
        Setup(model="own", precision="fp16"),
        Culprit(("neck",), "neck.scale"),
        onset=0,
    ),
    Scenario(
        "wild-fp16-scale-huge",
        "SCALE_COLLAPSE",
        "pytorch/pytorch#40497",
        scale_to(1e38, 8),
        FP16,
        onset=8,
        also=("POISONED_STATE",),
    ),
    Scenario(
        "wild-fp16-scale-nan",
        "SCALE_COLLAPSE",
        "pytorch/pytorch#40497",
        scale_to(NAN, 8),
        FP16,
        onset=8,
        also=("POISONED_STATE",),
    ),
    Scenario(
        "wild-raises-once-own",
        "TRANSIENT",
        "pytorch/pytorch#40497",
        raises(ValueError("odd"), when="once", start=6),
        OWN,
        onset=6,
    ),
    Scenario("wild-raises-image-ssd", "UNKNOWN", "pytorch/vision#2144", raises(AssertionError("targets")), SSD, ONE),
    Scenario(
        "wild-raises-image-own",
        "UNKNOWN",
        "pytorch/vision#2144",
        raises(RuntimeError("shape")),
        Setup(model="own", batch=1),
        ONE,
    ),
)

FILES = (
    Scenario(
        "wild-resume-bit",
        "POISONED_STATE",
        "AlexeyAB/darknet#5547",
        resumed(flipped(f"{FC6}.weight")),
        SGD,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-bit-stage",
        "POISONED_STATE",
        "AlexeyAB/darknet#5547",
        resumed(flipped(f"{STAGE2}.weight")),
        GROUP,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-head-fcos",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(scaled("head.", 1e4)),
        FCOS,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-head-ssd",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(scaled("head.regression_head", 1e5)),
        SSD,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-neck-own",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(scaled("neck.0", -1e5)),
        OWN,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-momentum-minus",
        "POISONED_STATE",
        "facebookresearch/maskrcnn-benchmark#464",
        resumed(in_optimizer("momentum_buffer", -1e6)),
        FASTER,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-second-moment-zero",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(in_optimizer("exp_avg_sq", 0.0)),
        ADAM,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-average-nan",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        with_average(resumed(average)),
        SGD,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-scale-nan",
        "POISONED_STATE",
        "KaihuaTang/Scene-Graph-Benchmark.pytorch#29",
        resumed(scaler_of(NAN)),
        FP16,
        FILE,
        onset=12,
        also=("SCALE_COLLAPSE",),
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-swapped-heads",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(shuffled("roi_heads.box_")),
        SGD,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-zeroed-stage",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(scaled("backbone.body.layer2", 0.0)),
        GROUP,
        FILE,
        onset=12,
        needs=("resume",),
    ),
    Scenario(
        "wild-resume-rpn-bf16",
        "POISONED_STATE",
        "Rikorose/DeepFilterNet#30",
        resumed(scaled("rpn.head.bbox_pred", 1e6)),
        BF16,
        FILE,
        onset=12,
        needs=("resume",),
    ),
)
WILD_STATE: tuple[Scenario, ...] = (*STATE, *FILES)
