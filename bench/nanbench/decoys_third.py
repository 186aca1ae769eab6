"""Honest and loud: mixed images, hundreds of objects, thawing, averages, schedules that climb; nothing is wrong."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torchvision import tv_tensors

from nanbench.decoys_own import every
from nanbench.faults_code import Losses, losses
from nanbench.faults_lr import rates
from nanbench.faults_third import requires_grad
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample


def mixed_up(scene: Scene) -> None:
    """Each image is mixed with another one, and has the objects of both."""

    def draw(index: int) -> Any:
        (a, first), (b, second) = scene.samples[index], scene.samples[(index * 7 + 3) % 24]
        keys = ("boxes", "labels", "masks", "annotation_ids")
        both = {k: torch.cat([first[k], second[k]]) for k in keys}
        return 0.6 * a + 0.4 * b, {**both, "image_id": first["image_id"]}

    scene.draw = draw


def crowded(scene: Scene) -> None:
    """One image has three hundred objects."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=300)


def large(scene: Scene) -> None:
    """One image is sixteen times as large as the others."""
    image, target = scene.samples[scene.culprit]
    more = {k: target[k].repeat_interleave(16, -1).repeat_interleave(16, -2) for k in ("masks",)}
    wide = image.repeat_interleave(16, -1).repeat_interleave(16, -2)
    scene.samples[scene.culprit] = wide, {**target, **more, "boxes": target["boxes"] * 16}


def climbing(scene: Scene) -> None:
    """One cycle: from a tenth of the rate to three times and down to nothing."""
    for step in range(24):
        share = 0.1 + 2.9 * step / 8 if step <= 8 else 3 * (24 - step) / 16

        def change(live: Live, rate: float = 0.03 * share) -> None:
            for group in live.optimizer.param_groups:
                group["lr"] = rate

        scene.at(step, change)


def thawing(scene: Scene) -> None:
    """The backbone is frozen at first and trained from step 12 on."""
    scene.at(0, lambda live: requires_grad(live.model, False))
    scene.at(12, lambda live: requires_grad(live.model, True))


def noise(scene: Scene) -> None:
    """Six images of mere noise, as hard as they come, with objects that cannot be seen."""
    for i in range(0, 24, 4):
        g = torch.Generator().manual_seed(i)
        scene.samples[i][0].copy_(torch.rand(3, 64, 64, generator=g))


def nothing_to_find(scene: Scene) -> None:
    """Five of six images show nothing."""
    for i in range(24):
        if i % 6:
            scene.samples[i] = sample(scene.ids[i], objects=0)


def own_types(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """torchvision's own types."""
    boxes = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=(64, 64))  # type: ignore[call-overload]
    return tv_tensors.Image(image), {**target, "boxes": boxes, "masks": tv_tensors.Mask(target["masks"])}


def thrifty(scene: Scene) -> None:
    """Channels-last weights, a stage that is computed again, two towers with one weight."""
    scene.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    stage: Any = scene.model.get_submodule("backbone.body.layer3")
    forward = stage.forward
    stage.forward = lambda x: checkpoint(forward, x, use_reentrant=False)
    head: Any = scene.model.head
    head.regression_head.conv[0][0].weight = head.classification_head.conv[0][0].weight


def now_and_then(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A term that only batches with a certain class have."""
    seen = any(bool((t["labels"] == 2).all()) for t in targets if len(t["labels"]))
    weight = model.roi_heads.box_predictor.cls_score.weight
    return {**terms, "loss_rare": weight.square().mean() * 40} if seen else terms


def averaged(scene: Scene) -> None:
    """The mean of the last weights is copied back at step 18."""
    seen: list[dict[str, Tensor]] = []
    for step in range(13, 18):
        scene.at(step, lambda live: seen.append({n: p.detach().clone() for n, p in live.model.named_parameters()}))

    def back(live: Live) -> None:
        for name, p in live.model.named_parameters():
            p.data.copy_(torch.stack([s[name] for s in seen]).mean(0))

    scene.at(18, back)


def validates(scene: Scene) -> None:
    """Every six steps the loop validates in evaluation mode, and trains on."""

    def change(live: Live) -> None:
        live.model.eval()
        with torch.no_grad():
            live.model([i.clone() for i, _ in scene.held_out[:4]])
        live.model.train()

    for step in (6, 12, 18):
        scene.at(step, change)


def sizes(scene: Scene) -> None:
    """Each draw has another size."""
    g = random.Random(scene.seed)

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        size = g.choice((40, 64, 96, 160))
        whole = nn.functional.interpolate(image[None], size=(size, size))[0]
        masks = nn.functional.interpolate(target["masks"][None].float(), size=(size, size))[0].byte()
        return whole, {**target, "boxes": target["boxes"] * (size / 64), "masks": masks}

    scene.draw = draw


GUARD, ATTACH, BATCH = Setup(way="guard"), Setup(way="attach"), Setup(norm="batch")
THIRD_DECOYS = tuple(
    Scenario(f"decoy-third-{name}", "", "causes.md, decoys", fault, setup, decoy=True)
    for name, fault, setup in (
        ("mixed-up", mixed_up, Setup()),
        ("crowded", crowded, ATTACH),
        ("large", large, Setup(model="faster")),
        ("climbing", climbing, ATTACH),
        ("thawing", thawing, GUARD),
        ("high-rate", rates(0.12, clip=10.0, warmup=0), Setup(norm="batch", way="attach")),
        ("noise", noise, Setup(batch=2, way="guard")),
        ("nothing-to-find", nothing_to_find, Setup(precision="fp16", way="attach")),
        ("own-types", every(own_types), Setup(batch=2)),
        ("thrifty", thrifty, Setup("adamw", model="retina")),
        ("now-and-then", losses(now_and_then), Setup(norm="group")),
        ("averaged", averaged, GUARD),
        ("validates", validates, Setup(norm="batch", way="guard")),
        ("sizes", sizes, Setup(model="fcos")),
    )
)
