"""Honest runs of the project's own trainer, an eighth round: norms put to rest, thaws, slow weights, dark pictures."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_eighth_train_more import with_gradients
from nanbench.faults_fresh import after
from nanbench.faults_wild import rests_until
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup

TORCH, GITHUB = "https://pytorch.org/docs/stable/", "https://github.com/"


def norms_to_rest(scene: Scene) -> None:
    """From the second epoch on the norms keep their statistics, as recipes for small batches say."""

    def rest(live: Live) -> None:
        for module in live.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    for step in range(6, 24):
        scene.at(step, rest)


def no_statistics(scene: Scene) -> None:
    """Norms that keep no statistics at all: those of the batch, always."""
    for name, module in list(scene.model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            path, _, last = name.rpartition(".")
            norm = nn.BatchNorm2d(module.num_features, track_running_stats=False)
            scene.model.get_submodule(path)[int(last)] = norm  # type: ignore[index]


def thawed(scene: Scene) -> None:
    """The backbone learns nothing in the first two epochs, and goes on with the others from then."""
    rests_until(12, scene)


def lookahead(scene: Scene) -> None:
    """Every four steps the weights go back half of the way that they went."""
    slow = {n: p.detach().clone() for n, p in scene.model.named_parameters()}

    def back(live: Live) -> None:
        for name, p in live.model.named_parameters():
            p.data.lerp_(slow[name], 0.5)
            slow[name].copy_(p.detach())

    for step in range(4, 24, 4):
        scene.at(step, back)


def noisy_labels(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Every third picture's classes are wrong, as people label."""
    if int(target["image_id"]) % 3 == 0:
        target["labels"] = target["labels"] % 3 + 1
    return image, target


def dark(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Pictures of very little light: nothing above 0.02."""
    return image * 0.02, target


def grey(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Three equal channels, which are one in memory."""
    return image.mean(0, keepdim=True).expand(3, -1, -1), target


def rows_first(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Pictures as a decoder leaves them, rows by columns by channels, seen the other way round."""
    target["boxes"] = target["boxes"].t().contiguous().t()
    return image.permute(1, 2, 0).contiguous().permute(2, 0, 1), target


def twice_annotated(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Each object is annotated twice, by two people who differ by a pixel."""
    other = target["boxes"] + torch.tensor([0.0, 0.0, 1.0, 1.0])
    return image, {
        **target,
        "boxes": torch.cat([target["boxes"], other]),
        "labels": torch.cat([target["labels"]] * 2),
        "masks": torch.cat([target["masks"]] * 2),
        "annotation_ids": torch.cat([target["annotation_ids"], target["annotation_ids"] + 5]),
    }


class Loud(nn.Module):
    """Works on small numbers, so that in the backward pass gradients are large: the loss scale has to be low."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.mix(x * 1e-3) * 1e3


def grows(scene: Scene) -> None:
    """Pictures of 48 pixels at first, and of 64 from the third epoch on."""
    transform: Any = scene.model.transform

    def sides(side: int) -> Any:
        def change(live: Live) -> None:
            transform.min_size, transform.max_size = (side,), side

        return change

    scene.at(0, sides(48))
    scene.at(12, sides(64))


def averaged(scene: Scene) -> None:
    """An average of the weights is kept besides."""
    scene.settings["ema"] = 0.9


class Gate(nn.Module):
    """A scale for each channel that starts at 0, so that a branch joins in only slowly."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.zeros(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.branch(x)


def gated(scene: Scene) -> None:
    """Behind the mask head."""
    head = scene.model.get_submodule("roi_heads")
    head.mask_head = nn.Sequential(head.get_submodule("mask_head"), Gate(16))


EIGHTH_TRAIN_DECOYS = tuple(
    Scenario(f"decoy-eighth-train-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("norms-to-rest", GITHUB + "facebookresearch/detectron2/blob/main/detectron2/layers/batch_norm.py",
         norms_to_rest, Setup(norm="batch", batch=2)),
        ("no-statistics", TORCH + "generated/torch.nn.BatchNorm2d.html", no_statistics,
         Setup("adamw", norm="batch", model="faster")),
        ("thawed", "https://arxiv.org/abs/1801.06146", thawed, Setup("adamw", norm="group")),
        ("lookahead", "https://arxiv.org/abs/1907.08610", lookahead, Setup("radam", norm="group", model="fcos")),
        ("lars", "https://arxiv.org/abs/1708.03888", nothing, Setup("lars", norm="group", model="fcos")),
        ("muon-accumulated", GITHUB + "KellerJordan/Muon", nothing, Setup("muon", accumulate=2)),
        ("ssd-bf16", TORCH + "amp.html", nothing, Setup("adam", precision="bf16", model="ssd")),
        ("lion-batch-1", "https://arxiv.org/abs/2302.06675", nothing, Setup("lion", norm="batch", batch=1)),
        ("noisy-labels", "https://arxiv.org/abs/1712.05055", every(noisy_labels), Setup("nadam", batch=2)),
        ("dark", "https://arxiv.org/abs/1805.01934", every(dark), Setup(batch=2)),
        ("grey", TORCH + "generated/torch.Tensor.expand.html", every(grey), Setup("adamw", model="keypoint", batch=2)),
        ("rows-first", TORCH + "tensor_view.html", every(rows_first), Setup("adamw", precision="bf16", batch=2)),
        ("twice-annotated", "https://arxiv.org/abs/1712.00726", every(twice_annotated), Setup(model="ssd")),
        ("loud", TORCH + "notes/amp_examples.html", after("roi_heads.mask_head", lambda s: Loud(16)),
         Setup(precision="fp16", norm="group")),
        ("grows", "https://arxiv.org/abs/2104.00298", grows, Setup("adam", precision="bf16", model="keypoint")),
        ("with-gradients", "https://kornia.readthedocs.io/en/latest/augmentation.html", every(with_gradients),
         Setup("adamw", batch=2)),
        ("averaged", GITHUB + "lucidrains/ema-pytorch", averaged, Setup("adamw", norm="batch")),
        ("gated", "https://arxiv.org/abs/2103.17239", gated, Setup(precision="fp16", norm="group")),
    )
)  # fmt: skip
