"""Runs of the project's own trainer, a twelfth round: letterboxes, tiles, caches, merged sets, filters, layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanbench.faults_fifth_data import drawn
from nanbench.faults_forms import entry, picture
from nanbench.faults_fresh_data import broken_file
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN = float("nan")
ONE = Culprit(image=True)
BOX, LABEL, PIXEL, MASK = "DATA_BOX", "DATA_LABEL", "DATA_PIXEL", "DATA_MASK"
TORCH, VISION = "https://pytorch.org/docs/stable/", "https://pytorch.org/vision/stable/"


def letterboxed(boxes: Tensor) -> Tensor:
    """Boxes are taken out of a letterbox by a ratio of whole numbers, 64 // 100."""
    return boxes / (64 // 100)


def of_tile(boxes: Tensor) -> Tensor:
    """Boxes of the next tile are moved and cut off at the border: all that is left is a line there."""
    return (boxes + 70).clamp(max=64)


def halves(boxes: Tensor) -> Tensor:
    """Boxes of a large scan are kept in half precision, which ends at 65504, and scaled down when they are read."""
    return (boxes * 4000).half().float() / 4000


def jittered(boxes: Tensor) -> Tensor:
    """Noise on the corners, by the tangent of a turn that came close to a right angle."""
    return boxes * torch.tensor([1.0, 1.0, 1e20, 1e20])


def far_side(boxes: Tensor) -> Tensor:
    """Right and bottom are measured from the other side, as margins are."""
    return torch.cat([boxes[:, :2], 64 - boxes[:, 2:] - 64], 1)


BOXES = (
    Scenario("twelfth-box-letterbox", BOX, VISION + "transforms.html",
             drawn({0: entry("boxes", letterboxed)}), Setup("adamw", model="retina", batch=2), ONE),
    Scenario("twelfth-box-tile", BOX, "https://arxiv.org/abs/2202.06934",
             drawn({0: entry("boxes", of_tile), 8: entry("boxes", of_tile)}, lambda step: step >= 4),
             Setup(batch=2), ONE),
    Scenario("twelfth-box-halves", BOX, TORCH + "tensors.html",
             drawn({0: entry("boxes", halves), 11: entry("boxes", halves)}),
             Setup(model="faster", norm="group", batch=2), ONE),
    Scenario("twelfth-box-jitter", BOX, VISION + "transforms.html",
             drawn({0: entry("boxes", jittered)}, lambda step: step % 2 == 0), Setup("adamw", model="fcos", batch=2),
             ONE),
    Scenario("twelfth-box-margins", BOX, VISION + "generated/torchvision.ops.box_convert.html",
             drawn(dict.fromkeys((0, 4, 9), entry("boxes", far_side))), Setup("adamw", norm="group", batch=2), ONE),
)  # fmt: skip


def merged(labels: Tensor) -> Tensor:
    """Classes of a second set stand behind those of the first, whose head has no room for them."""
    return labels + 3


def small_numbers(labels: Tensor) -> Tensor:
    """Ids of 200 and more go through numbers of eight bits with a sign."""
    return (labels + 200).to(torch.int8).long()


def later_set(scene: Scene) -> None:
    """From step 10 on every picture comes from the second set, whose classes follow on the first's."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        if scene.active and scene.step >= 10:
            target["labels"] = target["labels"] + 3
        return image.clone(), target

    scene.draw = draw


LABELS = (
    Scenario("twelfth-label-merged", LABEL, TORCH + "data.html",
             drawn(dict.fromkeys((0, 2, 15), entry("labels", merged))), Setup("adamw", model="retina", batch=2), ONE),
    Scenario("twelfth-label-small-numbers", LABEL, TORCH + "tensors.html",
             drawn({0: entry("labels", small_numbers)}), Setup(norm="group", batch=1), ONE),
    Scenario("twelfth-label-later-set", LABEL, TORCH + "data.html", later_set, Setup(batch=2), onset=10,
             verdict=True),
)  # fmt: skip


def logarithms(image: Tensor) -> Tensor:
    """Decibels of a picture part of which is silent."""
    image[:, 10:20, 10:50] = 0.0
    return 1 + image.log10() / 5


def local_contrast(image: Tensor) -> Tensor:
    """Each place by the mean and deviation around it; where all is one colour there is none."""
    image[:, 30:50, 20:50] = 0.25
    mean = F.avg_pool2d(image[None], 5, 1, 2, count_include_pad=False)[0]
    square = F.avg_pool2d(image[None].square(), 5, 1, 2, count_include_pad=False)[0]
    return (image - mean) / (square - mean.square()).sqrt()


def nearness(image: Tensor) -> Tensor:
    """One over the depth, and no depth was measured at some places."""
    image[:, ::9, ::7] = 0.0
    return 0.1 / image


def canvas(image: Tensor) -> Tensor:
    """Padded in memory that nobody has written to."""
    left = torch.full((3, 64, 64), 0x7F7F7F7F, dtype=torch.int32).view(torch.float32)
    return torch.cat([image[:, :, :48], left[:, :, 48:]], 2)


def voltages(image: Tensor) -> Tensor:
    """Raw counts of a detector in place of shares of its full well."""
    return image * 2.0**24


def brighter_each_time(scene: Scene) -> None:
    """A set that is held in memory is made brighter in place, at each draw in training."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        if scene.active and scene.step >= 1:
            image.mul_(60.0)
        return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

    scene.draw = draw


def emptied(path: Any) -> None:
    """A disk that was full: the file is there, and has no bytes."""
    path.write_bytes(b"")


PIXELS = (
    Scenario("twelfth-pixel-decibels", PIXEL, TORCH + "generated/torch.log10.html",
             drawn({0: picture(logarithms), 7: picture(logarithms)}), Setup("adamw", model="fcos", batch=2), ONE),
    Scenario("twelfth-pixel-local-contrast", PIXEL, TORCH + "generated/torch.nn.LocalResponseNorm.html",
             drawn(dict.fromkeys((0, 10), picture(local_contrast)), lambda step: step >= 6),
             Setup(norm="batch", batch=2), ONE),
    Scenario("twelfth-pixel-nearness", PIXEL, "https://arxiv.org/abs/1806.01260", drawn({0: picture(nearness)}),
             Setup("adamw", model="keypoint", batch=2), ONE),
    Scenario("twelfth-pixel-canvas", PIXEL, TORCH + "generated/torch.empty.html",
             drawn({0: picture(canvas), 3: picture(canvas)}, lambda step: step % 3 == 0),
             Setup(model="faster", norm="group", batch=2), ONE),
    Scenario("twelfth-pixel-voltages", PIXEL, VISION + "transforms.html", drawn({0: picture(voltages)}),
             Setup("adamw", precision="bf16", batch=2), ONE),
    Scenario("twelfth-pixel-brighter", PIXEL, TORCH + "data.html", brighter_each_time,
             Setup("adamw"), onset=1, verdict=True),
    Scenario("twelfth-file-emptied", PIXEL, TORCH + "data.html", broken_file(emptied, 7), Setup(way="files"), ONE),
)  # fmt: skip


def layers(masks: Tensor) -> Tensor:
    """Anti-aliased layers of a drawing, added up in shares of 255."""
    soft = F.avg_pool2d(masks[:, None].float(), 5, 1, 2)[:, 0]
    return soft.sum(0, keepdim=True).expand_as(soft) * 255


def distances(masks: Tensor) -> Tensor:
    """How far a place is from the border, as watersheds want it, and minus that outside."""
    inside = masks.float()
    return 240 * F.avg_pool2d(inside[:, None], 15, 1, 7)[:, 0] - 120


MASKS = (
    Scenario("twelfth-mask-layers", MASK, VISION + "models/mask_rcnn.html", drawn({0: entry("masks", layers)}),
             Setup(norm="group", batch=2), ONE),
    Scenario("twelfth-mask-distances", MASK, VISION + "models/mask_rcnn.html",
             drawn(dict.fromkeys((0, 12), entry("masks", distances)), lambda step: step >= 5),
             Setup("adamw", batch=2), ONE),
)  # fmt: skip
TWELFTH_TRAIN_DATA: tuple[Scenario, ...] = (*BOXES, *LABELS, *PIXELS, *MASKS)
