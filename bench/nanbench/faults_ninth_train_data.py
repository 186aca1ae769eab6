"""Runs of the project's own trainer, a ninth round: boxes, labels, pixels, masks, points and files from real sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nanbench.faults_fifth_data import drawn
from nanbench.faults_forms import entry, handed_out, picture
from nanbench.faults_fresh_data import broken_file
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import CLASSES

NAN = float("nan")
ONE = Culprit(image=True)
BOX, LABEL, PIXEL, MASK = "DATA_BOX", "DATA_LABEL", "DATA_PIXEL", "DATA_MASK"
GITHUB = "https://github.com/"


def corner_and_size(boxes: Tensor) -> Tensor:
    """Corner, width and height, where two corners belong: of an object far from the origin it is no box."""
    return torch.cat([boxes[:, :2] + 30, boxes[:, 2:] - boxes[:, :2]], 1)


def outside_the_crop(boxes: Tensor) -> Tensor:
    """A crop marks the objects that it lost with zeros; the step that takes these out was forgotten."""
    boxes[0] = 0.0
    return boxes


def not_merged(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A left join of two tables: a picture without an object has a row without a number."""
    n = torch.full((1, 4), NAN)
    label = torch.full((1,), NAN).long()
    masks = torch.zeros(1, *image.shape[-2:], dtype=torch.uint8)
    return image, {**target, "boxes": n, "labels": label, "masks": masks, "annotation_ids": torch.tensor([0])}


def shares(boxes: Tensor) -> Tensor:
    """Corners in shares of the picture, where pixels belong."""
    return boxes / 64


def from_one(labels: Tensor) -> Tensor:
    """The json counts from 1 already, and the reader adds one for the background."""
    return labels + 1


def a_code(labels: Tensor) -> Tensor:
    """A category that is a code of its own."""
    return torch.full_like(labels, 333)


def past_the_last(labels: Tensor) -> Tensor:
    """The number of classes itself."""
    return torch.full_like(labels, CLASSES)


def empty_channel(image: Tensor) -> Tensor:
    """Each channel between its own lowest and highest value; one of them has nothing in it."""
    image[2] = 0.0
    low, high = image.amin((1, 2), keepdim=True), image.amax((1, 2), keepdim=True)
    return (image - low) / (high - low)


def no_value(image: Tensor) -> Tensor:
    """The fill of a raster's margin, one that is a plain number."""
    image[:, :9, :] = -9999.0
    return image


def counts(image: Tensor) -> Tensor:
    """Raw counts of a camera of 12 bits."""
    return (image * 4095).round()


def half_written(image: Tensor) -> Tensor:
    """What is behind the end of a decoded buffer: bytes of anything, read as numbers."""
    g = torch.Generator().manual_seed(5)
    image[:, 40:] = torch.randint(-(2**31), 2**31 - 1, (3, 24, 64), generator=g, dtype=torch.int32).view(torch.float32)
    return image


def as_a_picture(masks: Tensor) -> Tensor:
    """Normalised with the mean and deviation of pictures, as a second image."""
    return (masks.float() - 0.45) / 0.225


def rows_first(masks: Tensor) -> Tensor:
    """Height by width by objects."""
    return masks.permute(1, 2, 0).contiguous()


def two_numbers(points: Tensor) -> Tensor:
    """Only x and y."""
    return points[..., :2]


