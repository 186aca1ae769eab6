"""Runs of the project's own trainer, a tenth round: cycles, restarts, decay and momentum too high, and two at once."""

from __future__ import annotations

from typing import Any

from nanbench.faults_fifth_data import drawn, nan_corner, together
from nanbench.faults_forms import entry, picture
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_once import scaled
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import wrong_once
from nanbench.faults_tenth_train_code import half_areas, hidden_pair
from nanbench.faults_tenth_train_data import memory, panoptic
from nanbench.faults_wild import options, set_by_hook, setting, times
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

LR = "LR_TOO_HIGH"
BACKBONE, RPN = Culprit(("backbone",)), Culprit(("rpn",))
GITHUB = "https://github.com/"


def unclipped(*faults: Any) -> Any:
    """Nothing clips."""

    def fault(scene: Scene) -> None:
        scene.max_grad_norm = 0.0
        together(*faults)(scene)

    return fault


def triangle(top: float, period: int, components: Any = None) -> Any:
    """A cycle that climbs to ``top`` times the rate and comes back, again and again, from the end of the warm-up on."""

    def fault(scene: Scene) -> None:
        for step in range(4, 24):
            share = 1 - abs((step - 4) % period - period / 2) / (period / 2)
            set_by_hook(step, step + 1, times(1 + (top - 1) * share, components))(scene)

    return fault


def growing_restarts(factor: float) -> Any:
    """Each warm restart begins ``factor`` times as high as the one before, where it should be lower."""

    def fault(scene: Scene) -> None:
        for cycle in (1, 2, 3):
            for step in range(6 * cycle, 6 * cycle + 6):
                share = 1 - (step - 6 * cycle) / 6
                set_by_hook(step, step + 1, times(factor**cycle * share))(scene)

    return fault


def default_rate(component: str, rate: float, start: int) -> Any:
    """A group that is added under way has the optimizer's default rate, and no schedule knows it."""

    def change(group: dict[str, Any]) -> None:
        if group.get("component") == component:
            group["lr"] = rate

    return set_by_hook(start, 24, change)


def decay_of(component: str, value: float, start: int) -> Any:
    """The weight decay of one component is a share of another schedule's, from ``start`` on."""

    def change(group: dict[str, Any]) -> None:
        if group.get("component") == component:
            group["weight_decay"] = value

    return set_by_hook(start, 24, change)


def momentum_of(components: tuple[str, ...], value: float, start: int) -> Any:
    """The momentum of these components, from ``start`` on."""

    def change(group: dict[str, Any]) -> None:
        if group.get("component") in components:
            group["momentum"] = value

    return set_by_hook(start, 24, change)


