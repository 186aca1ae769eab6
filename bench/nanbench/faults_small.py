"""Small batches, whose every image may be bad; and code that raises whatever Python has."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from nanbench.faults_code import Losses, has_bad, losses
from nanbench.faults_data import put
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import IMAGES, Scene, Setup

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
TWO, SINGLE = Setup(batch=2), Setup(batch=1)


def partner(scene: Scene) -> int:
    """The image that shares the bad one's first batch in this project's own plan."""
    from maskrcnn_coco.data.plan import Plan

    plan = Plan(scene.seed, list(range(IMAGES)), scene.setup.batch)
    for step in range(plan.steps_per_epoch):
        rows = [key.index for micro in plan.step(step)[1] for key in micro]
        if scene.culprit in rows:
            return next(r for r in rows if r != scene.culprit)
    return (scene.culprit + 1) % IMAGES


def pair(change: Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]) -> Callable[[Scene], None]:
    """Both images of one batch of 2 are bad; no other is."""

    def fault(scene: Scene) -> None:
        scene.also_bad = [partner(scene)]
        for position in (scene.culprit, *scene.also_bad):
            image, target = scene.samples[position]
            scene.samples[position] = change(image.clone(), {**target})

    return fault


def single(change: Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]) -> Callable[[Scene], None]:
    """The bad image alone."""

    def fault(scene: Scene) -> None:
        image, target = scene.samples[scene.culprit]
        scene.samples[scene.culprit] = change(image.clone(), {**target})

    return fault


def entry(
    key: str, change: Callable[[Tensor], Tensor]
) -> Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]:
    """One entry of the target changed."""
    return lambda image, target: (image, {**target, key: change(target[key].clone())})


def pixel(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]]:
    """The pixels changed."""
    return lambda image, target: (change(image), target)


def in_either(scene: Scene, targets: Any) -> bool:
    """Whether a bad image is in the batch."""
    return any(int(t["image_id"]) in scene.bad_ids for t in targets)


def infinite(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """Either of two images makes every loss infinite."""
    return {k: v * (INF if in_either(scene, targets) else 1.0) for k, v in terms.items()}


def both(change: Callable[[Scene], None]) -> Callable[[Scene], None]:
    """A fault in code that the partner of the bad image sets off too."""

    def fault(scene: Scene) -> None:
        scene.also_bad = [partner(scene)]
        change(scene)

    return fault


def raises(error: Exception, *, when: str = "image", start: int = 0) -> Callable[[Scene], None]:
    """The forward pass raises: on one image, on every batch from ``start`` on, or once."""
    left = [True]

    def change(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        due = has_bad(scene, targets) if when == "image" else scene.step >= start
        if when == "once":
            due = scene.step == start and bool(left)
            if due:
                left.pop()
        if due:
            raise error
        return terms

    return losses(change)


INVERT = entry("boxes", lambda b: b[:, [2, 3, 0, 1]])
PAIRS = (
    Scenario("pair-pixel-nan", "DATA_PIXEL", "nan_cases R-D4", pair(pixel(put((0, 3, 4), NAN))), TWO, ONE),
    Scenario(
        "pair-pixel-255",
        "DATA_PIXEL",
        "nan_cases R-D2",
        pair(pixel(lambda i: i * 255)),
        Setup(batch=2, norm="group"),
        ONE,
    ),
    Scenario("pair-box-inverted", "DATA_BOX", "pytorch/vision#997", pair(INVERT), TWO, ONE),
    Scenario(
        "pair-label-background", "DATA_LABEL", "pytorch/vision#1598", pair(entry("labels", lambda v: v * 0)), TWO, ONE
    ),
    Scenario(
        "pair-label-past-the-end",
        "DATA_LABEL",
        "pytorch/vision#1598",
        pair(entry("labels", lambda v: v + 9)),
        Setup(batch=2, optimizer="adamw"),
        ONE,
    ),
    Scenario(
        "pair-mask-255", "DATA_MASK", "milesial/Pytorch-UNet#78", pair(entry("masks", lambda m: m * 255)), TWO, ONE
    ),
    Scenario("pair-unseen", "UNKNOWN", "facebookresearch/detectron2#2299", both(losses(infinite)), TWO, ONE),
)
ALONE = (
    Scenario("alone-pixel-inf", "DATA_PIXEL", "nan_cases R-D4", single(pixel(put((1, 9, 9), INF))), SINGLE, ONE),
    Scenario(
        "alone-pixel-255", "DATA_PIXEL", "facebookresearch/Detectron#868", single(pixel(lambda i: i * 255)), SINGLE, ONE
    ),
    Scenario(
        "alone-pixel-16-bit",
        "DATA_PIXEL",
        "matterport/Mask_RCNN#1997",
        single(pixel(lambda i: i * 65535)),
        Setup(batch=1, norm="group"),
        ONE,
    ),
    Scenario("alone-box-inverted", "DATA_BOX", "pytorch/vision#997", single(INVERT), SINGLE, ONE),
    Scenario(
        "alone-mask-255",
        "DATA_MASK",
        "milesial/Pytorch-UNet#78",
        single(entry("masks", lambda m: m * 255)),
        SINGLE,
        ONE,
    ),
    Scenario(
        "alone-label-category-id",
        "DATA_LABEL",
        "facebookresearch/maskrcnn-benchmark#243",
        single(entry("labels", lambda v: v + 80)),
        SINGLE,
        ONE,
    ),
    Scenario("alone-unseen", "UNKNOWN", "facebookresearch/detectron2#2299", losses(infinite), SINGLE, ONE),
    Scenario(
        "retina-pixel-nan",
        "DATA_PIXEL",
        "nan_cases R-D4",
        single(pixel(put((0, 3, 4), NAN))),
        Setup(model="retina"),
        ONE,
    ),
    Scenario(
        "retina-box-inverted", "DATA_BOX", "pytorch/vision#997", single(INVERT), Setup(model="retina", batch=2), ONE
    ),
    Scenario(
        "retina-unseen", "UNKNOWN", "facebookresearch/detectron2#2299", losses(infinite), Setup(model="retina"), ONE
    ),
    Scenario(
        "faster-label-category-id",
        "DATA_LABEL",
        "facebookresearch/maskrcnn-benchmark#243",
        single(entry("labels", lambda v: v + 80)),
        Setup(model="faster"),
        ONE,
    ),
)
RAISED = (
    Scenario("raises-key", "UNKNOWN", "pytorch/vision#2144", raises(KeyError("area")), Setup(), ONE),
    Scenario(
        "raises-type", "UNKNOWN", "pytorch/vision#1640", raises(TypeError("'NoneType' object")), Setup(batch=2), ONE
    ),
    Scenario(
        "raises-attribute-batch-1", "UNKNOWN", "pytorch/vision#1640", raises(AttributeError("'list'")), SINGLE, ONE
    ),
    Scenario(
        "raises-not-implemented",
        "UNKNOWN",
        "pytorch/vision#1640",
        raises(NotImplementedError("crowds")),
        Setup(norm="batch"),
        ONE,
    ),
    Scenario(
        "raises-stop-iteration",
        "UNKNOWN",
        "pytorch/vision#1640",
        raises(StopIteration()),
        Setup(optimizer="adamw"),
        ONE,
    ),
    Scenario(
        "raises-key-always",
        "UNKNOWN",
        "pytorch/vision#2144",
        raises(KeyError("area"), when="always"),
        Setup(),
        verdict=True,
        onset=0,
    ),
    Scenario(
        "raises-name-always-batch-1",
        "UNKNOWN",
        "pytorch/vision#2144",
        raises(NameError("gamma"), when="always"),
        SINGLE,
        verdict=True,
        onset=0,
    ),
    Scenario(
        "raises-attribute-late",
        "UNKNOWN",
        "pytorch/vision#2144",
        raises(AttributeError("'Head' object has no attribute 'loss'"), when="always", start=9),
        Setup(batch=2),
        verdict=True,
        onset=9,
    ),
    Scenario(
        "raises-type-late-retina",
        "UNKNOWN",
        "pytorch/vision#2144",
        raises(TypeError("None"), when="always", start=5),
        Setup(model="retina"),
        verdict=True,
        onset=5,
    ),
    Scenario(
        "raises-runtime-once",
        "TRANSIENT",
        "pytorch/pytorch#40497",
        raises(RuntimeError("CUDNN_STATUS"), when="once", start=11),
        Setup(),
        onset=11,
    ),
    Scenario(
        "raises-key-once",
        "TRANSIENT",
        "pytorch/pytorch#40497",
        raises(KeyError(3), when="once", start=4),
        Setup(norm="group"),
        onset=4,
    ),
)
SMALL = (*PAIRS, *ALONE, *RAISED)
