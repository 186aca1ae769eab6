"""Honest runs of the project's own trainer, an eleventh round: large and tiny losses, odd plans, sets that change."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.faults_eleventh_train import by_step
from nanbench.faults_fifth_data import together
from nanbench.faults_forms import picture
from nanbench.faults_fresh import after
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_wild import set_by_hook, setting, times
from nanbench.scenario import Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample

GITHUB = "https://github.com/"


def nested(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Ten objects around one middle, the largest as large as the picture."""
    sizes = torch.arange(10) * 3.0
    boxes = torch.stack([sizes, sizes, 64 - sizes, 64 - sizes], 1)
    masks = torch.zeros(10, 64, 64, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    labels = torch.arange(10) % 3 + 1
    ids = torch.arange(10) + int(target["image_id"]) * 10
    return image, {**target, "boxes": boxes, "labels": labels, "masks": masks, "annotation_ids": ids}


def one_picture(scene: Scene) -> None:
    """The whole set is one picture: a test whether the model can learn it by heart."""
    image, first = scene.samples[0]
    for place, (_, target) in enumerate(scene.samples):
        same = {k: v.clone() if isinstance(v, Tensor) else v for k, v in first.items()}
        own = {k: target[k] for k in ("image_id", "annotation_ids")}
        scene.samples[place] = image.clone(), {**same, **own}


def one_cycle(step: int) -> float:
    """Up to three times the usual rate and down to a thousandth, whatever the plan was."""
    up = min(1.0, (step + 1) / 8)
    return 3 * (up if step < 8 else 1e-3 + 0.5 * (1 + math.cos(math.pi * (step - 8) / 16)))


def momentum_against(scene: Scene) -> None:
    """Momentum goes down where the rate goes up."""
    for step in range(24):
        share = min(1.0, (step + 1) / 8) if step < 8 else 1 - (step - 8) / 16
        set_by_hook(step, step + 1, setting("momentum", 0.95 - 0.1 * share))(scene)


def offset(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A constant of the likelihood stands in the loss: thousands, whatever is learnt."""
    return {**terms, "loss_constant": torch.stack(list(terms.values())).sum() * 0 + 5000.0}


def tiny(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Losses are means over all pixels of a large batch: millionths."""
    return {k: v * 1e-5 for k, v in terms.items()}


def geometric(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """The logarithm of each term, so that none outweighs the others: below zero, and falling."""
    return {k: (v + 0.1).log() for k, v in terms.items()}


def hard_half(scene: Scene) -> None:
    """The second half of the plan has the hard pictures: inverted, noisy, and with six objects."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        if scene.active and scene.step >= 12:
            image, target = sample(7000 + scene.ids[index], objects=6)
            target = {**target, "image_id": scene.ids[index]}
            g = torch.Generator().manual_seed(scene.ids[index])
            image = (1 - image + 0.2 * torch.randn(image.shape, generator=g)).clamp(0, 1)
        return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

    scene.draw = draw


def new_class(scene: Scene) -> None:
    """A class is annotated from step 12 on only."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        if scene.active and scene.step < 12:
            known = target["labels"] < 3
            target = {k: v[known] if isinstance(v, Tensor) else v for k, v in target.items()}
        return image.clone(), target

    scene.draw = draw


class EightBits(nn.Module):
    """A convolution whose weights are rounded to eight bits on their way, with the gradient of none."""

    def __init__(self, inner: nn.Conv2d) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        weight = self.inner.weight
        step = weight.detach().abs().amax() / 127
        rounded = weight + ((weight / step).round() * step - weight).detach()
        return F.conv2d(x, rounded, self.inner.bias, self.inner.stride, self.inner.padding)


def eight_bits(scene: Scene) -> None:
    """Every convolution of the backbone's body."""
    for name in ("layer1", "layer2", "layer3"):
        stage: Any = scene.model.get_submodule(f"backbone.body.{name}")
        stage[0] = EightBits(stage[0])


def rare_and_heavy(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Pictures with class 3 count twelve times in the classifier: its loss leaps at these."""
    rare = any(bool((t["labels"] == 3).any()) for t in targets)
    return {k: v * (12.0 if rare and k == "loss_classifier" else 1.0) for k, v in terms.items()}


def sawtooth(step: int) -> float:
    """Twice the rate, as it is, and nothing: again and again."""
    return (2.0, 1.0, 0.0)[step % 3]


def metres(scene: Scene) -> None:
    """Depth from 0 to 80 metres, and a model that knows their mean and deviation."""
    transform: Any = scene.model.transform
    transform.image_mean, transform.image_std = [20.0] * 3, [20.0] * 3
    change = every(picture(lambda image: image * 80))
    change(scene)
    scene.held_out = [(image * 80, target) for image, target in scene.held_out]


def one_to_forty(scene: Scene) -> None:
    """From no object to forty in a picture."""
    for place in range(24):
        scene.samples[place] = sample(scene.ids[place], objects=(0, 1, 2, 3, 40, 1, 0, 12)[place % 8])


def heads_ahead(scene: Scene) -> None:
    """The heads' rate is four times the rest's in the second epoch, as recipes for new classes have it."""
    set_by_hook(6, 12, times(4.0, HEADS))(scene)


def averaged(scene: Scene) -> None:
    """An average of the weights is kept beside."""
    scene.settings["ema"] = 0.95


ELEVENTH_DECOYS = tuple(
    Scenario(f"decoy-eleventh-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("nested", GITHUB + "eg4000/SKU110K_CVPR19", every(nested), Setup("adamw", model="faster", batch=2)),
        ("one-picture", GITHUB + "facebookresearch/detectron2/issues/4334", one_picture, Setup(norm="batch", batch=2)),
        ("super-convergence", "https://arxiv.org/abs/1708.07120", together(by_step(one_cycle), momentum_against),
         Setup(norm="group")),
        ("offset", GITHUB + "pytorch/pytorch/issues/2774", losses(offset), Setup("adamw", model="fcos", batch=2)),
        ("tiny-losses", GITHUB + "amdegroot/ssd.pytorch/issues/275", losses(tiny), Setup("adam", model="ssd")),
        ("geometric", "https://arxiv.org/abs/1904.08492", losses(geometric), Setup("adamw", norm="group", batch=2)),
        ("hard-half", "https://arxiv.org/abs/1904.03626", hard_half, Setup(model="retina", norm="group", batch=2)),
        ("new-class", "https://arxiv.org/abs/1708.06977", new_class, Setup("adamw", model="keypoint", batch=2)),
        ("eight-bits", "https://arxiv.org/abs/1712.05877", eight_bits, Setup(model="faster", norm="batch")),
        ("rare-and-heavy", GITHUB + "fcakyon/balanced-loss", losses(rare_and_heavy), Setup(precision="bf16", batch=2)),
        ("sawtooth", "https://arxiv.org/abs/1608.03983", by_step(sawtooth), Setup("adamax", model="fcos", batch=1)),
        ("metres", GITHUB + "albumentations-team/albumentations/issues/1758", metres,
         Setup("nadam", norm="layer", batch=2)),
        ("one-to-forty", GITHUB + "pytorch/vision/issues/2144", one_to_forty, Setup("lion", model="retina", batch=1)),
        ("heads-ahead", GITHUB + "facebookresearch/detectron2/issues/1007", heads_ahead,
         Setup("adamw", precision="fp16", batch=2)),
        ("averaged-fp16", GITHUB + "wandb/senpai/pull/23", averaged, Setup(precision="fp16", model="fcos", batch=2)),
        ("dropout-of-most", "https://arxiv.org/abs/1810.12890",
         together(after("roi_heads.mask_head", lambda s: nn.Dropout2d(0.7)),
                  after("roi_heads.box_head.fc6", lambda s: nn.Dropout(0.7))), Setup("adamw", accumulate=2)),
        ("resumed-bf16", GITHUB + "pytorch/torchtitan/pull/4615", resumed_with(nothing),
         Setup("adam", precision="bf16", model="keypoint")),
        ("batches-of-eight", GITHUB + "chensnathan/YOLOF/issues/40", rates(0.06, clip=10.0),
         Setup(norm="batch", batch=8)),
    )
)  # fmt: skip
