"""Honest runs of the project's own trainer, a ninth round: what is often asked about, and is nothing to worry about."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, has_bad, losses
from nanbench.faults_forms import picture
from nanbench.faults_lr import rates
from nanbench.faults_once import levels
from nanbench.faults_wild import set_by_hook, times
from nanbench.scenario import Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample

GITHUB = "https://github.com/"
POLES = (0.03, 0.5, 1.0)


def unseen(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Every third picture has no point that can be seen, and zeros in its place."""
    if int(target["image_id"]) % 3 == 0:
        target["keypoints"] = target["keypoints"] * 0
    return image, target


def no_prior(scene: Scene) -> None:
    """A new classification layer without the prior that its loss asks for: the first losses are enormous, and fall."""
    nn.init.zeros_(scene.model.get_parameter("head.classification_head.cls_logits.bias"))


def hard_picture(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """One picture is worth six times as much as the others: its losses stand out each time."""
    return {k: v * (6.0 if has_bad(scene, targets) else 1.0) for k, v in terms.items()}


def standardised(scene: Scene) -> None:
    """Pictures come with mean 0 and deviation 1, and the model leaves them so."""
    transform: Any = scene.model.transform
    transform.image_mean, transform.image_std = [0.0] * 3, [1.0] * 3
    every(picture(lambda image: (image - 0.25) / 0.2))(scene)


def crowded(scene: Scene) -> None:
    """Two pictures have forty objects."""
    for place in (4, 15):
        scene.samples[place] = sample(scene.ids[place], objects=40)


def rare(scene: Scene) -> None:
    """One class is in a single picture."""
    for place, (_, target) in enumerate(scene.samples):
        target["labels"].clamp_(max=2)
        if place == 10:
            target["labels"][0] = 3


def frozen_backbone(scene: Scene) -> None:
    """Only the heads learn."""
    for name, p in scene.model.named_parameters():
        if name.startswith("backbone.body"):
            p.requires_grad_(False)


def milestone(scene: Scene) -> None:
    """A tenth of the rate from the third epoch on, and a hundredth in the fourth."""
    set_by_hook(12, 18, times(0.1))(scene)
    set_by_hook(18, 24, times(0.01))(scene)


def compressed(scene: Scene) -> None:
    """Pictures of a scanner: one value almost everywhere, and a little noise."""
    for place in (2, 6, 12, 20):
        image, target = scene.samples[place]
        quiet = 0.5 + 1e-3 * torch.randn(image.shape, generator=torch.Generator().manual_seed(place))
        scene.samples[place] = (torch.where(target["masks"].amax(0) > 0, image, quiet), target)


NINTH_DECOYS = tuple(
    Scenario(f"decoy-ninth-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("poles", GITHUB + "pytorch/vision/issues/9401", levels("faster", ((16,), (32,)), (POLES,) * 2),
         Setup("adamw", model="faster")),
        ("always-warming", GITHUB + "facebookresearch/d2go/issues/19", rates(0.03, warmup=24, clip=10.0),
         Setup(model="faster", norm="group", batch=2)),
        ("unseen-points", GITHUB + "pytorch/vision/issues/2125", every(unseen), Setup(model="keypoint", batch=2)),
        ("clipped-hard", GITHUB + "rwightman/efficientdet-pytorch/issues/113", rates(clip=0.1),
         Setup(norm="batch", batch=2)),
        ("no-prior", GITHUB + "kuangliu/pytorch-retinanet/issues/10", no_prior, Setup(model="retina", batch=2)),
        ("hard-picture", "https://arxiv.org/abs/1604.03540", losses(hard_picture), Setup("adamw", model="fcos")),
        ("standardised", GITHUB + "albumentations-team/albumentations/issues/1428", standardised,
         Setup("adamw", model="faster", batch=2)),
        ("crowded", "https://arxiv.org/abs/1805.00123", crowded, Setup(batch=2)),
        ("rare", "https://arxiv.org/abs/1908.03195", rare, Setup("adam", precision="bf16", model="ssd")),
        ("frozen-backbone", GITHUB + "pytorch/vision/tree/main/references/detection", frozen_backbone,
         Setup(precision="fp16", batch=2)),
        ("milestones", GITHUB + "open-mmlab/mmdetection/issues/7789", milestone, Setup(model="fcos", norm="group")),
        ("quiet-scans", "https://arxiv.org/abs/1711.05225", compressed, Setup(norm="batch", model="retina", batch=2)),
        ("one-image-fp16", GITHUB + "Lightning-AI/pytorch-lightning/issues/9799", nothing,
         Setup("adamw", precision="fp16", model="retina", batch=1)),
    )
)  # fmt: skip
