"""Honest runs of a seventh round, from threads in which somebody was alarmed, and told that nothing was wrong."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.decoys_own import every
from nanbench.faults_code import Losses
from nanbench.faults_fresh import after
from nanbench.faults_seventh_code import own_terms
from nanbench.faults_sixth import by_step
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup

GITHUB = "https://github.com/"


def mixture(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """The likelihood of a mixture whose narrow part makes the loss negative, and lower and lower."""
    away = (out.float() - y).square().sum(1)
    parts = [math.log(0.5) - away / (2 * w * w) - 2 * math.log(w) - math.log(2 * math.pi) for w in (0.3, 0.03)]
    return {"nll": -torch.logsumexp(torch.stack(parts), 0).mean()}


def scaled(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """The loss is multiplied by 1024, and nobody takes that back: Adam does not mind."""
    return {k: 1024 * v for k, v in terms.items()}


def unclipped(scene: Scene) -> None:
    """`scaled`, without a clip."""
    scene.max_grad_norm = 0.0
    own_terms(scaled)(scene)


class Disparity(nn.Module):
    """1 / depth of what a picture shows, which is logged and not trained: of a depth of 0 it is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        depth = x.detach().relu()
        return (depth / depth.sum(1, keepdim=True)) / depth


class Shown(nn.Module):
    """Passes on, and keeps the disparity for a picture of it."""

    def __init__(self) -> None:
        super().__init__()
        self.disparity, self.last = Disparity(), torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.disparity(x).mean()
        return x


def holes(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Sizes of which the sensor did not see one: it is 0."""
    box = target["boxes"][0]
    numbers = (box[2:] - box[:2]) / 64
    if int(target["image_id"]) % 2 == 0:
        numbers[0] = 0.0
    return image, {**target, "numbers": numbers}


def masked_logarithm(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """The logarithm of all that was measured, holes too, and the mean without them."""
    wanted = y.log()
    return {"log": (F.softplus(out.float()).log() - wanted)[y > 0].square().mean()}


def sees_holes(scene: Scene) -> None:
    """`holes` and `masked_logarithm`."""
    every(holes)(scene)
    own_terms(masked_logarithm)(scene)


def sought(scene: Scene) -> None:
    """A loss scale that starts at 2^21 and falls for six steps and more before one is taken."""

    def high(live: Live) -> None:
        if live.scaler is not None:
            live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": 2.0**21})

    scene.at(0, high)


def last_step(step: int, rate: float) -> float:
    """A one-cycle policy down to 1e-9, whose very last step goes back to the rate of the step before it."""
    if step == 22:
        return 1e-9
    return 0.03 * min(1.0, (step + 1) / 6) * 0.5 * (1 + math.cos(math.pi * min(step, 21) / 22))


def unlabelled(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Points that nobody labelled in every third picture: visibility 0, at (0, 0)."""
    if int(target["image_id"]) % 3 == 0:
        target["keypoints"] = target["keypoints"] * 0
    return image, target


SEVENTH_REPORT_DECOYS = tuple(
    Scenario(f"decoy-seventh-report-{name}", "", GITHUB + source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("mixture", "Lifelong-Robot-Learning/LIBERO/issues/75", own_terms(mixture),
         Setup("adam", model="regress", way="attach")),
        ("scaled", "nerfstudio-project/nerfacc/issues/307", unclipped,
         Setup("adam", norm="group", model="segment", way="attach")),
        ("disparity", "bmild/nerf/issues/70", after("neck", lambda s: Shown()), Setup("adamw", model="own")),
        ("holes", "dontLoveBugs/DORN_pytorch/issues/23", sees_holes,
         Setup("adam", norm="batch", model="regress", way="guard")),
        ("sought", "zai-org/CogVideo/issues/233", sought, Setup("adamw", "fp16", batch=2, way="attach")),
        ("last-step", "pytorch/pytorch/issues/91765", by_step(last_step), Setup(model="retina", way="attach")),
        ("unlabelled", "facebookresearch/detectron2/issues/368", every(unlabelled),
         Setup("adamw", model="keypoint", batch=1)),
    )
)  # fmt: skip
