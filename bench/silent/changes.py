"""What faulty data sets do with a sample, and what honest ones do that only look faulty."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor

from silent.scene import HEIGHT, WIDTH, Change, Scene, Target

SIZES = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT], dtype=torch.float32)


def edit(**changes: Any) -> Change:
    """A change of the image or of single entries of the target."""

    def change(image: Tensor, target: Target) -> tuple[Tensor, Target]:
        image = changes["image"](image) if "image" in changes else image
        return image, target | {k: f(target[k]) for k, f in changes.items() if k != "image"}

    return change


def flipped(axis: int) -> Change:
    """Every second image mirrored with its boxes and not its masks. ``axis`` 0: left to right, 1: top to bottom."""

    def change(image: Tensor, target: Target) -> tuple[Tensor, Target]:
        if not target["image_id"] % 2:
            return image, target
        boxes, side = target["boxes"].clone(), (WIDTH, HEIGHT)[axis]
        boxes[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
        return image.flip(-1 - axis), target | {"boxes": boxes}

    return change


def shuffled(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Masks in another order than boxes, as after a filter of one of the two lists."""
    return image, target | {"masks": target["masks"].roll(1, 0)}


def half_empty(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    masks = target["masks"].clone()
    masks[::2] = 0
    return image, target | {"masks": masks}


def amodal(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Every third box reaches beyond its mask: a part of the object is hidden."""
    grown = torch.cat([target["boxes"][:, :2] - 8, target["boxes"][:, 2:] + 8], 1).clamp(min=0)
    some = torch.arange(len(grown))[:, None] % 3 == 0
    return image, target | {"boxes": torch.where(some, torch.minimum(grown, SIZES), target["boxes"])}


def noisy(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """A fifth of the labels are wrong."""
    wrong = torch.rand(len(target["labels"]), generator=torch.Generator().manual_seed(target["image_id"])) < 0.2
    return image, target | {"labels": torch.where(wrong, 3 - target["labels"], target["labels"])}


def thin(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Diagonals one pixel wide in boxes that fit them."""
    masks, boxes = torch.zeros_like(target["masks"]), target["boxes"]
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.int().tolist(), strict=True):
        n = max(x1 - x0, y1 - y0)
        t = torch.arange(n + 1) / n
        mask[(y0 + t * (y1 - 1 - y0)).long(), (x0 + t * (x1 - 1 - x0)).long()] = 1
    return image, target | {"masks": masks}


def alone(axis: int, every: int = 1) -> Change:
    """The picture mirrored, boxes and masks not. ``axis`` -1: left to right; of each ``every``-th picture."""
    return lambda image, t: (image.flip(axis) if t["image_id"] % every == 0 else image, t)


def shrunk(image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Boxes and masks of the picture at half its size."""
    masks = torch.zeros_like(target["masks"])
    small = target["masks"][:, ::2, ::2]
    masks[:, : small.shape[1], : small.shape[2]] = small
    return image, target | {"boxes": target["boxes"] / 2, "masks": masks}


class Paired(Scene):
    """Pictures with the targets of another item: ``step`` places on, or, at 0, in no order."""

    def __init__(self, step: int, count: int = 24) -> None:
        super().__init__(count)
        self.step = step

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        other = (i + self.step) if self.step else 7 * i + 3
        image, target = self.plain(i)
        return image, self.plain(other % self.count)[1] | {"image_id": target["image_id"]}


def drop(*names: str) -> Change:
    """Targets without some entries."""
    return lambda image, target: (image, {k: v for k, v in target.items() if k not in names})


class Drawing(Scene):
    """Random brightness from ``how``: a generator of its own, a global one that it seeds, a global one, or none."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.own = how, np.random.default_rng(0)

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        image, target = self.plain(i)
        if self.how == "own":
            return image * float(self.own.uniform(0.5, 1)), target
        if self.how == "torch seeded":
            torch.manual_seed(7)
            return image * float(torch.rand(1)), target
        if self.how == "numpy seeded":
            np.random.seed(i)
            return image * float(np.random.uniform(0.5, 1)), target
        if self.how == "seeded":
            random.seed(i)
        return (image * random.uniform(0.5, 1) if self.how != "none" else image), target


FAULTS: dict[str, tuple[Change, str, str]] = {
    "labels from 0": (edit(labels=lambda v: v - 1), "CLASSES", "from zero"),
    "one label too many": (edit(labels=lambda v: v + 1), "CLASSES", "too few"),
    "boxes as sizes": (
        edit(boxes=lambda v: torch.cat([v[:, :2], v[:, 2:] - v[:, :2]], 1)),
        *("GEOMETRY", "boxes as x, y, width, height"),
    ),
    "corners taken for sizes": (
        edit(boxes=lambda v: torch.cat([v[:, :2], v[:, 2:] + v[:, :2]], 1)),
        *("GEOMETRY", "boxes as corners"),
    ),
    "centre and size": (
        edit(boxes=lambda v: torch.cat([(v[:, :2] + v[:, 2:]) / 2, v[:, 2:] - v[:, :2]], 1)),
        *("GEOMETRY", "boxes as centre and size"),
    ),
    "x and y of boxes": (edit(boxes=lambda v: v[:, [1, 0, 3, 2]]), "GEOMETRY", "x and y of boxes exchanged"),
    "rows and columns": (
        edit(masks=lambda v: v.transpose(1, 2).reshape(len(v), HEIGHT, WIDTH)),
        *("GEOMETRY", "masks counted along rows"),
    ),
    "masks not flipped": (flipped(0), "GEOMETRY", "masks mirrored left to right"),
    "masks not turned": (flipped(1), "GEOMETRY", "masks mirrored top to bottom"),
    "masks upside down": (edit(masks=lambda v: v.flip(1)), "GEOMETRY", "masks mirrored top to bottom"),
    "shares of the image": (edit(boxes=lambda v: v / SIZES), "GEOMETRY", "boxes 0..1"),
    "boxes not resized": (edit(boxes=lambda v: v * 2.5), "GEOMETRY", "boxes of another image size"),
    "masks moved": (
        edit(masks=lambda v: torch.nn.functional.pad(v, (10, -10, 6, -6))),
        *("GEOMETRY", "masks moved"),
    ),
    "masks of other objects": (shuffled, "GEOMETRY", "disagree"),
    "masks empty": (edit(masks=lambda v: v * 0), "NO_TARGETS", "mask not empty"),
    "every second mask empty": (half_empty, "NO_TARGETS", "mask not empty"),
    "normalised": (edit(image=lambda v: (v - 0.45) / 0.225), "PIXELS", "normalised twice"),
    "not scaled": (edit(image=lambda v: v * 255), "PIXELS", "not scaled"),
    "bytes": (edit(image=lambda v: (v * 255).to(torch.uint8)), "PIXELS", "not scaled"),
    "scaled twice": (edit(image=lambda v: v / 255), "PIXELS", "scaled twice"),
    "two scales": (lambda i, t: (i * 255 if t["image_id"] % 3 == 0 else i, t), "PIXELS", "two scales"),
    "picture mirrored alone": (alone(-1), "GEOMETRY", "picture mirrored left to right"),
    "picture upside down alone": (alone(-2), "GEOMETRY", "picture mirrored top to bottom"),
    "half of the pictures mirrored alone": (alone(-1, 2), "GEOMETRY", "part mirrored left to right"),
    "targets of the picture at half size": (shrunk, "GEOMETRY", "picture scaled by about 2"),
    "black": (edit(image=lambda v: v * 0), "PIXELS", "constant"),
}
"""Name → (what is done, code, kind of finding)."""

HONEST: dict[str, Scene] = {
    "as it is": Scene(),
    "one class": Scene(classes=1),
    "one image": Scene(count=1),
    "most images empty": Scene(objects=lambda i: 3 if i % 10 == 0 else 0, count=60),
    "tiny objects": Scene(sides=(2, 4)),
    "one object fills each image": Scene(objects=1, sides=(62, 94)),
    "120 objects an image": Scene(objects=120, sides=(3, 8), count=8),
    "boxes wider than masks": Scene(change=amodal),
    "boxes padded by 2 pixels": Scene(change=edit(boxes=lambda v: v + torch.tensor([-2.0, -2, 2, 2]))),
    "thin diagonals": Scene(change=thin),
    "grey pictures": Scene(change=edit(image=lambda v: v.mean(0, keepdim=True).expand(3, -1, -1))),
    "dark pictures": Scene(change=edit(image=lambda v: v * 0.03)),
    "two levels": Scene(change=edit(image=lambda v: (v > 0.4).float())),
    "a black picture now and then": Scene(change=lambda i, t: (i * 0 if t["image_id"] % 7 == 0 else i, t)),
    "label noise of 20 %": Scene(change=noisy),
    "interpolation beyond 0..1": Scene(change=edit(image=lambda v: v * 1.05 - 0.02)),
    "masks of bool": Scene(change=edit(masks=lambda v: v.bool())),
    "square images of round objects": Scene(size=(80, 80)),
    "no masks": Scene(change=drop("masks")),
    "panoramas 10 : 1": Scene(size=(32, 320), sides=(8, 20)),
}
"""Honest, but odd."""
