"""Honest runs that look odd: thaws at a sound rate, cycles that work, plateaus, twofold labels, three pictures."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.faults_sixth import by_step, from_then, thaw
from nanbench.faults_wild import options
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup


def plateau(step: int, rate: float) -> float:
    """Nothing is learnt for ten steps; then the rate comes back."""
    return rate * (1e-6 if 4 <= step < 14 else 1.0)


def triangle(step: int, rate: float) -> float:
    """A cycle of six steps, up to twice the usual rate."""
    return 3e-4 + 6e-3 * (1 - abs((step % 6) / 3 - 1))


def drop(step: int, rate: float) -> float:
    """The rate falls by a million after a third of the run."""
    return rate * (1e-6 if step >= 8 else 1.0)


def erased(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Random patches of noise, also over the objects."""
    x, y = torch.randint(0, 40, (2,)).tolist()
    image[:, y : y + 20, x : x + 20] = torch.rand(3, 20, 20)
    return image, target


def dark(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Taken by night: no value above 0.02."""
    return image * 0.02, target


def two_labels(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Every object stands there twice, under two labels."""
    twice = {k: torch.cat([target[k], target[k]]) for k in ("boxes", "masks", "labels")}
    half = len(target["labels"])
    twice["labels"][half:] = twice["labels"][half:] % 3 + 1
    ids = target["annotation_ids"]
    return image, {**target, **twice, "annotation_ids": torch.cat([ids, ids + 5])}


def three_pictures(scene: Scene) -> None:
    """Three pictures, each eight times, under eight ids."""
    for place, (_, target) in enumerate(scene.samples):
        image, other = scene.samples[place % 3]
        same = {k: v.clone() if isinstance(v, Tensor) else v for k, v in other.items()}
        keep = {k: target[k] for k in ("image_id", "annotation_ids")}
        scene.samples[place] = image.clone(), {**same, **keep}


def rare_class(scene: Scene) -> None:
    """One object of class 3 in all; the others are of class 1."""
    for place, (_, target) in enumerate(scene.samples):
        target["labels"][:] = 1
        if place == scene.culprit:
            target["labels"][0] = 3


def alternating(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Boxes at even steps, masks at odd ones."""
    boxes = {k: v * (scene.step % 2 == 0) for k, v in terms.items() if k != "loss_mask"}
    return {**boxes, "loss_mask": terms["loss_mask"] * (scene.step % 2)}


def centralised(scene: Scene) -> None:
    """Gradients of every filter have their mean taken away before the step."""

    def change(live: Live) -> None:
        for p in live.model.parameters():
            if p.grad is not None and p.ndim > 1:
                p.grad -= p.grad.mean(tuple(range(1, p.ndim)), keepdim=True)

    scene.after_backward = change


def evaluated_with_average(scene: Scene) -> None:
    """A moving average's weights are put in for an evaluation after each epoch, and taken out again."""
    average: dict[str, Tensor] = {}

    def change(live: Live) -> None:
        state = live.model.state_dict()
        for k, v in state.items():
            average[k] = v.clone() if k not in average or not v.is_floating_point() else average[k].lerp(v, 0.5)
        if live.step % 6 == 5:
            own = copy.deepcopy(state)
            live.model.load_state_dict(average)
            live.model.eval()
            with torch.no_grad():
                live.model([scene.held_out[0][0]])
            live.model.train()
            live.model.load_state_dict(own)

    for step in range(2, 24):
        scene.at(step, change)


def quick_nesterov(scene: Scene) -> None:
    """A momentum of 0.97 with a look ahead, at a third of the rate."""
    scene.momentum = 0.97
    scene.lr /= 3
    options(nesterov=True)(scene)


def high_and_clipped(scene: Scene) -> None:
    """Three times the rate, with the gradients clipped to a norm of 0.3."""
    scene.lr *= 3
    scene.max_grad_norm = 0.3


def step_scaled(scene: Scene) -> None:
    """Momentum climbs from 0.85 to 0.95 while the rate falls, as in a one-cycle policy."""
    for start, value in ((0, 0.85), (8, 0.9), (16, 0.95)):
        from_then(start, momentum=value)(scene)


SIXTH_DECOYS = tuple(
    Scenario(f"decoy-sixth-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("plateau", "https://github.com/facebookresearch/detectron2/issues/1403", by_step(plateau), Setup(way="guard")),
        ("triangle", "https://github.com/pytorch/pytorch/pull/2016", by_step(triangle),
         Setup("adamw", norm="group", way="attach")),
        ("rate-drops", "https://github.com/axolotl-ai-cloud/axolotl/issues/157", by_step(drop),
         Setup(model="keypoint", way="guard")),
        ("thaw", "https://github.com/Lightning-AI/pytorch-lightning/pull/5744", thaw(0.3, 8),
         Setup(norm="group", way="attach")),
        ("erased", "https://github.com/pytorch/vision/issues/2263", every(erased), Setup(model="ssd", way="guard")),
        ("dark", "https://github.com/facebookresearch/detectron2/issues/214", every(dark),
         Setup(model="fcos", way="guard")),
        ("two-labels", "https://github.com/facebookresearch/detectron2/issues/2465", every(two_labels),
         Setup("adamw", model="retina", way="attach")),
        ("three-pictures", "https://github.com/facebookresearch/detectron2/issues/1545", three_pictures,
         Setup(norm="group", batch=1)),
        ("rare-class", "https://github.com/youngwanLEE/vovnet-detectron2/issues/3", rare_class, Setup(batch=2)),
        ("alternating", "https://github.com/open-mmlab/mmdetection/issues/8055", losses(alternating),
         Setup("adamw", norm="group", way="guard")),
        ("centralised", "https://github.com/Jannoshh/simple-sam/issues/5", centralised,
         Setup("adamw", batch=2, way="attach")),
        ("average-evaluated", "https://github.com/Nerogar/OneTrainer/pull/1038", evaluated_with_average,
         Setup("adamw", norm="batch", way="guard")),
        ("nesterov", "https://github.com/ultralytics/yolov5/issues/292", quick_nesterov, Setup(batch=2, way="attach")),
        ("clipped-hard", "https://github.com/wandb/senpai/pull/164", high_and_clipped, Setup(accumulate=4)),
        ("momentum-climbs", "https://github.com/fastai/fastai/pull/296", step_scaled,
         Setup(norm="group", way="guard")),
        ("norm-batch-1", "https://github.com/kenshohara/3D-ResNets-PyTorch/issues/129", nothing,
         Setup(norm="batch", batch=1, way="attach")),
    )
)  # fmt: skip
