"""Honest and unusual once more: a clock that jumps, metrics among the losses, statistics that start anew."""

from __future__ import annotations

import time
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup


def clock(scene: Scene) -> None:
    """The machine's clock is set back by an hour, then forward by a day."""
    real, away = time.time, [0.0]
    mock.patch.object(time, "time", lambda: real() + away[0]).start()
    for step, seconds in ((8, -3600.0), (16, 86400.0)):
        scene.at(step, lambda live, s=seconds: away.__setitem__(0, s))


def metric(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A figure for the log stands among the losses: percent, without a gradient."""
    return {**terms, "accuracy": torch.tensor(40.0 + 2 * scene.step)}


def hardest(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Only the largest term counts at each step."""
    top = max(terms.values(), key=float)
    return {k: v * (3.0 if v is top else 0.0) for k, v in terms.items()}


def noisy_gradients(scene: Scene) -> None:
    """Noise is added to the gradients, and their values are clipped one by one."""

    def change(live: Live) -> None:
        g = torch.Generator().manual_seed(live.step)
        for p in live.model.parameters():
            if p.grad is not None:
                p.grad.add_(torch.randn(p.grad.shape, generator=g), alpha=1e-3)
        nn.utils.clip_grad_value_(live.model.parameters(), 0.05)

    scene.after_backward = change


def nesterov(scene: Scene) -> None:
    """Another momentum, on purpose."""
    scene.momentum = 0.95
    scene.optimizer_options.update(nesterov=True)
    scene.lr /= 2


def statistics_anew(scene: Scene) -> None:
    """BatchNorm's statistics are set back and gathered anew at step 12, as before an average of weights."""

    def change(live: Live) -> None:
        for module in live.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_running_stats()
                module.momentum = None  # type: ignore[assignment]

    scene.at(12, change)


def crops(scene: Scene) -> None:
    """Random crops that lose some of the objects, often all."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        g = torch.Generator().manual_seed(100 * scene.step + index)
        x, y = (int(v) for v in torch.randint(0, 33, (2,), generator=g))
        boxes = target["boxes"] - torch.tensor([x, y, x, y])
        boxes = boxes.clamp(0, 32)
        keep = ((boxes[:, 2:] - boxes[:, :2]) >= 4).all(1)
        rows = {k: target[k][keep].clone() for k in ("labels", "annotation_ids")}
        masks = target["masks"][keep][:, y : y + 32, x : x + 32].clone()
        return image[:, y : y + 32, x : x + 32].clone(), {**target, **rows, "boxes": boxes[keep], "masks": masks}

    scene.draw = draw


def scale_swings(scene: Scene) -> None:
    """A loss scale that doubles at every step, and falls whenever it went too far."""

    def change(live: Live) -> None:
        live.scaler.set_growth_interval(1)
        live.scaler.set_growth_factor(4.0)

    scene.at(0, change)


def rests(scene: Scene) -> None:
    """A rate of exactly 0 for eight steps, then the usual one."""
    usual = scene.rates

    def rates(step: int) -> dict[str, float]:
        return {k: 0.0 if step < 8 else v for k, v in usual(step).items()}

    scene.rates = rates  # type: ignore[method-assign]


def heads_alone(scene: Scene) -> None:
    """Everything but the heads was frozen before the optimizer was made."""
    for name, p in scene.model.named_parameters():
        p.requires_grad_(name.startswith(("roi_heads", "rpn")))


def penalty(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A penalty that is large and slow: hundreds, with gradients like the others'."""
    weight: Tensor = model.roi_heads.box_head.fc6.weight
    return {**terms, "penalty": 300.0 + 0.1 * weight.square().sum()}


def made_in_inference(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Pictures that were made ready under ``torch.inference_mode``."""
    with torch.inference_mode():
        return image * 1.0, target


FOURTH_DECOYS = tuple(
    Scenario(f"decoy-fourth-{name}", "", "causes.md, decoys", fault, setup, decoy=True)
    for name, fault, setup in (
        ("clock", clock, Setup()),
        ("metric", losses(metric), Setup(way="attach")),
        ("hardest", losses(hardest), Setup(norm="group", way="guard")),
        ("noisy-gradients", noisy_gradients, Setup(way="attach")),
        ("nesterov", nesterov, Setup(model="fcos", way="guard")),
        ("statistics-anew", statistics_anew, Setup(norm="batch", way="guard")),
        ("crops", crops, Setup()),
        ("scale-swings", scale_swings, Setup(precision="fp16", way="attach")),
        ("rests", rests, Setup("adam", way="attach")),
        ("heads-alone", heads_alone, Setup(norm="group", way="attach")),
        ("penalty", losses(penalty), Setup(model="faster", way="guard")),
        ("inference-tensors", every(made_in_inference), Setup(model="own", way="guard")),
        ("layer-batch-1", nothing, Setup("adam", norm="layer", batch=1, model="faster", way="guard")),
    )
)
