"""Rates and optimizers of a seventh round: steps by sign or made orthogonal, second optimizers, own schedules."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.decoys_fresh import sharpness_aware
from nanbench.faults_fifth_data import together
from nanbench.faults_fresh import after
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_sixth import by_step
from nanbench.faults_wild import options
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

LR, ACC, POISON = "LR_TOO_HIGH", "ACCUMULATION", "POISONED_STATE"
BACKBONE = Culprit(("backbone", "backbone (group 4)"))
"""The group that a loop split off goes by the name of its component and its number."""


def multiplied(step: int, rate: float) -> float:
    """A share that was to be put in place of the last one is multiplied with it."""
    return 3e-3 * math.prod(1 + 0.25 * k for k in range(step + 1))


def noam(step: int, rate: float) -> float:
    """The transformer's schedule with a warm-up of one step for one of 4000."""
    return 16**-0.5 * 4 * min((step + 1) ** -0.5, (step + 1) * 1.0)


class Tokens(nn.Module):
    """A transformer's layer over the places of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(channels, 4, 64, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


class Rows(nn.Module):
    """A recurrent net along the places of a feature map, unbounded as a ReLU is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.net = nn.RNN(channels, channels, nonlinearity="relu", batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.net(x.flatten(2).transpose(1, 2))
        return x + 0.1 * out.transpose(1, 2).reshape(x.shape)


def transformer_too_soon(scene: Scene) -> None:
    """A transformer in the neck without a warm-up."""
    after("neck", lambda s: Tokens(32))(scene)
    by_step(noam, 0.0)(scene)


def recurrent(scene: Scene) -> None:
    """A recurrent neck at the rate of a convolutional one, times a hundred."""
    after("neck", lambda s: Rows(32))(scene)
    rates(3.0, warmup=0)(scene)


def norms_fast(scene: Scene) -> None:
    """Scales and shifts of the norms stand in a group of their own, whose rate has a factor of 1e5 for 1."""
    scene.max_grad_norm = 0.0

    def split(live: Live) -> None:
        inside = {id(p) for m in live.model.modules() if isinstance(m, nn.GroupNorm) for p in m.parameters()}
        for group in list(live.optimizer.param_groups):
            norms = [p for p in group["params"] if id(p) in inside]
            group["params"] = [p for p in group["params"] if id(p) not in inside]
            if norms:
                live.optimizer.add_param_group({**group, "params": norms, "fast": True})

    def fast(live: Live) -> None:
        for group in live.optimizer.param_groups:
            if group.get("fast"):
                group["lr"] = 1e5 * group["lr"]

    scene.at(0, split)
    for step in range(24):
        scene.at(step, fast)


def second_optimizer(scene: Scene) -> None:
    """From the second stage on, the heads have an optimizer of their own beside the first, at the rate of another."""
    scene.max_grad_norm = 0.0
    made: list[torch.optim.Optimizer] = []

    def around(live: Live, take: Callable[[], Any]) -> None:
        take()
        if live.step >= 8:
            if not made:
                heads = [p for n, p in live.model.named_parameters() if n.startswith("roi_heads")]
                made.append(torch.optim.SGD(heads, lr=30.0, momentum=0.9))
            made[0].step()

    scene.around_step = around


def long_climb(scene: Scene) -> None:
    """A step in two passes, whose climb is 5e4 for 0.05 long; nothing clips the second pass."""
    scene.max_grad_norm = 0.0
    sharpness_aware(scene, 5e4)


def ascending(scene: Scene) -> None:
    """The losses are maximised: an option of the optimizer that a copied line has."""
    scene.lr, scene.max_grad_norm = 0.3, 0.0
    options(maximize=True)(scene)


def bare_trust(scene: Scene) -> None:
    """A trust ratio without an eps: of a layer that had no part in the loss, size / 0 times 0."""
    scene.weight_decay = 0.0
    options(eps=0.0)(scene)
    for place in range(0, 24, 3):
        scene.samples[place] = sample(scene.ids[place], objects=0)


def bucket(scene: Scene) -> None:
    """Gradients pass through a buffer of the loop's own, as for a sum over machines, and nobody clears it."""
    scene.lr, scene.max_grad_norm = 0.3, 0.0
    kept: dict[Any, Tensor] = {}

    def change(live: Live) -> None:
        for p in live.model.parameters():
            if p.grad is not None:
                kept[p] = p.grad.clone() if p not in kept else kept[p] + p.grad
                p.grad.copy_(kept[p])

    scene.after_backward = change


SCHEDULES = (
    Scenario("seventh-multiplied", LR, "https://pytorch.org/docs/stable/optim.html", by_step(multiplied, 0.0),
             Setup(model="retina", way="attach"), onset=8),
    Scenario("seventh-noam", LR, "https://github.com/harvardnlp/annotated-transformer", transformer_too_soon,
             Setup("adam", model="own", way="attach"), onset=0),
    Scenario("seventh-recurrent", LR, "https://arxiv.org/abs/1211.5063", recurrent,
             Setup(model="own", batch=2, way="attach"), onset=0),
    Scenario("seventh-norms-fast", LR, "https://github.com/facebookresearch/detectron2", norms_fast,
             Setup(norm="group", way="guard"), BACKBONE, onset=0),
    Scenario("seventh-scratch-files", LR, "https://arxiv.org/abs/1811.08883", rates(6.0, warmup=0),
             Setup(norm="group", way="files"), onset=0),
    Scenario("seventh-ranks-heads", LR, "https://github.com/pytorch/vision/tree/main/references/detection",
             rates(heads=1e4), Setup("adamw", norm="group", ranks=2), Culprit(HEADS), onset=1, needs=("ranks",)),
)  # fmt: skip
OPTIMIZERS = (
    # The rate of an optimizer that the guard was not given: for it the weights change between the steps.
    Scenario("seventh-second-optimizer", LR, "https://discuss.pytorch.org/t/two-optimizers-for-one-model/11085",
             second_optimizer, Setup(way="attach"), Culprit(HEADS), onset=8, also=("TRANSIENT", "UNKNOWN"),
             open_end=True),
    Scenario("seventh-lion", LR, "https://github.com/lucidrains/lion-pytorch", rates(1.0, warmup=0),
             Setup("lion", norm="group", way="guard"), onset=0),
    Scenario("seventh-muon", LR, "https://github.com/KellerJordan/Muon", rates(300.0, warmup=0),
             Setup("muon", norm="group", batch=2, way="guard"), onset=0),
    Scenario("seventh-adamax-heads", LR, "https://pytorch.org/docs/stable/optim.html", rates(heads=1e4),
             Setup("adamax", model="faster", way="attach"), Culprit(("box_head",)), onset=1),
    Scenario("seventh-radam", LR, "https://github.com/LiyuanLucasLiu/RAdam", rates(30.0, warmup=0),
             Setup("radam", model="fcos", way="guard"), onset=0),
    Scenario("seventh-rprop-steps", LR, "https://pytorch.org/docs/stable/optim.html",
             options(etas=(0.5, 50.0), step_sizes=(1e-6, 1e12)), Setup("rprop", way="guard"), onset=2),
    Scenario("seventh-rmsprop-momentum", LR, "https://github.com/tensorflow/models",
             together(rates(0.3), options(momentum=0.999, alpha=0.5)), Setup("rmsprop", batch=1, way="attach"),
             onset=1),
    Scenario("seventh-dampening", LR, "https://pytorch.org/docs/stable/optim.html",
             together(rates(0.03), options(dampening=-300.0)), Setup(accumulate=2, norm="group"), onset=1),
    # The first guess is lr: the distance is another name of it, inside the optimizer.
    Scenario("seventh-distance", LR, "https://github.com/facebookresearch/dadaptation",
             together(rates(1.0), options(growth=3.0)), Setup("distance", model="faster", way="attach"), onset=4,
             open_end=True),
    # The climb and the step it is taken back for: an update far too large, of another number than the rate.
    Scenario("seventh-climb", LR, "https://github.com/davda54/sam", long_climb, Setup(batch=2, way="attach"),
             onset=0, also=("LOSS_MATH", "UNKNOWN", "TRANSIENT"), open_end=True),
    # Nothing sound to go on to: no rate makes an ascent learn. As a rate below zero is.
    Scenario("seventh-maximize", POISON, "https://pytorch.org/docs/stable/optim.html", ascending,
             Setup(norm="group", way="guard"), onset=0, also=(LR, "UNKNOWN"), verdict=True),
    Scenario("seventh-bare-trust", POISON, "https://github.com/NVIDIA/apex", bare_trust,
             Setup("lars", batch=1, way="attach"), onset=0, also=("LOSS_MATH", "UNKNOWN"), open_end=True),
    Scenario("seventh-bucket", ACC, "https://github.com/NVIDIA/apex", bucket, Setup(norm="group", way="attach"),
             onset=1, also=(LR,), open_end=True),
)  # fmt: skip
SEVENTH: tuple[Scenario, ...] = (*SCHEDULES, *OPTIMIZERS)
