"""Honest runs of the project's own trainer, a twelfth round: odd pictures, plans, losses, optimizers, frozen parts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.faults_eleventh_train import by_step
from nanbench.faults_fifth_data import together
from nanbench.faults_forms import picture
from nanbench.faults_fresh import after
from nanbench.faults_lr import rates
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_wild import options
from nanbench.scenario import Scenario
from nanbench.scene import Scene, Setup

TORCH, ARXIV = "https://pytorch.org/docs/stable/", "https://arxiv.org/abs/"


def solarised(image: Tensor) -> Tensor:
    """What is brighter than a half is turned over."""
    return torch.where(image > 0.5, 1 - image, image)


def cut_out(image: Tensor) -> Tensor:
    """Three quarters of a picture are black."""
    kept = torch.zeros_like(image)
    kept[:, 16:48, 16:48] = image[:, 16:48, 16:48]
    return kept


def three_times(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Each object was annotated by three people."""
    rest = {k: torch.cat([target[k]] * 3) for k in ("boxes", "labels", "masks")}
    return image, {**target, **rest, "annotation_ids": torch.arange(len(rest["labels"])) + 10 * target["image_id"]}


def seen_twice(scene: Scene) -> None:
    """Repeated augmentation: each picture stands in a batch beside itself."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index - index % 2 if scene.active else index]
        own = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        return image.clone(), own

    scene.draw = draw


def restarts(step: int) -> float:
    """Three cosines, one behind the other."""
    return 1.5 * (0.02 + 0.5 * (1 + math.cos(math.pi * (step % 8) / 8)))


def to_nothing(step: int) -> float:
    """A line that reaches 0 six steps before the end."""
    return max(0.0, 1 - step / 18)


def doubt(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A small reward for doubt: the term is below 0."""
    p = model.roi_heads.box_predictor.cls_score.bias.softmax(0)
    return {**terms, "loss_doubt": 0.1 * (p * p.log()).sum()}


def boxes_later(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Boxes of the heads do not count before step 8."""
    return {k: v * (scene.step >= 8 or k != "loss_box_reg") for k, v in terms.items()}


def dropped_terms(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """One of the terms is left out, another one each step."""
    names = sorted(terms)
    return {k: v * float(k != names[scene.step % len(names)]) for k, v in terms.items()}


def thousands(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Sums in place of means: ten thousand times as much."""
    return {k: v * 1e4 for k, v in terms.items()}


def centred(scene: Scene) -> None:
    """Gradients of filters lose their mean."""
    for p in scene.model.parameters():
        if p.requires_grad and p.ndim == 4:
            p.register_hook(lambda g: g - g.mean((1, 2, 3), keepdim=True))


def proposals_frozen(scene: Scene) -> None:
    """The proposals' head is kept as it is."""
    for p in scene.model.get_submodule("rpn").parameters():
        p.requires_grad_(False)


class Noise(torch.nn.Module):
    """Noise on features, as large as they are."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) * x.detach().std() if self.training else x


TWELFTH_DECOYS = tuple(
    Scenario(f"decoy-twelfth-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("solarised", "https://pytorch.org/vision/stable/transforms.html", every(picture(solarised)),
         Setup(model="faster", norm="group", batch=2)),
        ("cut-out", ARXIV + "1708.04552", every(picture(cut_out)), Setup("adamw", batch=2)),
        ("three-times", TORCH + "data.html", every(three_times), Setup("adamw", norm="group", batch=2)),
        ("seen-twice", ARXIV + "1901.09335", seen_twice, Setup(norm="batch", batch=2)),
        ("restarts", ARXIV + "1608.03983", by_step(restarts), Setup(norm="group", batch=2)),
        ("to-nothing", TORCH + "optim.html", by_step(to_nothing), Setup("adamw", model="retina", batch=2)),
        ("doubt", ARXIV + "1701.06548", losses(doubt), Setup(batch=2)),
        ("boxes-later", TORCH + "optim.html", losses(boxes_later), Setup(norm="group", batch=2)),
        ("dropped-terms", TORCH + "optim.html", losses(dropped_terms), Setup("adamw", model="fcos", batch=2)),
        ("thousands", TORCH + "generated/torch.optim.SGD.html", together(rates(3e-6), losses(thousands)),
         Setup(batch=2)),
        ("centred", ARXIV + "2004.01461", centred, Setup("adamw", norm="group", batch=2)),
        ("proposals-frozen", TORCH + "notes/autograd.html", proposals_frozen, Setup("adamw", batch=2)),
        ("noise-on-features", "https://jmlr.org/papers/v15/srivastava14a.html",
         after("roi_heads.box_head.fc6", lambda s: Noise()), Setup(model="faster", norm="group", batch=2)),
        ("no-first-beta", TORCH + "generated/torch.optim.AdamW.html", options(betas=(0.0, 0.99)),
         Setup("adamw", precision="bf16", batch=2)),
        ("resumed-retina", TORCH + "notes/serialization.html", resumed_with(nothing),
         Setup("adamw", model="retina", batch=2)),
    )
)  # fmt: skip
