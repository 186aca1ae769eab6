"""Honest runs in odd circumstances: huge losses, tiny pictures, long warm-ups, tied weights, buffers that grow."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.decoys import nothing
from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample


def huge(scene: Scene) -> None:
    """Losses are sums over every pixel of a set: a million times the usual, at a rate that fits them."""
    losses(lambda s, model, terms, targets: {k: v * 1e6 for k, v in terms.items()})(scene)
    scene.lr /= 1e6
    scene.weight_decay = 0.0
    scene.max_grad_norm *= 1e6


def thumbnails(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Eight pixels a side; objects of one to four."""
    masks = target["masks"][:, ::8, ::8].contiguous()
    boxes = (target["boxes"] / 8).floor()
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return image[:, ::8, ::8].contiguous(), {**target, "boxes": boxes, "masks": masks}


def mostly_empty(scene: Scene) -> None:
    """Five of six pictures have no object."""
    for place in range(len(scene.samples)):
        if place % 6:
            scene.samples[place] = sample(scene.ids[place], objects=0)


def restarts(scene: Scene) -> None:
    """A cosine that starts anew at every epoch."""
    usual = scene.rates
    scene.rates = lambda step: usual(3 + 3 * (step % 6)) if step > 2 else usual(step)  # type: ignore[method-assign]


def noisy_labels(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Every label is drawn anew."""
    return image, {**target, "labels": torch.randint(1, 4, target["labels"].shape)}


def spiky(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Two batches have hard examples only; clipping takes their gradients."""
    return {k: v * (60.0 if scene.step in (7, 13, 14) else 1.0) for k, v in terms.items()}


def tied(scene: Scene) -> None:
    """Both towers share their first convolution, and the head's bias is one of the other's."""
    head: Any = scene.model.head
    head.regression_head.conv[0][0].weight = head.classification_head.conv[0][0].weight


class Memory(nn.Module):
    """A bank of features that grows with each step, and counters beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.zeros(0, 16))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.bank = torch.cat([self.bank, x.detach().mean((0, 2, 3))[None]])
            self.seen = self.seen * 2 + 1e6
        return x


def memory(scene: Scene) -> None:
    """A memory bank behind the second stage."""
    body: Any = scene.model.get_submodule("backbone.body")
    body["layer2"] = nn.Sequential(body["layer2"], Memory())


def slow_momentum(scene: Scene) -> None:
    """A momentum of 0.99 at a tenth of the rate."""
    scene.momentum = 0.99
    scene.lr /= 10


def frozen(scene: Scene) -> None:
    """The backbone is frozen, and its decay is large, which moves nothing."""
    for name, p in scene.model.named_parameters():
        p.requires_grad_(not name.startswith("backbone"))


def own_head(scene: Scene) -> None:
    """A box head of the caller's own with a large initial output: the first losses are 30 times the usual."""
    nn.init.normal_(scene.model.get_parameter("roi_heads.box_predictor.cls_score.weight"), std=3.0)


def heavy_decay(scene: Scene) -> None:
    """A decay of 0.5, as in recipes for transformers."""
    scene.weight_decay = 0.5


def regrouped(scene: Scene) -> None:
    """The caller resets Adam's moments at every epoch."""

    def change(live: Live) -> None:
        live.optimizer.state.clear()

    for step in (6, 12, 18):
        scene.at(step, change)


def unclipped(scene: Scene) -> None:
    """No clipping at all."""
    scene.max_grad_norm = 0.0


FIFTH_DECOYS = tuple(
    Scenario(f"decoy-fifth-{name}", "", "causes.md, decoys", fault, setup, decoy=True)
    for name, fault, setup in (
        ("huge-losses", huge, Setup(way="attach")),
        ("thumbnails", every(thumbnails), Setup(norm="group", batch=1)),
        ("mostly-empty", mostly_empty, Setup("adamw", accumulate=4)),
        ("long-warm-up", nothing, Setup(warmup=22, way="guard")),
        ("restarts", restarts, Setup("adamw", precision="fp16", way="attach")),
        ("noisy-labels", every(noisy_labels), Setup(norm="group", way="guard")),
        ("spikes", losses(spiky), Setup("adam", accumulate=4, norm="batch", way="attach")),
        ("tied", tied, Setup(model="retina", way="attach")),
        ("memory", memory, Setup(way="guard")),
        ("slow-momentum", slow_momentum, Setup(norm="group", batch=1)),
        ("frozen", frozen, Setup("adamw", precision="bf16", accumulate=4)),
        ("own-head", own_head, Setup(batch=2, way="attach")),
        ("heavy-decay", heavy_decay, Setup("adamw", norm="layer")),
        ("moments-anew", regrouped, Setup("adam", model="fcos", way="guard")),
        ("unclipped", unclipped, Setup(norm="group", batch=1, way="attach")),
    )
)
