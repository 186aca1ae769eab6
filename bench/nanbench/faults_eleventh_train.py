"""Runs of the project's own trainer, an eleventh round: schedules set wrong, odd optimizers, and two faults at once."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nanbench.decoys import nothing
from nanbench.faults_eleventh_train_data import hue, track, weights_of_borders
from nanbench.faults_eleventh_train_state import unsigned
from nanbench.faults_fifth_data import drawn, together
from nanbench.faults_forms import entry, picture
from nanbench.faults_lr import HEADS, rates, undivided
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import between, variance_of, wrong_once
from nanbench.faults_tenth_train import unclipped
from nanbench.faults_wild import options, set_by_hook, times
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

LR, ACC = "LR_TOO_HIGH", "ACCUMULATION"
BACKBONE, RPN = Culprit(("backbone",)), Culprit(("rpn",))
GITHUB, TORCH = "https://github.com/", "https://pytorch.org/docs/stable/"


def by_step(factor: Any, components: Any = None) -> Any:
    """The rates of these components, or of all, times ``factor(step)``, where that is not None."""

    def fault(scene: Scene) -> None:
        for step in range(24):
            by = factor(step)
            if by is not None:
                set_by_hook(step, step + 1, times(by, components))(scene)

    return fault


def start_factor(step: int) -> float | None:
    """A warm-up whose factor to begin with is 200 where 1/200 was meant: it comes down to 1 in eight steps."""
    return 200 ** (1 - step / 8) if step < 8 else None


def floor_above(step: int) -> float | None:
    """A cosine to a floor that is a rate of another recipe: the rate rises to it, where it should fall."""
    return 1 + 600 * 0.5 * (1 - math.cos(math.pi * step / 24)) if step > 2 else None


def averaging_phase(step: int) -> float | None:
    """The rate for averaged weights is the optimizer's default: from step 16 on it anneals up to that."""
    return 400 ** min(1.0, (step - 15) / 3) if step >= 16 else None


def jitter(step: int) -> float | None:
    """Noise on the rate, whose deviation was given in percent and read as a share."""
    g = torch.Generator().manual_seed(11)
    return math.exp(4 * abs(float(torch.randn(24, generator=g)[step]))) if step >= 6 else None


def finder(step: int) -> float | None:
    """A search for the largest rate that works, in the middle of a run; weights are not put back after it."""
    return 10 ** ((step - 4) / 2) if 4 <= step < 12 else None


def of_a_cluster(scene: Scene) -> None:
    """Gradients are multiplied by the number of processes of another machine, from step 9 on."""
    scene.max_grad_norm = 0.0

    def hook(gradient: Tensor) -> Tensor | None:
        return gradient * 512 if scene.active and scene.step >= 9 else None

    for p in scene.model.parameters():
        if p.requires_grad:
            p.register_hook(hook)


