"""Sound runs of other detectors and optimizers, and habits that look like faults: any action is a false one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.faults_forms import entry, handed_out, picture
from nanbench.faults_lr import rates
from nanbench.faults_state import between
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample


def flaky(scene: Scene) -> None:
    """Four items raise when they are asked for the first time: a share that was not there for a moment."""
    left = {1, 6, 13, 20}

    def draw(index: int) -> Any:
        if index in left:
            left.discard(index)
            raise OSError("Stale file handle")
        image, target = scene.samples[index]
        return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

    scene.draw = draw


def restarts(scene: Scene) -> None:
    """The rate doubles for two steps, twice: warm restarts."""
    for step in (8, 9, 15, 16):
        scene.at(step, lambda live: [g.__setitem__("lr", 2 * g["lr"]) for g in live.optimizer.param_groups] and None)


def noise(scene: Scene) -> None:
    """Hooks add noise to every gradient."""
    for p in scene.model.parameters():
        if p.requires_grad:
            p.register_hook(lambda g: g + 1e-3 * torch.randn_like(g))


def weight_norm(scene: Scene) -> None:
    """A weight in two parts, direction and size."""
    parametrizations.weight_norm(scene.model.roi_heads.box_head.fc6)


def counter(scene: Scene) -> None:
    """A float buffer that counts pixels: it grows by millions."""
    scene.model.register_buffer("seen", torch.zeros(()))

    def hook(model: nn.Module, args: Any, output: Any) -> None:
        if model.training:
            model.get_buffer("seen").add_(1e7)

    scene.model.register_forward_hook(hook)


def uncertainty(scene: Scene) -> None:
    """Losses weighted by learned variances: e^-s L + s, which may fall below zero."""
    scene.model.register_parameter("spread", nn.Parameter(torch.zeros(())))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        return {k: v * torch.exp(-model.spread) + 0.2 * model.spread for k, v in terms.items()}

    losses(change)(scene)


def late_mask(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """The mask loss counts from step 6 on, and not before."""
    return {k: v * (0.0 if k == "loss_mask" and scene.step < 6 else 1.0) for k, v in terms.items()}


def many_objects(scene: Scene) -> None:
    """One image has forty objects."""
    image_id = int(scene.samples[scene.culprit][1]["image_id"])
    scene.samples[scene.culprit] = sample(image_id, objects=40)


def frozen_head(live: Live) -> None:
    """The mask head is frozen under way."""
    for name, p in live.model.named_parameters():
        if "mask" in name:
            p.requires_grad_(False)


def rewarmed(live: Live) -> None:
    """Momentum is set to zero under way, as a restart does it."""
    for state in live.optimizer.state.values():
        if "momentum_buffer" in state:
            state["momentum_buffer"].zero_()


def new_head(live: Live) -> None:
    """The class layer is made anew under way."""
    layer = live.model.roi_heads.box_predictor.cls_score
    nn.init.normal_(layer.weight.data, std=0.01)
    nn.init.zeros_(layer.bias.data)


def wave(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Hard and easy batches in turn: losses swing by four."""
    return {k: v * math.exp(0.7 * math.sin(scene.step)) for k, v in terms.items()}


def words(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Image ids are words."""
    return image, {**target, "image_id": f"img_{target['image_id']}"}


def normalised(image: Tensor) -> Any:
    """Mean and deviation were taken out already: pixels from -2.5 to 3."""
    return (image - 0.45) / 0.225


def as_list(scene: Scene) -> None:
    """Items are lists, not tuples."""
    scene.draw = lambda index: [scene.samples[index][0].clone(), dict(scene.samples[index][1])]


Change = Callable[[Scene], None]
GROUP, BATCH, ADAM = Setup(norm="group"), Setup(norm="batch"), Setup(optimizer="adamw")
WILD_DECOYS = tuple(
    Scenario(f"decoy-wild-{name}", "", "causes.md, decoys", fault, setup, decoy=True)
    for name, fault, setup in (
        ("fcos", nothing, Setup(model="fcos")),
        ("ssd", nothing, Setup(model="ssd")),
        ("points", nothing, Setup(model="keypoint")),
        ("own", nothing, Setup(model="own")),
        ("own-adamw-group", nothing, Setup("adamw", norm="group", model="own")),
        ("own-batch-1", nothing, Setup(norm="group", batch=1, model="own")),
        ("nadam", nothing, Setup(optimizer="nadam")),
        ("adagrad", nothing, Setup(optimizer="adagrad")),
        ("rmsprop", nothing, Setup(optimizer="rmsprop")),
        ("adafactor", nothing, Setup(optimizer="adafactor")),
        ("adafactor-rate", rates(30.0), Setup(optimizer="adafactor")),  # it takes no more than 1
        ("rprop", nothing, Setup(optimizer="rprop")),
        ("flaky", flaky, Setup()),
        ("restarts", restarts, Setup()),
        ("noise", noise, GROUP),
        ("weight-norm", weight_norm, Setup()),
        ("counter", counter, BATCH),
        ("uncertainty", uncertainty, Setup()),
        ("late-mask", losses(late_mask), ADAM),
        ("many-objects", many_objects, Setup()),
        ("frozen-under-way", between(9, frozen_head), Setup()),
        ("momentum-reset", between(12, rewarmed), GROUP),
        ("new-head", between(11, new_head), ADAM),
        ("wave", losses(wave), Setup()),
        ("words", every(words), Setup()),
        ("normalised", every(picture(normalised)), Setup()),
        ("image-double", handed_out(picture(Tensor.double)), Setup(batch=1)),
        ("image-half", handed_out(picture(Tensor.half)), Setup(model="faster")),
        ("lists", as_list, BATCH),
        ("masks-float", every(entry("masks", Tensor.float)), Setup()),
        ("boxes-double", every(entry("boxes", Tensor.double)), Setup()),
    )
)
