"""Nothing is wrong here, though it was blamed in threads or looks like it: any action is a false one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_code import Losses, losses
from nanbench.faults_lr import rates
from nanbench.scenario import Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample


def empty_images(scene: Scene) -> None:
    """Every fourth image has no object."""
    for i in range(0, len(scene.samples), 4):
        scene.samples[i] = sample(int(scene.samples[i][1]["image_id"]), objects=0)


def empty_batches(scene: Scene) -> None:
    """Two of three images have no object: whole batches are empty."""
    for i in range(len(scene.samples)):
        if i % 3:
            scene.samples[i] = sample(int(scene.samples[i][1]["image_id"]), objects=0)


def box_outside(scene: Scene) -> None:
    """One box lies wholly outside its image."""
    scene.samples[scene.culprit][1]["boxes"][0] += 100


def thin_box(scene: Scene) -> None:
    """One box is 1e-5 pixels wide, and positive."""
    box = scene.samples[scene.culprit][1]["boxes"][0]
    box[0], box[2] = 0.0, 1e-5


def small_boxes(scene: Scene) -> None:
    """All boxes of three images are one pixel."""
    for i in (2, 9, 16):
        target = scene.samples[i][1]
        target["boxes"][:, 2:] = target["boxes"][:, :2] + 1


def crowds(scene: Scene) -> None:
    """Every third image has a crowd region."""
    for image_target in scene.samples[::3]:
        image_target[1]["iscrowd"] = torch.tensor([0, 1])


def whole_image(scene: Scene) -> None:
    """One object fills its image."""
    target = scene.samples[scene.culprit][1]
    target["boxes"][0] = torch.tensor([0.0, 0.0, 64.0, 64.0])
    target["masks"][0] = 1


def black_and_white(scene: Scene) -> None:
    """One black image and one white image."""
    scene.samples[3][0].fill_(0.0)
    scene.samples[11][0].fill_(1.0)


def beyond_range(scene: Scene) -> None:
    """Resampling overshoots: pixels from -0.1 to 1.15."""
    for i, (image, target) in enumerate(scene.samples):
        scene.samples[i] = image * 1.25 - 0.1, target


def other_sizes(scene: Scene) -> None:
    """Images of other sizes, one of 1 × 1 among them."""
    image, target = scene.samples[5]
    scene.samples[5] = image[:, :40, :], {**target, "masks": target["masks"][:, :40, :]}
    scene.samples[5][1]["boxes"][:, 3].clamp_(max=40)
    scene.samples[5][1]["boxes"][:, 1].clamp_(max=35)
    scene.samples[6] = torch.rand(3, 1, 1), {**sample(int(scene.samples[6][1]["image_id"]), 0)[1]}
    scene.samples[6][1]["masks"] = torch.zeros(0, 1, 1, dtype=torch.uint8)


def spike(scene: Scene, model: nn.Module, terms: Losses, targets: Any) -> Losses:
    """One step's losses are 25 times the usual ones; the next step is as before."""
    return {k: v * (25.0 if scene.step == 13 else 1.0) for k, v in terms.items()}


def hollow(scene: Scene, model: nn.Module, terms: Losses, targets: Any) -> Losses:
    """The mean over nothing that reaches no gradient: NaN in the log, and no harm."""
    return {**terms, "loss_extra": terms["loss_mask"].new_zeros(0 if scene.step % 5 == 4 else 3).mean()}


def likelihood(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A log likelihood of a density: it falls below zero in good health."""
    bias = model.roi_heads.box_predictor.cls_score.bias
    return {**terms, "nll": 0.01 * bias.square().mean() - 1.0 - 0.1 * scene.step}


def images_twice(scene: Scene) -> None:
    """Half of the data set is the other half again."""
    for i in range(12):
        image, target = scene.samples[i]
        scene.samples[12 + i] = (
            image.clone(),
            {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
            | {"image_id": int(scene.samples[12 + i][1]["image_id"])},
        )


def nothing(scene: Scene) -> None:
    """The clean run: with fp16, GradScaler's search for a scale."""


D = "UNKNOWN"
ADAM, ACC, FP16, BATCH = Setup(optimizer="adamw"), Setup(accumulate=4), Setup(precision="fp16"), Setup(norm="batch")
DECOYS = tuple(
    Scenario(f"decoy-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("empty-images", "nan_cases D-1", empty_images, Setup()),
        ("empty-batches", "pytorch/vision#2144", empty_batches, ACC),
        ("box-outside", "nan_cases D-2", box_outside, Setup()),
        ("thin-box", "nan_cases D-5", thin_box, ADAM),
        ("small-boxes", "tensorflow/models#3688", small_boxes, Setup()),
        ("crowds", "nan_cases B", crowds, BATCH),
        ("whole-image", "nan_cases B", whole_image, Setup(norm="group")),
        ("black-and-white", "nan_cases D", black_and_white, Setup()),
        ("beyond-range", "nan_cases D", beyond_range, ADAM),
        ("other-sizes", "nan_cases D-9", other_sizes, Setup()),
        ("loss-spike", "jwyang/faster-rcnn.pytorch#849", losses(spike), Setup()),
        ("hollow-mean", "pytorch/pytorch#50224", losses(hollow), ACC),
        ("negative-likelihood", "causes.md, decoys", losses(likelihood), Setup()),
        ("scale-search", "Lightning-AI/pytorch-lightning#9799", nothing, FP16),
        ("images-twice", "nan_cases", images_twice, BATCH),
        ("brisk-rate", "facebookresearch/maskrcnn-benchmark#33", rates(heads=2, clip=10), Setup()),
    )
)