WHOLE = (
    Scenario("tenth-rate-triangle", LR, GITHUB + "yassouali/pytorch-segmentation/issues/74",
             unclipped(triangle(120.0, 8)), Setup(norm="group", batch=2), onset=5),
    Scenario("tenth-rate-growing-restarts", LR, GITHUB + "pytorch/vision/pull/6555",
             unclipped(growing_restarts(12.0)), Setup("adamw", model="fcos", batch=2), onset=6),
    Scenario("tenth-rate-wrong-counter", LR, GITHUB + "crowsonkb/k-diffusion/issues/50",
             unclipped(set_by_hook(4, 24, times(60.0))), Setup(norm="batch", model="retina", batch=2), onset=4),
    Scenario("tenth-rate-fused", LR, GITHUB + "pytorch/pytorch/issues/90752",
             together(rates(0.5, warmup=0), options(fused=True)), Setup("adamw", model="retina", batch=1), onset=0),
    Scenario("tenth-rate-nesterov", LR, GITHUB + "facebookresearch/Detectron/issues/81",
             unclipped(lambda s: rates(0.4)(s), options(nesterov=True), set_by_hook(0, 24, setting("momentum", 0.97))),
             Setup(norm="group", batch=2), onset=1),
    Scenario("tenth-rate-scratch-bf16", LR, GITHUB + "facebookresearch/maskrcnn-benchmark/pull/102",
             rates(0.8, warmup=1), Setup("adamw", precision="bf16", batch=2), onset=0),
    Scenario("tenth-rate-fp16-ten-epochs", LR, GITHUB + "open-mmlab/mmdetection/issues/7490",
             unclipped(set_by_hook(9, 24, times(100.0))), Setup(precision="fp16", norm="group"), onset=9),
    Scenario("tenth-rate-one-image-late", LR, GITHUB + "tensorpack/tensorpack/issues/1296",
             unclipped(set_by_hook(16, 24, times(300.0))), Setup("adamw", model="retina", batch=1), onset=16),
)  # fmt: skip
PARTS = (
    Scenario("tenth-rate-heads-cycle", LR, GITHUB + "tianzhi0549/FCOS/issues/55", unclipped(triangle(150.0, 10, HEADS)),
             Setup(norm="batch", batch=2), Culprit(HEADS), onset=5),
    Scenario("tenth-rate-mask-default", LR, GITHUB + "technicolor-research/dsve-loc/issues/16",
             unclipped(default_rate("mask_head", 1.0, 8)), Setup("adamw", precision="bf16", batch=2),
             Culprit(("mask_head",)), onset=8),
    Scenario("tenth-rate-backbone-decay", LR, GITHUB + "open-mmlab/mmdetection/issues/8055",
             unclipped(decay_of("backbone", 400.0, 9)), Setup(), BACKBONE, onset=9),
    Scenario("tenth-rate-heads-momentum", LR, GITHUB + "matterport/Mask_RCNN/issues/2933",
             unclipped(momentum_of(HEADS, 1.3, 7)), Setup(batch=2), Culprit(HEADS), onset=7),
    Scenario("tenth-rate-rpn-late", LR, GITHUB + "ruotianluo/pytorch-faster-rcnn/issues/105",
             unclipped(set_by_hook(9, 24, times(3e3, ("rpn",)))), Setup(model="faster", norm="batch"), RPN, onset=9),
    Scenario("tenth-rate-points-head", LR, GITHUB + "megvii-research/FSCE/issues/64",
             unclipped(set_by_hook(11, 24, times(2e3, ("keypoint_head", "box_head", "mask_head")))),
             Setup("adamw", model="keypoint", batch=2), Culprit(("keypoint_head", "box_head", "mask_head")), onset=11),
    # Two components, one after the other: both times it is the rate.
    Scenario("tenth-rate-heads-then-backbone", LR, GITHUB + "matterport/Mask_RCNN/issues/1614",
             unclipped(set_by_hook(6, 9, times(500.0, HEADS)), set_by_hook(15, 18, times(500.0, ("backbone",)))),
             Setup(norm="group", batch=2), Culprit(HEADS), onset=6),
)  # fmt: skip
TWO = (
    # An epoch is twelve steps here: no older file is there to go on from, nor for the one of the points' head.
    Scenario("tenth-two-file-and-mask", "POISONED_STATE", GITHUB + "facebookresearch/detectron2/issues/332",
             together(resumed_with(scaled("roi_heads.box_predictor", 1e5)), drawn({0: entry("masks", panoptic)})),
             Setup("adamw", batch=2), together=("POISONED_STATE", "DATA_MASK"), verdict=True, needs=("resume",)),
    Scenario("tenth-two-half-and-label", "FP16_OVERFLOW", GITHUB + "PeizeSun/SparseR-CNN/issues/72",
             together(half_areas, drawn({0: entry("labels", memory)})), Setup("adamw", precision="fp16", model="fcos"),
             together=("FP16_OVERFLOW", "DATA_LABEL"), onset=0),
    Scenario("tenth-two-pair-and-glitch", "LOSS_MATH", GITHUB + "deepfakes/faceswap/issues/310",
             together(hidden_pair, wrong_once("backbone.body.layer3", 5, 1e8)), Setup("adamw", model="faster"),
             together=("LOSS_MATH", "TRANSIENT")),
    Scenario("tenth-two-pixel-and-decay", "DATA_PIXEL", GITHUB + "fizyr/keras-retinanet/pull/1007",
             unclipped(drawn({0: picture(nan_corner), 8: picture(nan_corner)}), decay_of("backbone", 400.0, 13)),
             Setup(norm="group", batch=2), together=("DATA_PIXEL", LR)),
)  # fmt: skip
TENTH_TRAIN: tuple[Scenario, ...] = (*WHOLE, *PARTS, *TWO)
