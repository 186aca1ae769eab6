"""What happens once and stays finite; files that are finite and wrong; losses that change their formula under way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanbench.faults_code import Losses, losses
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_state import FC6, PRED, RPN, STAGE2, STAGE3, anchors, between, resumed, wrong_once
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import tiny_detector

ADAM, GROUP, BATCH, ACC = Setup(optimizer="adamw"), Setup(norm="group"), Setup(norm="batch"), Setup(accumulate=4)
TWO, SINGLE, RETINA, FASTER = Setup(batch=2), Setup(batch=1), Setup(model="retina"), Setup(model="faster")
BF16 = Setup(precision="bf16")


def gradient_once(name: str, step: int, factor: float) -> Callable[[Scene], None]:
    """One gradient is ``factor`` times itself, once."""

    def fault(scene: Scene) -> None:
        left = [True]

        def hook(gradient: Tensor) -> Tensor | None:
            if scene.step == step and left:
                left.pop()
                return gradient * factor
            return None

        scene.model.get_parameter(name).register_hook(hook)
        scene.max_grad_norm = 0.0

    return fault


def loss_once(step: int, factor: float) -> Callable[[Scene], None]:
    """Every loss is ``factor`` times itself, once."""
    left = [True]

    def change(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        if scene.step == step and left:
            left.pop()
            return {k: v * factor for k, v in terms.items()}
        return terms

    return losses(change)


GLITCH = (
    Scenario(
        "glitch-stage3",
        "TRANSIENT",
        "pytorch/FBGEMM#5754",
        wrong_once("backbone.body.layer3", 8, 1e6),
        Setup(),
        onset=8,
    ),
    Scenario(
        "glitch-fc6", "TRANSIENT", "pytorch/FBGEMM#5754", wrong_once("roi_heads.box_head", 13, 1e6), ADAM, onset=13
    ),
    Scenario(
        "glitch-box-group",
        "TRANSIENT",
        "pytorch/FBGEMM#5754",
        wrong_once("roi_heads.box_head", 10, -1e5),
        GROUP,
        onset=10,
    ),
    Scenario(
        "glitch-mask-batch-2",
        "TRANSIENT",
        "NVIDIA/apex#1322",
        wrong_once("roi_heads.mask_head", 15, 1e7),
        TWO,
        onset=15,
    ),
    Scenario(
        "glitch-backbone-norms",
        "TRANSIENT",
        "NVIDIA/apex#1322",
        wrong_once("backbone.body.layer2", 9, 1e6),
        GROUP,
        onset=9,
    ),
    Scenario(
        "glitch-retina",
        "TRANSIENT",
        "NVIDIA/apex#1322",
        wrong_once("head.regression_head.bbox_reg", 7, 1e8),
        RETINA,
        onset=7,
    ),
    Scenario("glitch-loss", "TRANSIENT", "pytorch/FBGEMM#5754", loss_once(14, 1e5), BF16, onset=14),
    Scenario("glitch-loss-batch-1", "TRANSIENT", "pytorch/FBGEMM#5754", loss_once(12, 3e4), SINGLE, onset=12),
    Scenario(
        "glitch-gradient",
        "TRANSIENT",
        "pytorch/FBGEMM#5754",
        gradient_once(f"{FC6}.weight", 12, 1e9),
        Setup(),
        onset=12,
    ),
)


def scaled(prefix: str, factor: float) -> Callable[[dict[str, Any]], None]:
    """Weights of the checkpoint multiplied."""

    def change(state: dict[str, Any]) -> None:
        for name, value in state["model"].items():
            if name.startswith(prefix) and value.is_floating_point():
                value.mul_(factor)

    return change


def in_optimizer(key: str, factor: float) -> Callable[[dict[str, Any]], None]:
    """One kind of optimizer state of the checkpoint multiplied."""

    def change(state: dict[str, Any]) -> None:
        for entry in state["optimizer"]["state"].values():
            if key in entry:
                entry[key] = entry[key] * factor

    return change


FILE, RESUME = Culprit(checkpoint=True), ("resume",)
FILES = (
    Scenario(
        "resume-box-head-1e4",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(scaled(FC6, 1e4)),
        Setup(),
        FILE,
        onset=12,
        needs=RESUME,
    ),
    Scenario(
        "resume-stage-1e4",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(scaled(STAGE3, 1e4)),
        Setup(),
        FILE,
        onset=12,
        needs=RESUME,
    ),
    Scenario(
        "resume-predictor-1e5",
        "POISONED_STATE",
        "Rikorose/DeepFilterNet#30",
        resumed(scaled(PRED, 1e5)),
        BATCH,
        FILE,
        onset=12,
        needs=RESUME,
    ),
    Scenario(
        "resume-rpn-1e5-adamw",
        "POISONED_STATE",
        "Rikorose/DeepFilterNet#30",
        resumed(scaled(RPN, 1e5)),
        ADAM,
        FILE,
        onset=12,
        needs=RESUME,
    ),
    Scenario(
        "resume-momentum-1e6",
        "POISONED_STATE",
        "facebookresearch/maskrcnn-benchmark#464",
        resumed(in_optimizer("momentum_buffer", 1e6)),
        Setup(),
        FILE,
        onset=12,
        needs=RESUME,
    ),
    Scenario(
        "resume-momentum-1e5-group",
        "POISONED_STATE",
        "facebookresearch/maskrcnn-benchmark#464",
        resumed(in_optimizer("momentum_buffer", 1e5)),
        GROUP,
        FILE,
        onset=12,
        needs=RESUME,
    ),
    Scenario(
        "resume-first-moment-1e6",
        "POISONED_STATE",
        "ultralytics/ultralytics#17282",
        resumed(in_optimizer("exp_avg", 1e6)),
        ADAM,
        FILE,
        onset=12,
        needs=RESUME,
    ),
    Scenario(
        "resume-everything-30",
        "POISONED_STATE",
        "Rikorose/DeepFilterNet#30",
        resumed(scaled("roi_heads.box", 300.0)),
        ACC,
        FILE,
        onset=12,
        needs=RESUME,
    ),
)


def from_step(term: str, factor: float, start: int) -> Callable[[Scene], None]:
    """One loss is multiplied from ``start`` on: a schedule of weights with a typing error."""

    def change(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        return {k: v * (factor if k == term and scene.step >= start else 1.0) for k, v in terms.items()}

    return losses(change)


FORMULA = tuple(
    Scenario(
        f"formula-{name}",
        "LOSS_MATH",
        "open-mmlab/mmdetection#3605",
        from_step(term, factor, start),
        setup,
        verdict=True,
        onset=start,
    )
    for name, term, factor, start, setup in (
        ("mask-1000", "loss_mask", 1e3, 10, Setup()),
        ("box-1e5", "loss_box_reg", 1e5, 8, ADAM),
        ("objectness-1e4", "loss_objectness", 1e4, 13, GROUP),
        ("classifier-1e6", "loss_classifier", 1e6, 7, TWO),
        ("retina-1e4", "classification", 1e4, 11, RETINA),
    )
)


def levels(kind: str, sizes: Any, ratios: Any) -> Callable[[Scene], None]:
    """Anchors for another number of feature maps than there are."""

    def fault(scene: Scene) -> None:
        scene.model = tiny_detector(kind, scene.seed, scene.setup.norm, sizes, ratios)

    return fault


RATIOS = (0.5, 1.0, 2.0)
ANCHORS = (
    Scenario(
        "anchors-three-levels",
        "ANCHORS",
        "pytorch/vision#2435",
        levels("mask", ((8,), (16,), (32,)), (RATIOS,) * 3),
        Setup(),
        Culprit(("rpn",)),
        onset=0,
        verdict=True,
    ),
    Scenario(
        "anchors-one-level",
        "ANCHORS",
        "pytorch/vision#2435",
        levels("mask", ((8, 16, 32),), (RATIOS,)),
        TWO,
        Culprit(("rpn",)),
        onset=0,
        verdict=True,
    ),
    Scenario(
        "anchors-five-levels-faster",
        "ANCHORS",
        "pytorch/vision#3190",
        levels("faster", ((8,), (16,), (32,), (64,), (128,)), (RATIOS,) * 5),
        FASTER,
        Culprit(("rpn",)),
        onset=0,
        verdict=True,
    ),
    Scenario(
        "anchors-retina-three-levels",
        "ANCHORS",
        "pytorch/vision#3190",
        levels("retina", ((8,), (16,), (32,)), (RATIOS,) * 3),
        RETINA,
        onset=0,
        verdict=True,
    ),
    Scenario(
        "anchors-1-pixel-batch-1",
        "ANCHORS",
        "facebookresearch/maskrcnn-benchmark#1005",
        anchors(((1,), (1,))),
        SINGLE,
        Culprit(("rpn",)),
        onset=0,
        verdict=True,
    ),
)


def momentum(value: float, **more: Any) -> Callable[[Scene], None]:
    """The momentum, with rates as given."""

    def fault(scene: Scene) -> None:
        rates(**more)(scene)
        scene.momentum = value

    return fault


def box_head_only(factor: float, clip: float) -> Callable[[Scene], None]:
    """Only the heads' rate; they share one flag."""
    return rates(heads=factor, clip=clip)