def out_of_range(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A library of augmentations that checks what it is given."""
    raise ValueError("Expected x_max for bbox (0.94375, 0.5775, 1.003125, 0.6372, 0) to be in the range [0.0, 1.0]")


def refused(scene: Scene) -> None:
    """The item never comes, and so has no id but its position."""
    drawn({0: out_of_range})(scene)
    scene.ids[scene.culprit] = scene.culprit


def error_page(path: Any) -> None:
    """A download that answered with a page in place of the picture."""
    path.write_text("<!DOCTYPE html><html><body><h1>403 Forbidden</h1></body></html>\n" * 20)


def by_turns(*when: int) -> Callable[[int], bool]:
    """At steps of these remainders by three."""
    return lambda step: step % 3 in when


def uneven(scene: Scene) -> None:
    """Pictures of three cameras, of which one gives 16 bits; a third of them, whatever the object."""
    change = picture(lambda image: image * 65535)
    drawn({0: change, 3: change, 6: change, 9: change, 12: change, 15: change, 18: change, 21: change})(scene)


def enlarged(masks: Tensor) -> Tensor:
    """Masks of the original picture beside one that was made smaller."""
    return F.interpolate(masks[None].float(), size=(150, 200))[0].to(torch.uint8)


BOXES = (
    Scenario("ninth-box-one-source", BOX, "https://donghao.org/2019/06/11/debugging-the-problem-of-nan-value-in-training/",
             drawn(dict.fromkeys((0, 2, 5, 8, 13), entry("boxes", corner_and_size))), Setup(model="ssd", batch=2), ONE),
    Scenario("ninth-box-lost-in-crop", BOX, GITHUB + "pytorch/vision/pull/7268",
             drawn(dict.fromkeys((0, 4, 9, 15), entry("boxes", outside_the_crop)), by_turns(1)),
             Setup("adamw", norm="group"), ONE),
    Scenario("ninth-box-not-merged", BOX, GITHUB + "dusty-nv/jetson-inference/issues/1067",
             drawn(dict.fromkeys((0, 7, 11), not_merged)), Setup("adamw", model="fcos", batch=2), ONE,
             also=(LABEL,)),
    Scenario("ninth-box-shares-all", BOX, GITHUB + "ultralytics/yolov5/issues/2293",
             handed_out(entry("boxes", shares), every=True), Setup("adamw", model="faster"), onset=0, verdict=True),
    # The picture cannot be drawn at all: that its boxes are why is in the message alone.
    Scenario("ninth-box-refused", BOX, GITHUB + "albumentations-team/albumentations/issues/459",
             refused, Setup(model="retina", batch=2), ONE, also=("UNKNOWN", PIXEL)),
    Scenario("ninth-points-two-numbers", BOX, GITHUB + "alexppppp/keypoint_rcnn_training_pytorch/issues/3",
             drawn({0: entry("keypoints", two_numbers)}), Setup("adamw", model="keypoint", batch=2), ONE,
             also=("UNKNOWN",)),
)  # fmt: skip
LABELS = (
    Scenario("ninth-label-counted-twice", LABEL, GITHUB + "facebookresearch/maskrcnn-benchmark/issues/450",
             handed_out(entry("labels", from_one), every=True), Setup(model="fcos", norm="group"), onset=0,
             verdict=True),
    Scenario("ninth-label-333", LABEL, GITHUB + "facebookresearch/detectron2/issues/2365",
             drawn({0: entry("labels", a_code), 6: entry("labels", past_the_last)}),
             Setup("adamw", model="keypoint", batch=2), ONE),
)  # fmt: skip
PIXELS = (
    Scenario("ninth-pixel-empty-channel", PIXEL, GITHUB + "albumentations-team/albumentations/issues/1742",
             drawn(dict.fromkeys((0, 5, 10), picture(empty_channel))), Setup(model="retina", norm="batch", batch=2),
             ONE),
    Scenario("ninth-pixel-minus-9999", PIXEL, GITHUB + "remicres/otbtf/issues/25",
             drawn({0: picture(no_value), 8: picture(no_value)}), Setup(model="faster"), ONE),
    Scenario("ninth-pixel-12-bit", PIXEL, GITHUB + "hunglc007/tensorflow-yolov4-tflite/issues/138",
             drawn(dict.fromkeys((0, 6, 7, 14), picture(counts))), Setup(model="retina", batch=1), ONE),
    Scenario("ninth-pixel-third-camera", PIXEL, GITHUB + "pjreddie/darknet/issues/886", uneven,
             Setup("adam", model="ssd"), ONE),
    Scenario("ninth-pixel-behind-the-end", PIXEL, GITHUB + "NRCan/geo-deep-learning/issues/68",
             drawn({0: picture(half_written)}), Setup(accumulate=4, precision="fp16"), ONE),
    Scenario("ninth-pixel-error-page", PIXEL, GITHUB + "matterport/Mask_RCNN/issues/355",
             broken_file(error_page, 5), Setup("adamw", way="files"), ONE),
)  # fmt: skip
MASKS = (
    Scenario("ninth-mask-as-picture", MASK, GITHUB + "milesial/Pytorch-UNet/issues/78",
             drawn(dict.fromkeys((0, 3, 12), entry("masks", as_a_picture))), Setup(norm="batch", batch=2), ONE),
    Scenario("ninth-mask-rows-first", MASK, GITHUB + "matterport/Mask_RCNN/issues/2",
             drawn({0: entry("masks", rows_first)}), Setup("adamw", batch=1), ONE),
    Scenario("ninth-mask-other-size", MASK, GITHUB + "pytorch/vision/issues/3069",
             drawn({0: entry("masks", enlarged)}), Setup(precision="bf16", batch=2), ONE),
)  # fmt: skip
NINTH_TRAIN_DATA: tuple[Scenario, ...] = (*BOXES, *LABELS, *PIXELS, *MASKS)
