"""Runs of the project's own trainer, a tenth round: odd pictures and targets, pipelines that change, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanbench.faults_fifth_data import drawn
from nanbench.faults_forms import entry, picture
from nanbench.faults_fresh_data import broken_file
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import CLASSES

NAN = float("nan")
ONE = Culprit(image=True)
BOX, LABEL, PIXEL, MASK = "DATA_BOX", "DATA_LABEL", "DATA_PIXEL", "DATA_MASK"
GITHUB = "https://github.com/"


def learned(boxes: Tensor) -> Tensor:
    """Boxes out of an augmentation that learns, with a history; one was divided by nothing."""
    scale = torch.ones(4, requires_grad=True)
    boxes = boxes * scale
    return torch.cat([boxes[:-1], boxes[-1:] * torch.tensor([1.0, 1.0, NAN, 1.0])])


def by_its_area(boxes: Tensor) -> Tensor:
    """Sides are the roots of a signed area, of a polygon that runs the other way round."""
    area = -((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
    return torch.cat([boxes[:, :2], boxes[:, :2] + area.sqrt()[:, None]], 1)


def two_sets(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Corners of pixels and of shares in one target: two sources were put together by their file names."""
    boxes = target["boxes"]
    boxes[0] = boxes[0] / 64
    boxes[-1, 2:] = boxes[-1, :2]
    return image, {**target, "boxes": boxes}


def memory(labels: Tensor) -> Tensor:
    """An array that was made by ``empty`` and never filled."""
    return torch.tensor([94_212_345_678_912, -7_012_345_678_901][: len(labels)])


def first_of_other_list(labels: Tensor) -> Tensor:
    """A category of another list: right for two classes, and beyond the end for the third."""
    return labels * 2


def panoptic(masks: Tensor) -> Tensor:
    """Numbers of segments, class times a thousand and a count, as a panoptic map has them."""
    return masks.int() * torch.tensor([26001, 24003])[: len(masks), None, None]


def percent(masks: Tensor) -> Tensor:
    """Sureness in percent, as a labelling tool exports it."""
    return masks.float() * 100


def heat(masks: Tensor) -> Tensor:
    """A signed distance to the outline, which a tool had stored in place of the mask."""
    return (masks.float() - 0.3) * 40