def hooked(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """The same, with gradients that a hook halves: a replay without the hook takes other steps."""

    def fault(scene: Scene) -> None:
        change(scene)
        for p in scene.model.parameters():
            if p.requires_grad:
                p.register_hook(lambda g: g * 0.5)

    return fault


def patched(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """The same, with a ``forward`` that somebody put around the model's own."""

    def fault(scene: Scene) -> None:
        change(scene)
        inner = scene.model.roi_heads.box_head.forward
        scene.model.roi_heads.box_head.forward = lambda x: inner(x) * 1.0  # type: ignore[method-assign]

    return fault


RATES = (
    Scenario(
        "lr-scratch-group-0.5", "LR_TOO_HIGH", "facebookresearch/Detectron#182", rates(0.5, clip=10), GROUP, onset=1
    ),
    Scenario("lr-scratch-group-3", "LR_TOO_HIGH", "facebookresearch/Detectron#182", rates(3.0), GROUP, onset=1),
    Scenario("lr-scratch-batch-2", "LR_TOO_HIGH", "facebookresearch/Detectron#182", rates(2.0), BATCH, onset=1),
    Scenario(
        "lr-scratch-batch-backbone",
        "LR_TOO_HIGH",
        "facebookresearch/maskrcnn-benchmark#721",
        rates(backbone=100),
        BATCH,
        Culprit(("backbone",)),
        onset=1,
    ),
    Scenario(
        "lr-heads-batch-2",
        "LR_TOO_HIGH",
        "facebookresearch/detectron2#508",
        rates(heads=60),
        TWO,
        Culprit(HEADS),
        onset=1,
    ),
    Scenario(
        "lr-heads-batch-1",
        "LR_TOO_HIGH",
        "facebookresearch/detectron2#508",
        rates(heads=100),
        SINGLE,
        Culprit(HEADS),
        onset=1,
    ),
    Scenario(
        "lr-faster-heads",
        "LR_TOO_HIGH",
        "facebookresearch/detectron2#838",
        rates(heads=60),
        FASTER,
        Culprit(("box_head",)),
        onset=1,
    ),
    Scenario(
        "lr-faster-backbone",
        "LR_TOO_HIGH",
        "facebookresearch/maskrcnn-benchmark#721",
        rates(backbone=40),
        FASTER,
        Culprit(("backbone",)),
        onset=1,
    ),
    Scenario("lr-retina", "LR_TOO_HIGH", "yhenon/pytorch-retinanet#42", rates(30.0), RETINA, onset=1),
    Scenario(
        "lr-retina-group",
        "LR_TOO_HIGH",
        "yhenon/pytorch-retinanet#42",
        rates(50.0, warmup=0),
        Setup(model="retina", norm="group"),
        onset=0,
    ),
    Scenario("lr-momentum-0.99", "LR_TOO_HIGH", "nan_cases R-A5", momentum(0.99, lr=0.5), Setup(), onset=3),
    Scenario(
        "lr-adamw-group",
        "LR_TOO_HIGH",
        "facebookresearch/Detectron#676",
        rates(1.0, warmup=0),
        Setup(optimizer="adamw", norm="group"),
        onset=0,
    ),
    Scenario(
        "lr-adamw-heads",
        "LR_TOO_HIGH",
        "facebookresearch/Detectron#676",
        rates(heads=300),
        ADAM,
        Culprit(HEADS),
        onset=1,
    ),
    Scenario(
        "lr-hooked-gradients",
        "LR_TOO_HIGH",
        "facebookresearch/detectron2#508",
        hooked(rates(heads=60)),
        Setup(),
        Culprit(HEADS),
        onset=1,
    ),
    Scenario(
        "lr-patched-forward",
        "LR_TOO_HIGH",
        "facebookresearch/detectron2#508",
        patched(rates(heads=40)),
        Setup(),
        Culprit(HEADS),
        onset=1,
    ),
)


def zeroed(name: str) -> Callable[[Live], None]:
    """A weight is overwritten with a hundred times itself between two steps."""

    def change(live: Live) -> None:
        live.parameter(name).data.mul_(100.0)

    return change


def leaping_buffer(layer: str) -> Callable[[Live], None]:
    """The running mean of one norm is overwritten with something enormous."""

    def change(live: Live) -> None:
        live.model.get_buffer(f"{layer}.running_mean").fill_(1e12)

    return change


def nan_as_built(name: str) -> Callable[[Scene], None]:
    """The caller's model holds a NaN before the first step."""

    def fault(scene: Scene) -> None:
        with torch.no_grad():
            scene.model.get_parameter(name).view(-1)[0] = float("nan")

    return fault


OUTSIDE = (
    Scenario(
        "outside-fc6",
        "TRANSIENT",
        "AlexeyAB/darknet#5547",
        between(10, zeroed(f"{FC6}.weight")),
        Setup(),
        Culprit(("box_head",), FC6),
        onset=10,
    ),
    Scenario(
        "outside-stage-batch-2",
        "TRANSIENT",
        "AlexeyAB/darknet#5547",
        between(20, zeroed(f"{STAGE2}.weight")),
        TWO,
        Culprit(("backbone",), STAGE2),
        onset=20,
    ),
    Scenario(
        "built-with-nan",
        "POISONED_STATE",
        "Rikorose/DeepFilterNet#30",
        nan_as_built(f"{STAGE2}.weight"),
        Setup(),
        Culprit(("backbone",), STAGE2),
        onset=0,
        verdict=True,
    ),
    Scenario(
        "built-with-nan-retina",
        "POISONED_STATE",
        "Rikorose/DeepFilterNet#30",
        nan_as_built("head.regression_head.bbox_reg.weight"),
        RETINA,
        Culprit(("head",)),
        onset=0,
        verdict=True,
    ),
)
ONCE_AND_FINITE: tuple[Scenario, ...] = (*GLITCH, *FILES, *FORMULA, *ANCHORS, *RATES, *OUTSIDE)
