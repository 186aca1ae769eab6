"""Data wrong in ways of other libraries: unsigned 16-bit, padded targets, one id for two images, stale memory."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor

from nanbench.faults_code import Losses, losses
from nanbench.faults_forms import entry, handed_out, picture
from nanbench.faults_third import moving
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
BOX, LABEL, PIXEL = "DATA_BOX", "DATA_LABEL", "DATA_PIXEL"
OWN_DATA = "pytorch/vision, own data sets"


def log_sizes(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Sizes are learned as logarithms."""
    boxes = torch.cat([t["boxes"] for t in targets])
    return {**terms, "size": 0.01 * (moving(model, 1.0) * (boxes[:, 2:] - boxes[:, :2]).log()).abs().mean()}


def flat_box(scene: Scene) -> None:
    """One box is a line."""
    boxes = scene.samples[scene.culprit][1]["boxes"]
    boxes[1, 2] = boxes[1, 0]
    losses(log_sizes)(scene)


def sixteen_bits(image: Tensor) -> Tensor:
    """As the file has it."""
    return (image * 65535).to(torch.uint16)


def bytes_as_floats(image: Tensor) -> Tensor:
    """Nobody divided."""
    return image * 255


def minus_one(labels: Tensor) -> Tensor:
    """Background as another library writes it."""
    labels = labels.clone()
    labels[0] = -1
    return labels


def beyond(labels: Tensor) -> Tensor:
    """A hash where a class was meant: no 32 bits hold it."""
    return labels + 2**40


def far(boxes: Tensor) -> Tensor:
    """A corner far beyond any picture."""
    boxes = boxes.clone()
    boxes[0, 2:] = 1e20
    return boxes


def of_another_image(boxes: Tensor) -> Tensor:
    """The boxes of an image with three objects; labels and masks are this one's."""
    return sample(1234, objects=3)[1]["boxes"]


def twin_ids(scene: Scene) -> None:
    """Two images have one id; one of them has no numbers in a corner."""
    other = (scene.culprit + 3) % 24
    scene.samples[other][1]["image_id"] = scene.samples[scene.culprit][1]["image_id"]
    scene.ids[other] = scene.bad_id
    scene.samples[scene.culprit][0][:, :4, :4] = NAN


def read_too_soon(scene: Scene) -> None:
    """The boxes of one draw of the second epoch are memory that nobody had written yet; the next draw is right."""
    left = [True]

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        if index == scene.culprit and left and scene.step >= 6:
            left.pop()
            target["boxes"] = torch.tensor([[0.0, 4e-45, -2e38, 3e38], [1.2e-38, 7.0, 9e-41, 3.0]])
        return image.clone(), target

    scene.draw = draw


def one_value(image: Tensor) -> Tensor:
    """One value of 12288."""
    image[2, 40, 11] = NAN
    return image


def endless(image: Tensor) -> Tensor:
    """One row is infinite."""
    image[0, 7] = INF
    return image


def few_classes(scene: Scene) -> None:
    """The head has a class less than the data."""
    scene.also_bad = [i for i, (_, t) in enumerate(scene.samples) if bool((t["labels"] >= 3).any())]
    scene.held_out = [pair for pair in scene.held_out if bool((pair[1]["labels"] < 3).all())]
    scene.model.roi_heads.box_predictor = FastRCNNPredictor(32, 3)  # type: ignore[union-attr]


def padded(image: Any, target: dict[str, Any]) -> tuple[Any, Any]:
    """Targets filled up to five rows with zeros, as a batch of equal shapes asks for."""

    def fill(value: Tensor) -> Tensor:
        return torch.cat([value, value.new_zeros(5 - len(value), *value.shape[1:])])

    return image, {k: fill(v) if isinstance(v, Tensor) and v.ndim else v for k, v in target.items()}


FOURTH_DATA: tuple[Scenario, ...] = (
    Scenario("fourth-flat-box-log", BOX, OWN_DATA, flat_box, Setup(model="own", way="guard"), ONE),
    # An attached guard ends a loop whose batch it must not let through: only the verdict is asked for.
    Scenario("fourth-far-attach", BOX, OWN_DATA, handed_out(entry("boxes", far)), Setup(model="fcos", way="attach"),
             ONE, open_end=True),
    Scenario("fourth-image-uint16", PIXEL, OWN_DATA, handed_out(picture(sixteen_bits)), Setup(way="guard"), ONE),
    Scenario("fourth-attach-255", PIXEL, OWN_DATA, handed_out(picture(bytes_as_floats)),
             Setup(model="retina", way="attach"), ONE),
    Scenario("fourth-label-minus-retina", LABEL, OWN_DATA, handed_out(entry("labels", minus_one)),
             Setup(model="retina", way="guard"), ONE),
    Scenario("fourth-labels-beyond", LABEL, OWN_DATA, handed_out(entry("labels", beyond)),
             Setup(model="ssd", way="guard"), ONE),
    # Which of the two is of the other image cannot be told.
    Scenario("fourth-boxes-unpaired", BOX, OWN_DATA, handed_out(entry("boxes", of_another_image)),
             Setup(model="faster", way="guard"), ONE, also=(LABEL,)),
    Scenario("fourth-twin-ids", PIXEL, OWN_DATA, twin_ids, Setup(norm="group"), ONE),
    Scenario("fourth-read-too-soon", BOX, OWN_DATA, read_too_soon, Setup(model="retina"), ONE),
    Scenario("fourth-one-value", PIXEL, "nan_cases R-D4", handed_out(picture(one_value)),
             Setup("adagrad", "bf16", norm="group", model="own", way="attach"), ONE),
    Scenario("fourth-guard-micro", PIXEL, "nan_cases R-D4", handed_out(picture(endless)),
             Setup(accumulate=4, way="guard"), ONE),
    # Half of the set has that class: left out one by one, or a stop where a whole batch has it. Both are right.
    Scenario("fourth-few-classes", LABEL, "pytorch/vision#2740", few_classes, Setup(model="faster", way="guard"), ONE,
             open_end=True),
    Scenario("fourth-padded", BOX, OWN_DATA, handed_out(padded), Setup("adamw", model="faster", way="guard"), ONE,
             also=(LABEL,)),
)  # fmt: skip