def ribbon(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A strip of three by twenty thousand pixels, as scrapers find them: nothing is left of a side of it."""
    n = len(target["labels"])
    boxes = torch.tensor([[0.0, 10.0, 3.0, 900.0], [0.0, 2000.0, 3.0, 9000.0]])[:n]
    masks = torch.zeros(n, 20_000, 3, dtype=torch.uint8)
    masks[:, 10:900] = 1
    return torch.rand(3, 20_000, 3), {**target, "boxes": boxes, "masks": masks}


def straight_alpha(image: Tensor) -> Tensor:
    """Colour divided by its alpha, which is nothing around the object."""
    alpha = (image.amax(0) > 0.3).float()
    return image * alpha / alpha


def decibels(image: Tensor) -> Tensor:
    """Radar: ten times the logarithm of the power, of which the sea sends none back."""
    return 10 * (image * (image > 0.02)).log10()


def thermal(image: Tensor) -> Tensor:
    """Hundredths of a kelvin."""
    return 27_315 + 2_000 * image


def other_pipeline(scene: Scene) -> None:
    """The last two epochs use another pipeline, as recipes that close the mosaic do; it lacks the division by 255."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        return (image * 255 if scene.active and scene.step >= 12 else image.clone()), target

    scene.draw = draw


def gives_up(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A crop that keeps an object is sought fifty times, and not found."""
    raise RuntimeError("could not find a crop with at least one box after 50 attempts")


def at_times(when: Callable[[int], bool], *away: int) -> Callable[[Scene], None]:
    """A transform that fails at some steps on some pictures; what it would have handed out has no id but its place."""

    def fault(scene: Scene) -> None:
        drawn(dict.fromkeys((0, *away), gives_up), when)(scene)
        for place in (scene.culprit, *scene.also_bad):
            scene.ids[place] = place

    return fault


def gamma(scene: Scene) -> None:
    """A gamma of an image that was made zero-centred first: a negative number to a broken power, at every draw."""
    drawn(dict.fromkeys((0, 3, 10), picture(lambda image: torch.pow(image - 0.05, 0.7))))(scene)


def one_more_channel(image: Tensor) -> Tensor:
    """Depth beside the colours, of one camera of several."""
    return torch.cat([image, image.mean(0, keepdim=True) * 1000, image[:1]])


def nothing_written(path: Any) -> None:
    """The disk was full."""
    path.write_bytes(b"")


def other_picture(path: Any) -> None:
    """A folder that is synchronised puts a picture of another size under the same name."""
    from torchvision.io import write_png

    write_png(torch.randint(0, 255, (3, 40, 150), dtype=torch.uint8), str(path))


def no_rights(path: Any) -> None:
    """A folder stands where the picture was."""
    path.unlink()
    path.mkdir()


def one_row(boxes: Tensor) -> Tensor:
    """Objects of a picture as a row of numbers in a file of text."""
    return boxes.flatten()[: 4 * len(boxes) - 1]


def unpaired(scene: Scene) -> None:
    """Three pictures lost the label of their last object in a filter for small ones, now and then."""
    change = entry("labels", lambda v: v[:-1])
    drawn({0: change, 6: change, 17: change}, lambda step: step % 2 == 1)(scene)


assert CLASSES == 4  # twice the class of three is past the end
BOXES = (
    Scenario("tenth-box-learned", BOX, GITHUB + "albumentations-team/albumentations/issues/742",
             drawn({0: entry("boxes", learned)}), Setup(batch=2), ONE),
    Scenario("tenth-box-by-its-area", BOX, GITHUB + "cocodataset/cocoapi/issues/348",
             drawn(dict.fromkeys((0, 8), entry("boxes", by_its_area))), Setup(norm="batch", batch=2), ONE),
    Scenario("tenth-box-two-sets", BOX, GITHUB + "pytorch/vision/issues/2235", drawn({0: two_sets, 9: two_sets}),
             Setup("adamw", model="fcos", batch=2), ONE),
    Scenario("tenth-box-one-row", BOX, GITHUB + "TuSimple/mx-maskrcnn/issues/42", drawn({0: entry("boxes", one_row)}),
             Setup("adamw", model="faster"), ONE),
)  # fmt: skip
LABELS = (
    Scenario("tenth-label-memory", LABEL, GITHUB + "matterport/Mask_RCNN/issues/159",
             drawn({0: entry("labels", memory)}), Setup(model="retina", batch=2), ONE),
    Scenario("tenth-label-other-list", LABEL, GITHUB + "pytorch/pytorch/issues/38709",
             drawn(dict.fromkeys(range(24), entry("labels", first_of_other_list))), Setup(accumulate=4, norm="group"),
             onset=0, verdict=True),
    Scenario("tenth-label-unpaired", LABEL, GITHUB + "albumentations-team/albumentations/issues/2513", unpaired,
             Setup("adam", model="ssd"), ONE),
)  # fmt: skip
PIXELS = (
    Scenario("tenth-pixel-ribbon", PIXEL, GITHUB + "open-mmlab/mmdetection/issues/7111", drawn({0: ribbon}),
             Setup(norm="batch", batch=2), ONE, also=(BOX, "UNKNOWN")),
    Scenario("tenth-pixel-straight-alpha", PIXEL, GITHUB + "endernewton/tf-faster-rcnn/issues/394",
             drawn(dict.fromkeys((0, 4, 13), picture(straight_alpha))), Setup(precision="fp16", norm="group"), ONE),
    Scenario("tenth-pixel-decibels", PIXEL, GITHUB + "endernewton/tf-faster-rcnn/issues/222",
             drawn({0: picture(decibels), 2: picture(decibels)}), Setup("adamw", precision="bf16", batch=2), ONE),
    Scenario("tenth-pixel-thermal", PIXEL, GITHUB + "AlexeyAB/darknet/issues/3074", drawn({0: picture(thermal)}),
             Setup(model="faster", norm="batch"), ONE),
    Scenario("tenth-pixel-other-pipeline", PIXEL, GITHUB + "matterport/Mask_RCNN/issues/1920", other_pipeline,
             Setup(batch=2), onset=12, verdict=True),
    Scenario("tenth-pixel-gamma", PIXEL, GITHUB + "facebookresearch/detectron2/issues/2299", gamma,
             Setup("adamw", model="keypoint", batch=2), ONE),
    Scenario("tenth-pixel-more-channels", PIXEL, GITHUB + "matterport/Mask_RCNN/issues/1236",
             drawn({0: picture(one_more_channel), 11: picture(one_more_channel)}, lambda step: step >= 6),
             Setup("adamw", model="faster"), ONE),
    # What a transform raises says nothing of the kind: any word for data is right that names the pictures.
    Scenario("tenth-pixel-gives-up", PIXEL, GITHUB + "facebookresearch/detectron2/issues/3445",
             at_times(lambda step: step % 3 > 0, 5, 12), Setup("adam", model="ssd"), ONE,
             also=(BOX, "UNKNOWN", "TRANSIENT")),
    Scenario("tenth-file-nothing-written", PIXEL, GITHUB + "yhenon/pytorch-retinanet/issues/93",
             broken_file(nothing_written, 7), Setup(way="files"), ONE),
    Scenario("tenth-file-other-picture", PIXEL, GITHUB + "facebookresearch/detectron2/issues/143",
             broken_file(other_picture, 4), Setup(way="files"), ONE, also=(BOX, MASK)),
    Scenario("tenth-file-folder", PIXEL, GITHUB + "facebookresearch/detectron2/issues/764",
             broken_file(no_rights, 3), Setup(way="files"), ONE),
)  # fmt: skip
MASKS = (
    Scenario("tenth-mask-panoptic", MASK, GITHUB + "facebookresearch/detectron2/issues/573",
             drawn({0: entry("masks", panoptic)}), Setup(accumulate=4, norm="group"), ONE),
    Scenario("tenth-mask-percent", MASK, GITHUB + "matterport/Mask_RCNN/issues/1397",
             drawn(dict.fromkeys((0, 7, 15), entry("masks", percent))), Setup("adamw", batch=2), ONE),
    Scenario("tenth-mask-distance", MASK, GITHUB + "fizyr/keras-maskrcnn/issues/26",
             drawn({0: entry("masks", heat)}), Setup(norm="batch", batch=2), ONE),
)  # fmt: skip
TENTH_TRAIN_DATA: tuple[Scenario, ...] = (*BOXES, *LABELS, *PIXELS, *MASKS)
