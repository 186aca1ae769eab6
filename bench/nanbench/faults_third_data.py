"""Data that is wrong only at a scale, an epoch or a type: wrapped integers, bytes in another order, caches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from nanbench.faults_forms import Change, entry, handed_out, picture
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN = float("nan")
ONE = Culprit(image=True)
BOX, LABEL, MASK, PIXEL = "DATA_BOX", "DATA_LABEL", "DATA_MASK", "DATA_PIXEL"
OWN_DATA = "pytorch/vision, own data sets"


def at_draw(change: Change, spoiled: Callable[[int], bool]) -> Callable[[Scene], None]:
    """The bad item is as ``change`` leaves it where ``spoiled`` says so of the step under way."""

    def fault(scene: Scene) -> None:
        def draw(index: int) -> Any:
            image, target = scene.samples[index]
            pair = image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
            return change(*pair) if index == scene.culprit and spoiled(scene.step) else pair

        scene.draw = draw

    return fault


def rounded(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """At the small scale corners are rounded to 32 pixels, as masks of a coarse grid are: some boxes are flat."""
    boxes = target["boxes"].clone()
    boxes[0] = (torch.tensor([33.0, 4.0, 45.0, 40.0]) / 32).floor() * 32
    return image, {**target, "boxes": boxes}


def swapped_bytes(image: Tensor) -> Tensor:
    """float32 of the other byte order: from 1e-40 to 1e38."""
    return torch.from_numpy(image.numpy().byteswap().copy())


def cached_corners(scene: Scene) -> None:
    """One annotation stands as xyxy already and is kept in memory: each draw takes its corner off in place."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        if index == scene.culprit:
            target["boxes"][:, 2:] -= target["boxes"][:, :2]
            target["boxes"][:, :2] += 1
        return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

    scene.samples[scene.culprit][1]["boxes"][0] = torch.tensor([4.0, 4.0, 30.0, 30.0])
    scene.draw = draw


def wrapped(labels: Tensor) -> Tensor:
    """Bytes that count down below zero, and are made long afterwards."""
    return (labels.to(torch.uint8) - 4).long()


def thin_double(boxes: Tensor) -> Tensor:
    """float64 corners that differ by less than float32 can hold."""
    boxes = boxes.double()
    boxes[0, 2] = boxes[0, 0] + 1e-9
    return boxes


def thin_bfloat(boxes: Tensor) -> Tensor:
    """Corners that are one number in bfloat16."""
    boxes = boxes.clone()
    boxes[0] = torch.tensor([40.0, 8.0, 40.05, 30.0])
    return boxes.bfloat16()


def as_xywh(boxes: Tensor) -> Any:
    """torchvision's own type, which says that these are corner and size."""
    boxes = boxes.clone()
    boxes[:, 2:] -= boxes[:, :2]
    boxes[0] = torch.tensor([40.0, 30.0, 12.0, 14.0])
    return tv_tensors.BoundingBoxes(boxes, format="XYWH", canvas_size=(64, 64))  # type: ignore[call-overload]


def bad_points(change: Callable[[Tensor], Tensor]) -> Callable[[Scene], None]:
    """The keypoints of one image."""
    return handed_out(entry("keypoints", change))


def nan_pixels(image: Tensor) -> Tensor:
    """A column without numbers."""
    return image.index_fill(2, torch.tensor([9]), NAN)


def past(labels: Tensor) -> Tensor:
    """Class ids of another list."""
    return labels + 30


def from_second_epoch(step: int) -> bool:
    """Steps of the second, third and fourth epoch."""
    return step >= 6


THIRD_DATA: tuple[Scenario, ...] = (
    Scenario("third-one-scale", BOX, "pytorch/vision#2235",
             at_draw(rounded, lambda step: step // 6 % 2 == 1), Setup(model="retina"), ONE),
    Scenario("third-classes-change", LABEL, OWN_DATA, at_draw(entry("labels", past), from_second_epoch),
             Setup(norm="group", way="guard"), ONE),
    Scenario("third-labels-wrapped", LABEL, OWN_DATA, handed_out(entry("labels", wrapped)),
             Setup(model="fcos", way="guard"), ONE),
    Scenario("third-masks-warped", MASK, OWN_DATA,
             handed_out(entry("masks", lambda v: v.float().masked_fill(v > 0, NAN))), Setup(way="guard"), ONE),
    Scenario("third-byte-order", PIXEL, OWN_DATA, handed_out(picture(swapped_bytes)), Setup(norm="group"), ONE),
    Scenario("third-cached-corners", BOX, OWN_DATA, cached_corners, Setup(model="faster"), ONE),
    Scenario("third-thin-double", BOX, OWN_DATA, handed_out(entry("boxes", thin_double)), Setup("adamw"), ONE),
    Scenario("third-thin-bfloat", BOX, OWN_DATA, handed_out(entry("boxes", thin_bfloat)), Setup(model="faster"), ONE),
    Scenario("third-boxes-xywh", BOX, OWN_DATA, handed_out(entry("boxes", as_xywh)), Setup(batch=2), ONE),
    # There is no code of its own for keypoints.
    Scenario("third-points-short", BOX, "pytorch/vision#2144", bad_points(lambda v: v[:1]),
             Setup(model="keypoint", way="guard"), ONE, also=(MASK, "UNKNOWN")),
    Scenario("third-points-flat", BOX, "pytorch/vision#2144", bad_points(lambda v: v[..., :2]),
             Setup(model="keypoint"), ONE, also=(MASK, "UNKNOWN")),
    Scenario("third-image-sparse", PIXEL, OWN_DATA, handed_out(picture(Tensor.to_sparse)), Setup(), ONE),
    Scenario("third-image-meta", PIXEL, OWN_DATA, handed_out(picture(lambda v: v.to("meta"))),
             Setup(norm="batch"), ONE),
    Scenario("third-attach-part", PIXEL, "nan_cases R-D4", handed_out(picture(nan_pixels)),
             Setup(accumulate=4, way="attach"), ONE),
    # torchvision raises in a loop of somebody else's, which ends there: only the verdict is asked for.
    Scenario("third-attach-inverted", BOX, "pytorch/vision#997",
             handed_out(entry("boxes", lambda v: v[:, [2, 3, 0, 1]])), Setup(way="attach"), ONE, open_end=True),
)  # fmt: skip
