"""Data that goes wrong on its way: caches changed in place, reads that fail once, augmentations, odd objects, files."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanbench.faults_forms import entry, handed_out, picture
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
BOX, LABEL, MASK, PIXEL = "DATA_BOX", "DATA_LABEL", "DATA_MASK", "DATA_PIXEL"
SGD, ADAM, GROUP, BATCH = Setup(), Setup(optimizer="adamw"), Setup(norm="group"), Setup(norm="batch")
TWO, RETINA, FASTER = Setup(batch=2), Setup(model="retina"), Setup(model="faster")
FCOS, SSD, OWN, POINTS = Setup(model="fcos"), Setup(model="ssd"), Setup(model="own"), Setup(model="keypoint")
FILES, GUARD, ATTACH = Setup(way="files"), Setup(way="guard"), Setup(way="attach")


def transform(**values: list[float]) -> Callable[[Scene], None]:
    """The model's own normalisation has these numbers."""

    def fault(scene: Scene) -> None:
        for name, value in values.items():
            setattr(scene.model.transform, name, value)

    return fault


def in_place(change: Callable[[Tensor, dict[str, Any]], None]) -> Callable[[Scene], None]:
    """The data set keeps its samples in memory, and its transform changes them in place each time."""

    def fault(scene: Scene) -> None:
        def draw(index: int) -> Any:
            image, target = scene.samples[index]
            change(image, target)
            return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

        scene.draw = draw

    return fault


def normalised_again(image: Tensor, target: dict[str, Any]) -> None:
    """Mean out, divided by the deviation, every epoch anew."""
    image.sub_(0.45).div_(0.02)


def scaled_again(image: Tensor, target: dict[str, Any]) -> None:
    """Boxes put to the size of the image, every epoch anew."""
    target["boxes"].mul_(30.0)


def sometimes(change: Callable[[Tensor, dict[str, Any]], None], positions: tuple[int, ...]) -> Callable[[Scene], None]:
    """A random augmentation spoils three images, each at every second draw."""

    def fault(scene: Scene) -> None:
        scene.also_bad = [p for p in positions if p != scene.culprit]
        drawn: dict[int, int] = {}

        def draw(index: int) -> Any:
            drawn[index] = drawn.get(index, 0) + 1
            image, target = scene.samples[index]
            image, target = image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
            if index in (scene.culprit, *scene.also_bad) and drawn[index] % 2:
                change(image, target)
            return image, target

        scene.draw = draw

    return fault


def cropped_away(image: Tensor, target: dict[str, Any]) -> None:
    """A crop leaves boxes of no width at its edge."""
    target["boxes"] = (target["boxes"] - 60).clamp(min=0)


def blown_up(image: Tensor, target: dict[str, Any]) -> None:
    """A colour jitter in log space leaves infinities."""
    image[1] = (1 / (image[1] - image[1].min())).clamp(min=0)


def read_once(scene: Scene) -> None:
    """Memory that nobody wrote, at the first read of one image in training only; looks before the run do not count."""
    left: list[bool] = []
    scene.at(0, lambda live: left.append(True))

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        image = image.clone()
        if index == scene.culprit and left:
            left.pop()
            image[:, 20:30] = NAN
        return image, {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

    scene.draw = draw


def pil(image: Tensor) -> Any:
    """The transform to a tensor was forgotten."""
    from torchvision.transforms.functional import to_pil_image

    return to_pil_image(image)


def broken_file(change: Callable[[Any], None], step: int) -> Callable[[Scene], None]:
    """The bad image's file changes on the disk before ``step``."""

    def fault(scene: Scene) -> None:
        scene.at(step, lambda live: change(scene.folder / "train" / f"{scene.bad_id}.png"))

    return fault


def truncated(path: Any) -> None:
    """A copy that did not finish."""
    path.write_bytes(path.read_bytes()[:200])


def nan_pixel(scene: Scene) -> None:
    """One NaN in one image."""
    scene.samples[scene.culprit][0][0, 3, 4] = NAN


ROWS = (
    ("image-complex", PIXEL, picture(lambda v: v.to(torch.complex64)), SGD),
    ("image-pil", PIXEL, picture(pil), TWO),
    ("image-no-rows", PIXEL, picture(lambda v: v[:, :0]), FASTER),
    ("image-bool", PIXEL, picture(lambda v: v > 0.5), GROUP),
    ("boxes-strings", BOX, entry("boxes", lambda v: [[str(x) for x in row] for row in v.tolist()]), SGD),
    ("boxes-objects", BOX, entry("boxes", lambda v: np.array(v.tolist(), dtype=object)), RETINA),
    ("labels-names", LABEL, entry("labels", lambda v: ["cat"] * len(v)), FCOS),
    ("labels-nan", LABEL, entry("labels", lambda v: v.float() * NAN), SSD),
    ("masks-polygons", MASK, entry("masks", lambda v: [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0]] * len(v)), ADAM),
)
FRESH_DATA: tuple[Scenario, ...] = (
    *(Scenario(f"fresh-{n}", c, "pytorch/vision, own data sets", handed_out(f), s, ONE) for n, c, f, s in ROWS),
    Scenario(
        "fresh-std-zero",
        PIXEL,
        "matterport/Mask_RCNN#1997",
        transform(image_std=[0.25, 0.0, 0.25]),
        SGD,
        onset=0,
        verdict=True,
    ),
    Scenario(
        "fresh-mean-nan",
        PIXEL,
        "open-mmlab/mmdetection#3605",
        transform(image_mean=[0.45, NAN, 0.45]),
        RETINA,
        onset=0,
        verdict=True,
    ),
    Scenario(
        "fresh-cache-normalised",
        PIXEL,
        "pytorch/vision, own data sets",
        in_place(normalised_again),
        SGD,
        onset=6,
        verdict=True,
    ),
    Scenario(
        "fresh-cache-boxes", BOX, "pytorch/vision, own data sets", in_place(scaled_again), OWN, onset=0, verdict=True
    ),
    Scenario("fresh-crop-boxes", BOX, "pytorch/vision#2235", sometimes(cropped_away, (3, 11, 19)), BATCH, ONE),
    Scenario("fresh-jitter-inf", PIXEL, "albumentations, own transforms", sometimes(blown_up, (2, 13, 20)), GROUP, ONE),
    # A read that failed once is the data's fault and is gone at the next: both words are right.
    Scenario("fresh-read-once", PIXEL, "pytorch/pytorch#40497", read_once, ADAM, ONE, also=("TRANSIENT",)),
    Scenario("fresh-file-cut", PIXEL, "matterport/Mask_RCNN#296", broken_file(truncated, 8), FILES, ONE),
    Scenario("fresh-file-gone", PIXEL, "matterport/Mask_RCNN#296", broken_file(lambda p: p.unlink(), 13), FILES, ONE),
    Scenario("fresh-guard-pixel", PIXEL, "nan_cases R-D4", nan_pixel, GUARD, ONE),
    Scenario("fresh-attach-pixel", PIXEL, "nan_cases R-D4", nan_pixel, ATTACH, ONE),
)