WHOLE = (
    Scenario("eleventh-rate-start-factor", LR, TORCH + "generated/torch.optim.lr_scheduler.LinearLR.html",
             unclipped(by_step(start_factor), lambda s: setattr(s, "warmup", 0)), Setup(model="keypoint", batch=2),
             onset=0),
    Scenario("eleventh-rate-floor-above", LR, GITHUB + "Nerogar/OneTrainer/issues/1604",
             unclipped(by_step(floor_above)), Setup(model="faster", norm="group", batch=2), onset=5),
    Scenario("eleventh-rate-averaging-phase", LR, TORCH + "optim.html",
             unclipped(by_step(averaging_phase)), Setup(precision="bf16", norm="group", batch=2), onset=16),
    Scenario("eleventh-rate-jitter", LR, "https://timm.fast.ai/schedulers", unclipped(by_step(jitter)),
             Setup(model="retina", norm="group", batch=2), onset=6),
    Scenario("eleventh-rate-finder", LR, "https://arxiv.org/abs/1506.01186", unclipped(by_step(finder)),
             Setup("adamw", model="faster", batch=2), onset=6),
    Scenario("eleventh-rate-other-plan", LR, GITHUB + "Lightning-AI/pytorch-lightning/issues/5455",
             unclipped(resumed_with(nothing), set_by_hook(12, 24, times(300.0))), Setup(model="faster", norm="group"),
             onset=12, needs=("resume",)),
    # A step as long as the mean gradient over the last one: momentum and rate are both words for it.
    Scenario("eleventh-rate-beta-of-zero", LR, GITHUB + "keras-team/keras/issues/11204",
             unclipped(options(betas=(0.9, 0.0))), Setup("adam", model="faster", batch=2), onset=0,
             also=("POISONED_STATE",)),
    Scenario("eleventh-rate-decimal-comma", LR, GITHUB + "qfgaohao/pytorch-ssd/issues/22", rates(4.0),
             Setup("rmsprop", model="ssd", precision="bf16", batch=2), onset=1),
    # What a gradient is multiplied by, and what a rate is multiplied by, are one thing to SGD.
    Scenario("eleventh-rate-of-a-cluster", LR, GITHUB + "NVIDIA/apex/issues/1322", of_a_cluster,
             Setup(norm="batch", batch=2), onset=9, also=(ACC, "LOSS_MATH"), open_end=True),
    Scenario("eleventh-rate-adamax-burst", LR, GITHUB + "tianzhi0549/FCOS/issues/146",
             unclipped(set_by_hook(18, 21, times(300.0))), Setup("adamax", model="fcos", batch=1), onset=18),
    Scenario("eleventh-rate-muon-middle", LR, GITHUB + "microsoft/dion/issues/76",
             unclipped(set_by_hook(11, 24, times(100.0))), Setup("muon", batch=2), onset=11),
    Scenario("eleventh-rate-sum-of-two", LR, GITHUB + "chensnathan/YOLOF/issues/40", rates(1.0),
             Setup("adamw", accumulate=2, model="retina"), onset=1),
    Scenario("eleventh-undivided-batch-norms", ACC, GITHUB + "NVIDIA/DeepLearningExamples/issues/625",
             undivided(5, 0.2), Setup(accumulate=4, model="faster", norm="batch"), onset=5, verdict=True,
             needs=("undivided",)),
)  # fmt: skip
PARTS = (
    Scenario("eleventh-rate-rpn-adagrad", LR, GITHUB + "amdegroot/ssd.pytorch/issues/275", rates(rpn=3e3),
             Setup("adagrad", batch=2), RPN, onset=0),
    Scenario("eleventh-rate-points-lion", LR, GITHUB + "facebookresearch/detectron2/issues/1128", rates(heads=300.0),
             Setup("lion", model="keypoint", batch=2), Culprit(("box_head", "keypoint_head", "mask_head")), onset=1),
    Scenario("eleventh-rate-backbone-fp16", LR, GITHUB + "ucbdrive/few-shot-object-detection/issues/206",
             unclipped(set_by_hook(13, 24, times(300.0, ("backbone",)))), Setup(precision="fp16", norm="batch"),
             BACKBONE, onset=13),
    Scenario("eleventh-rate-mask-finder", LR, "https://arxiv.org/abs/1506.01186",
             unclipped(by_step(finder, ("mask_head",))), Setup(norm="group", batch=1), Culprit(("mask_head",)),
             onset=6),
)  # fmt: skip
TWO = (
    Scenario("eleventh-two-track-and-backbone", "DATA_BOX", GITHUB + "facebookresearch/detr/issues/459",
             unclipped(drawn({0: track}), set_by_hook(16, 24, times(300.0, ("backbone",)))),
             Setup(norm="group", batch=2), together=("DATA_BOX", LR)),
    Scenario("eleventh-two-file-and-hue", "POISONED_STATE", GITHUB + "kornia/kornia/issues/918",
             together(resumed_with(unsigned), drawn({0: picture(hue)}, lambda step: step >= 12)),
             Setup(), together=("POISONED_STATE", "DATA_PIXEL"), needs=("resume",)),
    Scenario("eleventh-two-norm-and-heads", "NORM_STATE", GITHUB + "yhenon/pytorch-retinanet/issues/109",
             unclipped(between(5, variance_of("backbone.body.layer3.1", -0.3)),
                       set_by_hook(14, 24, times(500.0, HEADS))),
             Setup(), together=("NORM_STATE", LR), onset=5),
    Scenario("eleventh-two-glitch-and-mask", "TRANSIENT", GITHUB + "k2-fsa/icefall/issues/1764",
             together(wrong_once("roi_heads.box_head", 4, 1e9),
                      drawn({0: entry("masks", weights_of_borders)}, lambda step: step >= 6)),
             Setup("adamw", norm="batch", batch=2), together=("TRANSIENT", "DATA_MASK"), onset=4),
)  # fmt: skip
ELEVENTH_TRAIN: tuple[Scenario, ...] = (*WHOLE, *PARTS, *TWO)
