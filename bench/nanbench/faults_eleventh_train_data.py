"""Runs of the project's own trainer, an eleventh round: turned, encoded, tracked, stretched and erased data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nanbench.faults_fifth_data import drawn
from nanbench.faults_forms import entry, picture
from nanbench.faults_fresh_data import broken_file
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN = float("nan")
ONE = Culprit(image=True)
BOX, LABEL, PIXEL, MASK = "DATA_BOX", "DATA_LABEL", "DATA_PIXEL", "DATA_MASK"
GITHUB = "https://github.com/"


def turned(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A quarter turn that turns corners, and leaves them in their old order."""
    x1, y1, x2, y2 = target["boxes"].unbind(1)
    boxes = torch.stack([y1, 64 - x1, y2, 64 - x2], 1)
    return torch.rot90(image, 1, (1, 2)), {**target, "boxes": boxes, "masks": torch.rot90(target["masks"], 1, (1, 2))}


def encoded(boxes: Tensor) -> Tensor:
    """Boxes as a head's answers: middle, and the logarithms of the sides."""
    sides = boxes[:, 2:] - boxes[:, :2]
    return torch.cat([boxes[:, :2] + sides / 2, sides.log()], 1)


def track(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Boxes between two key frames of a track; where both are one frame, how far along it is is 0 / 0."""
    boxes, first, last = target["boxes"], torch.tensor([10.0, 12.0]), torch.tensor([20.0, 12.0])
    along = ((12.0 - first) / (last - first))[: len(boxes), None]
    return image, {**target, "boxes": boxes + along * torch.tensor([0.0, 0.0, 2.0, 2.0])}


def middles(scene: Scene) -> None:
    """From step 12 on another reader gives middles and sides for all pictures."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        boxes = target["boxes"]
        if scene.active and scene.step >= 12:
            target["boxes"] = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
        return image.clone(), target

    scene.draw = draw


def two_digits(labels: Tensor) -> Tensor:
    """A class and its kind in one number."""
    return labels * 10 + 1


def counts_up(scene: Scene) -> None:
    """A set that is kept in memory adds 1 for the background at each draw in training, in place."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        given = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        if scene.active and scene.step >= 1:
            target["labels"].add_(1)
        return image.clone(), given

    scene.draw = draw


def radiance(image: Tensor) -> Tensor:
    """Linear light of a picture with the sun in it."""
    light = image * 3e4
    light[:, :12, :12] = 5e6
    return light


def homography(image: Tensor) -> Tensor:
    """A perspective whose horizon is within the picture: places on it are divided by 0."""
    away = torch.linspace(-1, 1, 65)[:64]
    grid = torch.stack(torch.meshgrid(away, away, indexing="xy"), -1)
    depth = grid[..., 1:].clone()  # 0 in the middle
    grid = grid * depth / depth
    return torch.where(grid.isnan().any(-1), image * NAN, image)


def hue(image: Tensor) -> Tensor:
    """Hue in place of red: of a grey place it is 0 / 0."""
    image[:, 20:40, 10:30] = 0.5
    low, high = image.amin(0), image.amax(0)
    image[0] = ((image[1] - image[2]) / (high - low)) / 6
    return image


def erased(image: Tensor) -> Tensor:
    """Erased squares are filled with 255, in a picture between 0 and 1."""
    image[:, 8:56, 4:60] = 255.0
    return image


def stretched(image: Tensor) -> Tensor:
    """Between the second and the 98th percentile; of an almost blank picture that is no range, plus 1e-9."""
    blank = torch.full_like(image, 0.2)
    blank[:, 28:33, 28:33] = image[:, 28:33, 28:33] + 0.5
    low, high = blank.flatten().quantile(0.02), blank.flatten().quantile(0.98)
    return (blank - low) / (high - low + 1e-9)


def run_lengths(masks: Tensor) -> Tensor:
    """Runs of ones and zeros that are added up where they should take turns."""
    return masks.flatten(1).int().cumsum(1).view_as(masks)


def weights_of_borders(masks: Tensor) -> Tensor:
    """Weights of the borders between objects, as a U-Net has them beside its masks."""
    return 1 + 10 * masks.float().flip(2) + 4 * masks.float()


def zeros(path: Any) -> None:
    """A power failure: the right length, and nothing in it."""
    path.write_bytes(bytes(path.stat().st_size))


def bomb(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A picture that its reader thinks too large to be true."""
    from PIL import Image

    raise Image.DecompressionBombError("Image size (324000000 pixels) exceeds limit of 178956970 pixels")


def refused(scene: Scene) -> None:
    """Two items never come, and so have no id but their position."""
    drawn({0: bomb, 9: bomb})(scene)
    for place in (scene.culprit, *scene.also_bad):
        scene.ids[place] = place


BOXES = (
    Scenario("eleventh-box-turned", BOX, GITHUB + "facebookresearch/maskrcnn-benchmark/pull/890",
             drawn(dict.fromkeys((0, 5, 11), turned), lambda step: step % 3 != 1),
             Setup(norm="group", batch=2), ONE),
    Scenario("eleventh-box-encoded", BOX, GITHUB + "facebookresearch/detr/issues/28",
             drawn({0: entry("boxes", encoded)}), Setup("adamw", model="keypoint", batch=1), ONE),
    Scenario("eleventh-box-track", BOX, GITHUB + "facebookresearch/detectron2/issues/4334",
             drawn({0: track, 13: track}, lambda step: step >= 9), Setup("lion", model="fcos", batch=2), ONE),
    Scenario("eleventh-box-middles-later", BOX, GITHUB + "rwightman/efficientdet-pytorch/pull/186", middles,
             Setup("adam", model="retina", batch=2), onset=12, verdict=True),
)  # fmt: skip
LABELS = (
    Scenario("eleventh-label-two-digits", LABEL, GITHUB + "facebookresearch/maskrcnn-benchmark/issues/521",
             drawn(dict.fromkeys((0, 3, 16), entry("labels", two_digits))),
             Setup(model="faster", norm="batch", batch=2), ONE),
    Scenario("eleventh-label-counts-up", LABEL, GITHUB + "pytorch/vision/issues/2144", counts_up,
             Setup("adamw", model="fcos"), onset=6, verdict=True),
)  # fmt: skip
PIXELS = (
    Scenario("eleventh-pixel-radiance", PIXEL, GITHUB + "albumentations-team/albumentations/issues/1758",
             drawn({0: picture(radiance), 10: picture(radiance)}), Setup(model="faster", batch=2), ONE),
    Scenario("eleventh-pixel-homography", PIXEL, "https://kornia.readthedocs.io/en/latest/geometry.transform.html",
             drawn(dict.fromkeys((0, 6, 7), picture(homography)), lambda step: step % 2 == 1),
             Setup(model="keypoint", precision="bf16", batch=2), ONE),
    Scenario("eleventh-pixel-hue", PIXEL, "https://kornia.readthedocs.io/en/latest/color.html",
             drawn({0: picture(hue)}), Setup("adamax", model="retina", norm="batch", batch=2), ONE),
    Scenario("eleventh-pixel-erased", PIXEL, GITHUB + "albumentations-team/AlbumentationsX/issues/123",
             drawn(dict.fromkeys((0, 4, 8, 12), picture(erased))), Setup(batch=2), ONE),
    Scenario("eleventh-pixel-stretched", PIXEL, GITHUB + "albumentations-team/albumentations/pull/1757",
             drawn({0: picture(stretched)}), Setup("adamw", model="faster", batch=1), ONE),
    # What a reader raises says nothing of the kind: any word for data is right that names the pictures.
    Scenario("eleventh-pixel-bomb", PIXEL, "https://pillow.readthedocs.io/en/stable/reference/Image.html", refused,
             Setup("adamw", model="faster"), ONE, also=(BOX, "UNKNOWN")),
    Scenario("eleventh-file-zeros", PIXEL, GITHUB + "tensorflow/tensorflow/issues/22497", broken_file(zeros, 6),
             Setup("adamw", way="files"), ONE),
)  # fmt: skip
MASKS = (
    Scenario("eleventh-mask-run-lengths", MASK,
             GITHUB + "cocodataset/cocoapi/blob/master/PythonAPI/pycocotools/mask.py",
             drawn({0: entry("masks", run_lengths), 15: entry("masks", run_lengths)}),
             Setup("adamw", norm="group", batch=1), ONE),
    Scenario("eleventh-mask-weights", MASK, "https://arxiv.org/abs/1505.04597",
             drawn({0: entry("masks", weights_of_borders)}), Setup("nadam", norm="layer"), ONE),
)  # fmt: skip
ELEVENTH_TRAIN_DATA: tuple[Scenario, ...] = (*BOXES, *LABELS, *PIXELS, *MASKS)
