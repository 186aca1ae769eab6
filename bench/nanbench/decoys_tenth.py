"""Honest runs of the project's own trainer, a tenth round: small, crowded, weighted, seeded, cast, resumed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.faults_fifth_data import together
from nanbench.faults_forms import picture
from nanbench.faults_lr import rates
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import between
from nanbench.faults_tenth_train import triangle
from nanbench.faults_wild import options
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

GITHUB = "https://github.com/"


def specks(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Every object is two to four pixels wide."""
    boxes = target["boxes"]
    boxes[:, 2:] = boxes[:, :2] + 2 + boxes[:, 2:] % 3
    masks = torch.zeros_like(target["masks"])
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    return image, {**target, "boxes": boxes, "masks": masks}


def crowd(scene: Scene) -> None:
    """One picture has two hundred objects, and another one that is annotated forty times over."""
    scene.samples[3] = sample(scene.ids[3], objects=200)
    image, target = scene.samples[17]
    many = {k: v.repeat(20, *[1] * (v.ndim - 1)) for k, v in target.items() if isinstance(v, Tensor)}
    many["annotation_ids"] = torch.arange(len(many["boxes"])) + 10 * scene.ids[17]
    scene.samples[17] = image, {**target, **many}


def other_columns(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Columns that no model reads are without a number, or of no use."""
    n = len(target["labels"])
    rest = {"area": torch.full((n,), float("nan")), "iscrowd": torch.full((n,), 2), "score": None, "file": "a.png"}
    return image, {**target, **rest}


def hundredfold(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """The mask's loss counts a hundred times, from the first step on."""
    return {k: v * (100.0 if k == "loss_mask" else 1.0) for k, v in terms.items()}


def only_masks(scene: Scene) -> None:
    """Everything rests but the mask's head."""
    for name, p in scene.model.named_parameters():
        p.requires_grad_(name.startswith("roi_heads.mask"))


def augmented(scene: Scene) -> None:
    """Flips, contrast, noise, erased squares: other ones at every draw."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        g = torch.Generator().manual_seed(index * 100 + scene.step)
        image = image.clone() * (0.4 + torch.rand(3, 1, 1, generator=g))
        image = image + 0.2 * torch.randn(image.shape, generator=g)
        x, y = torch.randint(0, 40, (2,), generator=g).tolist()
        image[:, y : y + 20, x : x + 20] = 0.0
        if torch.rand((), generator=g) < 0.5:
            image, boxes = image.flip(2), target["boxes"].clone()
            target["boxes"][:, 0], target["boxes"][:, 2] = 64 - boxes[:, 2], 64 - boxes[:, 0]
            target["masks"] = target["masks"].flip(2)
        return image.clamp(0, 1), target

    scene.draw = draw


def enlarged(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Pictures of 320 by 192 pixels."""
    image = F.interpolate(image[None], size=(192, 320))[0]
    boxes = target["boxes"] * torch.tensor([5.0, 3.0, 5.0, 3.0])
    masks = F.interpolate(target["masks"][None].float(), size=(192, 320))[0].to(torch.uint8)
    return image, {**target, "boxes": boxes, "masks": masks}


def mosaic(scene: Scene) -> None:
    """From the second epoch on every other picture is one of four: eight objects, a quarter of the size."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        if not scene.active or scene.step < 6 or index % 2:
            return image.clone(), target
        places = [(index + away) % 24 for away in (0, 3, 7, 12)]
        canvas, boxes, labels, masks = torch.zeros(3, 64, 64), [], [], []
        for n, place in enumerate(places):
            part, its = scene.samples[place]
            x, y = 32 * (n % 2), 32 * (n // 2)
            canvas[:, y : y + 32, x : x + 32] = F.avg_pool2d(part, 2)
            for box, label in zip(its["boxes"], its["labels"], strict=True):
                boxes.append(box / 2 + torch.tensor([x, y, x, y]))
                labels.append(label)
                mask = torch.zeros(64, 64, dtype=torch.uint8)
                x1, y1, x2, y2 = boxes[-1].int().tolist()
                mask[y1:y2, x1:x2] = 1
                masks.append(mask)
        ids = torch.arange(len(boxes)) + 10 * scene.ids[index]
        made = {"boxes": torch.stack(boxes), "labels": torch.stack(labels), "masks": torch.stack(masks)}
        return canvas, {**target, **made, "annotation_ids": ids}

    scene.draw = draw


def seeded(scene: Scene) -> None:
    """The model seeds torch itself in each forward pass, so that its samplers choose alike."""
    scene.model.register_forward_pre_hook(lambda module, args: torch.manual_seed(7) and None)


def cast_and_back(live: Live) -> None:
    """A look at the validation set in half precision: weights come back rounded."""
    live.model.half().float()


def deterministic(scene: Scene) -> None:
    """Only kernels that always give the same, from the second epoch on."""
    scene.at(6, lambda live: torch.use_deterministic_algorithms(True, warn_only=True))


class Squeezed(nn.Module):
    """Channels weighted by their means: a squeeze and excitation as it should be."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Sequential(nn.Linear(channels, 4), nn.SiLU(), nn.Linear(4, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3))).sigmoid()[..., None, None]


def squeezed(scene: Scene) -> None:
    """Behind every stage."""
    for name, channels in (("layer1", 12), ("layer2", 16), ("layer3", 24)):
        body: Any = scene.model.get_submodule("backbone.body")
        body[name] = nn.Sequential(body[name], Squeezed(channels))


def one_class(scene: Scene) -> None:
    """All objects are of the first class, and two of three pictures have none."""
    for place in range(len(scene.samples)):
        if place % 3:
            scene.samples[place] = sample(scene.ids[place], objects=0)
        scene.samples[place][1]["labels"].fill_(1)


TENTH_DECOYS = tuple(
    Scenario(f"decoy-tenth-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("specks", GITHUB + "open-mmlab/mmdetection/issues/7111", every(specks), Setup(norm="batch", batch=2)),
        ("crowd", GITHUB + "eg4000/SKU110K_CVPR19/issues/23", crowd, Setup(batch=2)),
        ("other-columns", GITHUB + "pytorch/vision/issues/1120", every(other_columns),
         Setup("adamw", model="fcos", batch=2)),
        ("hundredfold", "https://arxiv.org/abs/1705.07115",
         together(rates(clip=10.0), losses(hundredfold)), Setup("adamw", batch=2)),
        ("only-masks", GITHUB + "matterport/Mask_RCNN/wiki", only_masks, Setup(norm="group", batch=2)),
        ("augmented", GITHUB + "albumentations-team/albumentations/issues/383", augmented,
         Setup("adam", model="ssd")),
        ("enlarged", GITHUB + "JiahuiYu/generative_inpainting/issues/446", every(enlarged), Setup()),
        ("mosaic", GITHUB + "ultralytics/yolov3/issues/757", mosaic, Setup("adamw", model="faster")),
        ("seeded", GITHUB + "pytorch/pytorch/issues/35047", seeded, Setup(norm="batch", model="retina", batch=2)),
        ("cast-and-back", GITHUB + "ultralytics/ultralytics/pull/24731", between(12, cast_and_back),
         Setup("adamw", model="keypoint", batch=2)),
        ("deterministic", "https://pytorch.org/docs/stable/notes/randomness.html", deterministic,
         Setup(model="faster", norm="batch")),
        ("squeezed", "https://arxiv.org/abs/1709.01507", squeezed, Setup(precision="fp16", norm="group")),
        ("one-class", GITHUB + "andreaazzini/retinanet.pytorch/issues/4", one_class,
         Setup("adamw", model="retina", batch=1)),
        ("tiny-rate", GITHUB + "matterport/Mask_RCNN/issues/2933", rates(1e-7), Setup(accumulate=4, norm="group")),
        ("small-triangle", GITHUB + "yassouali/pytorch-segmentation/issues/74", triangle(3.0, 8),
         Setup("adamw", precision="bf16", batch=2)),
        ("one-channel", GITHUB + "Peterande/D-FINE/issues/156",
         every(picture(lambda image: image.mean(0, keepdim=True))),
         Setup("adamw", precision="fp16", model="fcos")),
        ("resumed-fused", GITHUB + "pytorch/pytorch/issues/96755",
         together(options(fused=True), resumed_with(nothing)), Setup("adam", model="ssd")),
    )
)  # fmt: skip
