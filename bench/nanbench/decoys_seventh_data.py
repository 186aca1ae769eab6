"""Honest runs of other tasks, and of data and code that look wrong: gaps that the loss leaves out, work in place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.faults_forms import handed_out
from nanbench.faults_seventh_code import own_terms
from nanbench.faults_seventh_data import semantic
from nanbench.scenario import Scenario
from nanbench.scene import Scene, Setup


def borders(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Void along the edges, which the loss leaves out; some maps are void but for a corner."""
    ids = semantic(target)
    ids[::8] = 255
    if int(target["image_id"]) % 5 == 0:
        ids[4:] = 255
    return image, {**target, "map": ids}


def void(scene: Scene) -> None:
    """One map is void all over: the mean over no pixel is NaN, and reaches no gradient."""
    handed_out(lambda image, target: (image, {**target, "map": torch.full((64, 64), 255)}))(scene)


def gaps(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """One of two numbers was not measured in every third picture: NaN, as the table has it."""
    box = target["boxes"][0]
    numbers = (box[2:] - box[:2]) / 64
    if int(target["image_id"]) % 3 == 0:
        numbers[1] = float("nan")
    return image, {**target, "numbers": numbers}


def measured(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """The mean over what was measured."""
    there = y.isfinite()
    return {"mse": (out.float() - y.nan_to_num())[there].square().mean()}


def gappy(scene: Scene) -> None:
    """`gaps`, and a loss that knows of them."""
    every(gaps)(scene)
    own_terms(measured)(scene)


def depth_beside(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A depth map with holes of NaN and distances without end, which nothing reads."""
    depth = torch.rand(64, 64)
    depth[depth < 0.1], depth[depth > 0.9] = float("nan"), float("inf")
    return image, {**target, "depth": depth}


def in_place(scene: Scene) -> None:
    """The model normalises what it was given, in place: a batch can be used only once."""

    def hook(model: Any, args: Any) -> None:
        for image in args[0]:
            image.mul_(2.0).sub_(0.5)

    scene.model.register_forward_pre_hook(hook)


def mixed_up(scene: Scene) -> None:
    """Pictures and classes of every batch are mixed."""
    model: Any = scene.model
    usual: Callable[..., Any] = model.collate

    def collate(pairs: Any) -> Any:
        x, y = usual(pairs)
        if not scene.active:
            return x, F.one_hot(y, 3).float()
        share = 0.5 + 0.5 * torch.rand(())
        soft = F.one_hot(y, 3).float()
        return share * x + (1 - share) * x.flip(0), share * soft + (1 - share) * soft.flip(0)

    model.collate = collate


def never_met(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A weight without end for a class that never comes, and the logarithm of a 0 that where() leaves behind."""
    weight = torch.tensor([1.0, 1.0, float("inf")])[torch.zeros(len(targets), dtype=torch.int64)].mean()
    safe = torch.where(weight > 2, torch.tensor(0.0).log(), torch.tensor(0.0))
    return {k: v * weight + safe for k, v in terms.items()}


def sharp(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """Logits a hundred times as large: certain, and often wrong; losses of tens that a clip bounds."""
    return {"ce": 0.01 * F.cross_entropy(100 * out.float(), y)}


SEVENTH_DATA_DECOYS = tuple(
    Scenario(f"decoy-seventh-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("map-borders", "https://github.com/open-mmlab/mmsegmentation/issues/550", every(borders),
         Setup(model="segment", way="guard")),
        ("map-void", "https://github.com/pytorch/pytorch/issues/70348", void,
         Setup(model="segment", batch=1, way="guard")),
        ("map-half", "https://github.com/milesial/Pytorch-UNet/issues/78", nothing,
         Setup("adamw", "fp16", model="segment", way="attach")),
        ("gaps", "https://discuss.pytorch.org/t/how-to-ignore-nan-targets/130480", gappy,
         Setup("adamw", model="regress", way="guard")),
        ("gaps-attach", "https://discuss.pytorch.org/t/how-to-ignore-nan-targets/130480", gappy,
         Setup(norm="group", model="regress", batch=2, way="attach")),
        ("depth-beside", "https://github.com/facebookresearch/detectron2/issues/214", every(depth_beside),
         Setup("adamw", way="attach")),
        ("in-place", "https://github.com/pytorch/vision/issues/2263", in_place, Setup(model="own", way="attach")),
        ("mixed-classes", "https://github.com/huggingface/pytorch-image-models/issues/1106", mixed_up,
         Setup(norm="batch", model="classify", way="attach")),
        ("autoencoder", "https://github.com/AntixK/PyTorch-VAE/issues/10", nothing,
         Setup("adam", model="encode", batch=2, way="guard")),
        ("critic", "https://github.com/caogang/wgan-gp/issues/47", nothing,
         Setup("adam", norm="layer", model="critic", way="attach")),
        ("critic-guard", "https://github.com/caogang/wgan-gp/issues/47", nothing,
         Setup("rmsprop", model="critic", batch=2, way="guard")),
        ("words", "https://github.com/pytorch/pytorch/issues/41508", nothing,
         Setup("adamw", "bf16", accumulate=2, model="text", way="attach")),
        ("never-met", "https://github.com/pytorch/pytorch/issues/21558", losses(never_met), Setup(batch=2)),
        ("sharp", "https://github.com/mlfoundations/open_clip/issues/46", own_terms(sharp),
         Setup(model="classify", batch=1, way="guard")),
    )
)  # fmt: skip
