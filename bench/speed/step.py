"""One training step against torchvision's reference recipe, side by side.

    python bench/speed/step.py [--threads 2 4] [--models resnet50 shapes] [--rounds 8]

The reference restates the loop of torchvision's detection references on released torchvision: SGD as torch makes it by
default, the loss read by the host and tested, no clipping. Every variant has the same weights, samplers, batch and
random numbers; the learning rate is so small that they stay the same, so each round is the same work.
"""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from typing import Any

import common
import numpy as np
import torch
from engine import LR, reference_optimizer, reference_update
from torch import Tensor, nn
from torchvision.models.detection import maskrcnn_resnet50_fpn

from maskrcnn_coco.data.outlines import Outlines
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.optim import apply_lr, build_optimizer
from maskrcnn_coco.system.precision import autocast, bf16_is_native

Batch = tuple[list[Tensor], list[dict[str, Any]]]
CLASSES = 4
MODELS = {"resnet50": (256, 2, 5), "shapes": (128, 4, 4)}
"""Name → side of the images, batch size, objects an image."""


def make_model(name: str) -> nn.Module:
    """The reference's network, random weights."""
    torch.manual_seed(0)
    size = MODELS[name][0]
    if name == "shapes":
        return small_model(size)
    return maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES, min_size=size, max_size=size)


def small_model(size: int) -> nn.Module:
    """The small network of the built-in shapes for images of ``size``, in torchvision's own modules."""
    torch.manual_seed(0)
    return build_model("maskrcnn_resnet18_fpn", CLASSES, small=True, min_size=size, max_size=size, fast=False)


def make_batch(size: int, images: int, objects: int) -> Batch:
    """Ellipses on noise. Targets have full-size masks, which torchvision takes, and outlines, which a run's have."""
    g = torch.Generator().manual_seed(0)
    ys, xs = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    pictures, targets = [], []
    for _ in range(images):
        center = size * (0.2 + 0.6 * torch.rand(objects, 2, generator=g))
        half = size * (0.05 + 0.15 * torch.rand(objects, 2, generator=g))
        picture = 0.3 * torch.rand(3, size, size, generator=g)
        colours = torch.rand(objects, 3, 1, 1, generator=g)
        masks = torch.zeros(objects, size, size, dtype=torch.uint8)
        for n in range(objects):
            unit = (torch.stack((xs, ys), -1) - center[n]) / half[n]
            masks[n] = (unit.square().sum(-1) <= 1).to(torch.uint8)
            picture = torch.maximum(picture, 0.6 * colours[n] * masks[n])
        boxes = torch.cat((center - half, center + half), 1).clamp(0, size)
        labels = torch.randint(1, CLASSES, (objects,), generator=g)
        pictures.append(picture.clamp(0, 1))
        outlines = Outlines.of([[p] for p in _ellipses(center.numpy(), half.numpy())], (size, size))
        targets.append({"boxes": boxes, "labels": labels, "masks": masks, "outlines": outlines})
    return pictures, targets


def only(batch: Batch, kind: str) -> Batch:
    """The batch with its objects as ``kind``, "masks" or "outlines", alone: neither side pays for the other's."""
    other = {"masks": "outlines", "outlines": "masks"}[kind]
    return batch[0], [{k: v for k, v in t.items() if k != other} for t in batch[1]]


def _ellipses(centers: np.ndarray, halves: np.ndarray) -> list[np.ndarray]:
    """Their outlines, 24 points each."""
    angles = np.linspace(0, 2 * math.pi, 24, endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return [(c + h * circle).astype(np.float64) for c, h in zip(centers, halves, strict=True)]


def reference_step(net: nn.Module, batch: Batch) -> Callable[[int], None]:
    """torchvision's references/detection/engine.py, one iteration, without logging."""
    optimizer = reference_optimizer(net)

    def step(seed: int) -> None:
        torch.manual_seed(seed)
        reference_update(optimizer, net(*batch))

    return step


def own_step(net: nn.Module, batch: Batch, precision: str, *, guarded: bool) -> Callable[[int], None]:
    """This project's step: fused optimizer; with the guard (which clips) or the same bare loop as the reference."""
    optimizer = build_optimizer(net)
    apply_lr(optimizer, {"backbone": LR})
    guard = Guard(net, optimizer)

    def forward(pair: Batch) -> dict[str, Tensor]:
        with autocast(precision, "cpu"):
            losses = net(*pair)
        return {name: value.float() for name, value in losses.items()}

    def step(seed: int) -> None:
        torch.manual_seed(seed)
        if guarded:
            assert guard.step(forward, batch).applied
            return
        reference_update(optimizer, forward(batch))

    return step


def variants(name: str) -> dict[str, Callable[[int], None]]:
    """Reference first, then one lever more in each row."""
    net = make_model(name).train()
    batch = make_batch(*MODELS[name])

    def copied(fast: bool = True, channels_last: bool = True) -> nn.Module:
        own = copy.deepcopy(net)
        return accelerate(own, channels_last=channels_last) if fast else own

    rows = {
        "torchvision's reference": reference_step(net, batch),
        "fused optimizer": own_step(copied(fast=False), batch, "fp32", guarded=False),
        "+ accelerate, targets from outlines": own_step(copied(channels_last=False), batch, "fp32", guarded=False),
        "+ channels-last (float32 default)": own_step(copied(), batch, "fp32", guarded=False),
        "+ guard and clipping": own_step(copied(), batch, "fp32", guarded=True),
    }
    if bf16_is_native("cpu"):
        rows["bf16 on the reference alone"] = own_step(copied(fast=False), batch, "bf16", guarded=False)
        rows["accelerate, channels-last, bf16"] = own_step(copied(), batch, "bf16", guarded=False)
        rows["+ guard and clipping (bf16 default)"] = own_step(copied(), batch, "bf16", guarded=True)
    return rows


def main() -> None:
    """Measure every model at every thread count, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    parts = [
        "`python bench/speed/step.py`: forward, backward and update of one batch, in one process. Variants take turns "
        f"within each of {args.rounds} rounds; a ratio is the median over rounds, quartiles in brackets. CPU time is "
        "the process's, over all its threads; it is the steadier one where other programs run."
    ]
    for name in args.models:
        size, images, objects = MODELS[name]
        for threads in args.threads:
            torch.set_num_threads(threads)
            times = common.take_turns(variants(name), args.rounds)
            title = f"## {name}, {size} px, batch {images}, {objects} objects an image, {threads} threads"
            parts.append(f"{title}\n\n{common.table(times, next(iter(times)))}")
            print(parts[-1], flush=True)
    print(common.write("step", "One training step against torchvision's reference", parts))


if __name__ == "__main__":
    main()
