"""More of what is not wrong: models from scratch, one stage, batches of one, hooks, odd but usable forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.decoys import nothing
from nanbench.faults_code import Losses, losses
from nanbench.faults_forms import entry, handed_out, picture
from nanbench.faults_lr import rates
from nanbench.faults_once import hooked, levels, patched
from nanbench.faults_state import between
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup


def curriculum(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """The mask loss counts double from step 12 on, on purpose."""
    return {k: v * (2.0 if k == "loss_mask" and scene.step >= 12 else 1.0) for k, v in terms.items()}


def summed(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Losses are sums, not means: 40 times the usual size from the first step on; the rate fits them."""
    return {k: v * 40.0 for k, v in terms.items()}


def sums(scene: Scene) -> None:
    """`summed` at a rate that fits it."""
    losses(summed)(scene)
    scene.lr /= 40


def late_term(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A new term sets in at step 9."""
    extra = 0.1 * model.roi_heads.box_predictor.cls_score.weight.square().mean()
    return {**terms, "loss_extra": extra} if scene.step >= 9 else terms


def small_spikes(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Every fifth step is six times as loud."""
    return {k: v * (6.0 if scene.step % 5 == 4 else 1.0) for k, v in terms.items()}


def causal_mask(scene: Scene) -> None:
    """A buffer of -1e9 by design, as attention has it."""
    scene.model.register_buffer("causal", torch.triu(torch.full((8, 8), -1e9), 1))


def averaged(live: Live) -> None:
    """Somebody moves one weight a little: an average, a clamp."""
    live.parameter("roi_heads.box_head.fc6.weight").data.mul_(0.9995)


def frozen_stage(scene: Scene) -> None:
    """The first stage is frozen on purpose."""
    for p in scene.model.backbone.body["layer1"].parameters():  # type: ignore[union-attr, index]
        p.requires_grad_(False)


def dropout(scene: Scene) -> None:
    """Dropout in the box head."""
    head = scene.model.roi_heads
    head.box_head = nn.Sequential(head.box_head, nn.Dropout(0.3))  # type: ignore[union-attr]


def one_class(scene: Scene) -> None:
    """Every object is of class 1."""
    for _, target in scene.samples:
        target["labels"].fill_(1)


def many_keys(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Targets with keys of their own: strings, None, nested."""
    return image, {**target, "file": "a.png", "weather": None, "size": {"h": 64}}


def without_ids(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """No image ids and no annotation ids."""
    return image, {k: v for k, v in target.items() if not k.endswith(("_id", "_ids"))}


def every(change: Callable[[Any, Any], tuple[Any, Any]]) -> Callable[[Scene], None]:
    """Every item handed out so."""
    return handed_out(change, every=True)


GROUP, BATCH, ADAM = Setup(norm="group"), Setup(norm="batch"), Setup(optimizer="adamw")
TWO, SINGLE, RETINA, FASTER = Setup(batch=2), Setup(batch=1), Setup(model="retina"), Setup(model="faster")
RATIOS = (0.5, 1.0, 2.0)
OWN_DECOYS = tuple(
    Scenario(f"decoy-{name}", "", source, fault, setup, decoy=True)
    for name, source, fault, setup in (
        ("batch-1", "causes.md, decoys", nothing, SINGLE),
        ("batch-2-group", "causes.md, decoys", nothing, Setup(batch=2, norm="group")),
        ("batch-2-norm", "causes.md, decoys", nothing, Setup(batch=2, norm="batch")),
        ("retina", "causes.md, decoys", nothing, RETINA),
        ("retina-adamw-group", "causes.md, decoys", nothing, Setup("adamw", norm="group", model="retina")),
        ("faster", "causes.md, decoys", nothing, FASTER),
        ("scratch-group-brisk", "causes.md, decoys", rates(0.06, clip=10), GROUP),
        ("scratch-batch-brisk", "causes.md, decoys", rates(0.06, clip=10), BATCH),
        ("curriculum", "causes.md, decoys", losses(curriculum), Setup()),
        ("summed-losses", "causes.md, decoys", sums, Setup()),
        ("late-term", "causes.md, decoys", losses(late_term), ADAM),
        ("small-spikes", "causes.md, decoys", losses(small_spikes), GROUP),
        ("causal-mask", "causes.md, decoys", causal_mask, Setup()),
        ("gradient-hooks", "causes.md, decoys", hooked(nothing), Setup()),
        ("patched-forward", "causes.md, decoys", patched(nothing), BATCH),
        ("averaged-outside", "causes.md, decoys", between(10, averaged), Setup()),
        ("frozen-stage", "causes.md, decoys", frozen_stage, GROUP),
        ("dropout", "causes.md, decoys", dropout, Setup()),
        ("one-class", "causes.md, decoys", one_class, TWO),
        ("masks-bool", "causes.md, decoys", every(entry("masks", Tensor.bool)), Setup()),
        ("boxes-integer", "causes.md, decoys", every(entry("boxes", Tensor.long)), BATCH),
        ("id-tensor", "causes.md, decoys", every(entry("image_id", lambda v: torch.tensor([v]))), ADAM),
        ("image-bytes", "causes.md, decoys", every(picture(lambda v: (v * 255).to(torch.uint8))), Setup()),
        ("many-keys", "causes.md, decoys", every(many_keys), TWO),
        ("without-ids", "causes.md, decoys", every(without_ids), BATCH),
        ("huge-anchors", "causes.md, decoys", levels("mask", ((16,), (5000,)), (RATIOS,) * 2), Setup()),
    )
)
