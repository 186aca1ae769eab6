"""Honest runs of a seventh round: steps by sign or made orthogonal, two optimizers, averages, noise, sparse weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.decoys import nothing
from nanbench.faults_fresh import after
from nanbench.faults_seventh import Rows, Tokens
from nanbench.faults_sixth import by_step
from nanbench.faults_wild import options
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup


def two_optimizers(scene: Scene) -> None:
    """The biases of the heads are trained by an optimizer of their own, beside the first, at a sound rate."""
    biases = [p for n, p in scene.model.named_parameters() if n.startswith("roi_heads") and p.ndim == 1]
    own = torch.optim.SGD(biases, lr=0.01)

    def around(live: Live, take: Callable[[], Any]) -> None:
        take()
        own.step()

    scene.around_step = around


def average_back(scene: Scene) -> None:
    """After each epoch an average of the weights takes their place."""
    average = {n: p.detach().clone() for n, p in scene.model.named_parameters()}

    def change(live: Live) -> None:
        for name, p in live.model.named_parameters():
            average[name].lerp_(p.detach(), 0.3)
            if live.step % 6 == 0:
                p.data.copy_(average[name])

    for step in range(1, 24):
        scene.at(step, change)


def noisy_weights(scene: Scene) -> None:
    """Noise is added to the weights after each step, as in Langevin dynamics."""
    g = torch.Generator().manual_seed(scene.seed)

    def around(live: Live, take: Callable[[], Any]) -> None:
        take()
        for p in live.model.parameters():
            if p.requires_grad:
                p.data.add_(torch.randn(p.shape, generator=g), alpha=3e-4)

    scene.around_step = around


def sparse(scene: Scene) -> None:
    """From step 10 on the smallest third of each linear layer's weights is zero, and is kept there."""
    masks: dict[str, Tensor] = {}

    def change(live: Live) -> None:
        for name, module in live.model.named_modules():
            if isinstance(module, nn.Linear):
                size = module.weight.detach().abs()
                masks.setdefault(name, size > size.flatten().kthvalue(size.numel() // 3).values)
                module.weight.data.mul_(masks[name])

    for step in range(10, 24):
        scene.at(step, change)


def sound_noam(step: int, rate: float) -> float:
    """The transformer's schedule with a warm-up of six steps."""
    return 0.02 * min((step + 1) ** -0.5, (step + 1) * 6**-1.5)


def transformer(scene: Scene) -> None:
    """A transformer's layer in the neck, warmed up."""
    after("neck", lambda s: Tokens(32))(scene)
    by_step(sound_noam)(scene)


def recurrent(scene: Scene) -> None:
    """A recurrent neck, clipped to a norm of 0.5."""
    after("neck", lambda s: Rows(32))(scene)
    scene.max_grad_norm = 0.5


SEVENTH_DECOYS = tuple(
    Scenario(f"decoy-seventh-{name}", "", source, fault, setup, decoy=True, needs=needs)
    for name, source, fault, setup, needs in (
        ("muon", "https://github.com/KellerJordan/Muon", nothing, Setup("muon", norm="group", batch=2, way="guard"),
         ()),
        ("lion-half", "https://github.com/lucidrains/lion-pytorch", nothing,
         Setup("lion", precision="fp16", way="attach"), ()),
        ("distance", "https://github.com/facebookresearch/dadaptation", nothing,
         Setup("distance", model="faster", way="attach"), ()),
        ("two-optimizers", "https://discuss.pytorch.org/t/two-optimizers-for-one-model/11085", two_optimizers,
         Setup(norm="group", way="attach"), ()),
        ("average-back", "https://github.com/lucidrains/ema-pytorch", average_back,
         Setup("adamw", batch=2, way="attach"), ()),
        ("fused", "https://pytorch.org/docs/stable/optim.html", options(fused=True), Setup("adamw", norm="batch"), ()),
        ("noisy-weights", "https://arxiv.org/abs/1511.06807", noisy_weights, Setup(way="attach"), ()),
        ("sparse", "https://arxiv.org/abs/1510.00149", sparse, Setup("adamw", way="guard"), ()),
        ("transformer", "https://github.com/harvardnlp/annotated-transformer", transformer,
         Setup("adam", model="own", way="attach"), ()),
        ("recurrent", "https://arxiv.org/abs/1211.5063", recurrent, Setup(model="own", batch=2, way="guard"), ()),
        ("ranks-half", "https://github.com/pytorch/vision/tree/main/references/detection", nothing,
         Setup("adamw", precision="bf16", ranks=2), ("ranks",)),
    )
)  # fmt: skip
