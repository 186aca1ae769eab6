"""Sound habits of people's own loops, models and files, that look like faults: any action is a false one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from nanbench.decoys import nothing
from nanbench.faults_state import resumed
from nanbench.faults_wild_state import with_average
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample

BATCH, GROUP, ADAM = Setup(norm="batch"), Setup(norm="group"), Setup(optimizer="adamw")
GUARD, ATTACH = Setup(way="guard"), Setup(way="attach")


def sharpness_aware(scene: Scene, radius: float = 0.02) -> None:
    """SAM: the weights climb ``radius`` along the gradient, a second pass is taken there, and they come back."""

    def around(live: Live, take: Callable[[], Any]) -> None:
        held = [p for p in live.model.parameters() if p.grad is not None]
        total = torch.stack([p.grad.norm() for p in held if p.grad is not None]).norm()
        moves = [p.grad * (radius / (total + 1e-12)) for p in held if p.grad is not None]
        for p, move in zip(held, moves, strict=True):
            p.data.add_(move)
        live.optimizer.zero_grad()
        positions = scene.order(live.step)[0]
        pairs = [scene.samples[i] for i in positions]
        terms = live.model([i.clone() for i, _ in pairs], [dict(t) for _, t in pairs])
        torch.stack(list(terms.values())).sum().backward()
        for p, move in zip(held, moves, strict=True):
            p.data.sub_(move)
        take()

    scene.around_step = around


def mixed_clearing(scene: Scene) -> None:
    """Gradients are set to None at some steps and to zero at others."""

    def around(live: Live, take: Callable[[], Any]) -> None:
        take()
        live.optimizer.zero_grad(set_to_none=live.step % 2 == 0)

    scene.around_step = around


def lookahead(scene: Scene) -> None:
    """Slow weights: every five steps half of the way back."""
    slow = {n: p.detach().clone() for n, p in scene.model.named_parameters()}

    def change(live: Live) -> None:
        for name, p in live.model.named_parameters():
            slow[name].lerp_(p.detach(), 0.5)
            p.data.copy_(slow[name])

    for step in (5, 10, 15, 20):
        scene.at(step, change)


def bounded_weights(scene: Scene) -> None:
    """After each step no row of a linear layer is longer than 2."""

    def around(live: Live, take: Callable[[], Any]) -> None:
        take()
        for module in live.model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data.copy_(torch.renorm(module.weight.data, 2, 0, 2.0))

    scene.around_step = around


def from_zero(scene: Scene) -> None:
    """A warm-up that begins at a rate of exactly 0."""
    for step in range(3):
        scene.at(
            step, lambda live: [g.__setitem__("lr", 0.01 * live.step) for g in live.optimizer.param_groups] and None
        )


def momentum(value: float | None) -> Callable[[Scene], None]:
    """BatchNorm keeps the last batch (1.0), or the mean of all (None)."""

    def fault(scene: Scene) -> None:
        for module in scene.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = value

    return fault


def panorama(scene: Scene) -> None:
    """One image is forty times as wide as high."""
    image, target = scene.samples[scene.culprit]
    wide = torch.rand(3, 64, 2560) * 0.3
    wide[:, :, :64] = image
    masks = torch.zeros(len(target["masks"]), 64, 2560, dtype=torch.uint8)
    masks[:, :, :64] = target["masks"]
    scene.samples[scene.culprit] = wide, {**target, "masks": masks}


def recomputed(scene: Scene) -> None:
    """One stage is computed again in the backward pass, to save memory."""
    stage: Any = scene.model.get_submodule("backbone.body.layer2")
    forward = stage.forward
    stage.forward = lambda x: checkpoint(forward, x, use_reentrant=False)


def amsgrad(scene: Scene) -> None:
    """AdamW with its largest second moments."""
    scene.optimizer_options["amsgrad"] = True


def high_scale(scene: Scene) -> None:
    """The search for a loss scale begins at 2^40: many steps are skipped by design."""
    scene.at(0, lambda live: live.scaler is not None and setattr(live.scaler, "_init_scale", 2.0**40))


def untouched(state: dict[str, Any]) -> None:
    """The file as it was saved."""


def zero_grads(scene: Scene) -> None:
    """Half of the images have no object, so that some heads get no gradient."""
    for i in range(0, 24, 2):
        scene.samples[i] = sample(scene.ids[i], objects=0)


FRESH_DECOYS = tuple(
    Scenario(f"decoy-fresh-{name}", "", "causes.md, decoys", fault, setup, decoy=True, needs=needs)
    for name, fault, setup, needs in (
        ("attach", nothing, ATTACH, ()),
        ("attach-fp16", nothing, Setup(precision="fp16", way="attach"), ()),
        ("attach-accumulate", nothing, Setup(accumulate=4, way="attach"), ()),
        ("guard", nothing, GUARD, ()),
        ("guard-adamw-bf16", nothing, Setup("adamw", "bf16", way="guard"), ()),
        ("files", nothing, Setup(way="files"), ()),
        ("sharpness-aware", sharpness_aware, ATTACH, ()),
        ("mixed-clearing", mixed_clearing, ATTACH, ()),
        ("lookahead", lookahead, GUARD, ()),
        ("bounded-weights", bounded_weights, ATTACH, ()),
        ("from-zero", from_zero, GUARD, ()),
        ("norm-last-batch", momentum(1.0), BATCH, ()),
        ("norm-mean-of-all", momentum(None), BATCH, ()),
        ("panorama", panorama, Setup(), ()),
        ("recomputed", recomputed, GROUP, ()),
        ("amsgrad", amsgrad, ADAM, ()),
        ("high-scale", high_scale, Setup(precision="fp16"), ()),
        ("empty-half-attach", zero_grads, Setup(batch=2, way="attach"), ()),
        ("resume", resumed(untouched), Setup(), ("resume",)),
        ("resume-average-adamw", with_average(resumed(untouched)), ADAM, ("resume",)),
        ("resume-norm-fp16", resumed(untouched), Setup(precision="fp16", norm="batch"), ("resume",)),
    )
)
