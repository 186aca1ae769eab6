"""What else a data set of one's own hands out: arrays and lists, other keys, items that raise, other detectors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanbench.faults_forms import Change, entry, handed_out, picture, without
from nanbench.faults_small import single
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
BOX, LABEL, MASK, PIXEL = "DATA_BOX", "DATA_LABEL", "DATA_MASK", "DATA_PIXEL"
FCOS, SSD, POINTS, OWN = Setup(model="fcos"), Setup(model="ssd"), Setup(model="keypoint"), Setup(model="own")
SGD, ADAM, GROUP, BATCH = Setup(), Setup(optimizer="adamw"), Setup(norm="group"), Setup(norm="batch")
TWO, SINGLE, RETINA, FASTER = Setup(batch=2), Setup(batch=1), Setup(model="retina"), Setup(model="faster")
FP16, BF16, ACC = Setup(precision="fp16"), Setup(precision="bf16"), Setup(accumulate=4)


def renamed(old: str, new: str) -> Change:
    """A key under another name."""
    return lambda image, target: (image, {(new if k == old else k): v for k, v in target.items()})


def annotations(image: Any, target: Any) -> tuple[Any, Any]:
    """The list of COCO's annotations in place of the target."""
    return image, [
        {"bbox": b, "category_id": int(v)} for b, v in zip(target["boxes"].tolist(), target["labels"], strict=True)
    ]


def every(change: Change) -> Callable[[Scene], None]:
    """Every item."""
    return handed_out(change, every=True)


def item(make: Callable[[Any, Any], Any], *, nameless: bool) -> Callable[[Scene], None]:
    """The bad item is something else altogether; ``nameless``: it has no id but its position."""

    def fault(scene: Scene) -> None:
        def draw(index: int) -> Any:
            image, target = scene.samples[index]
            pair = image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
            return make(*pair) if index == scene.culprit else pair

        scene.draw = draw
        if nameless:
            scene.ids[scene.culprit] = scene.culprit

    return fault


def raising(error: Exception) -> Callable[[Any, Any], Any]:
    """An item that raises each time."""

    def make(image: Any, target: Any) -> Any:
        raise error

    return make


def two_causes(scene: Scene) -> None:
    """One image has a NaN pixel, another of its batch a label past the end."""
    from nanbench.faults_small import partner

    other = partner(scene)
    scene.also_bad = [other]
    scene.samples[scene.culprit][0][0, 5, 5] = NAN
    scene.samples[other][1]["labels"][0] = 30


FORMS = (
    ("boxes-numpy", BOX, entry("boxes", lambda v: v.numpy()), SGD),
    ("boxes-tuple", BOX, entry("boxes", lambda v: tuple(map(tuple, v.tolist()))), FASTER),
    ("labels-scalar", LABEL, entry("labels", lambda v: torch.tensor(1)), SGD),
    ("labels-numpy", LABEL, entry("labels", lambda v: v.numpy()), ADAM),
    ("labels-bytes", LABEL, entry("labels", lambda v: v.to(torch.uint8)), GROUP),
    ("labels-ignore-255", LABEL, entry("labels", lambda v: v * 0 + 255), FP16),
    ("labels-one-hot", LABEL, entry("labels", lambda v: torch.nn.functional.one_hot(v, 4)), TWO),
    ("target-empty", BOX, lambda image, target: (image, {}), SGD),
    ("target-annotations", BOX, annotations, TWO),
    ("target-renamed-label", LABEL, renamed("labels", "label"), FASTER),
    ("target-renamed-bbox", BOX, renamed("boxes", "bboxes"), RETINA),
    ("image-int64", PIXEL, picture(lambda v: (v * 255).long()), SGD),
    ("image-numpy", PIXEL, picture(lambda v: v.permute(1, 2, 0).numpy()), SGD),
    ("image-batched", PIXEL, picture(lambda v: v[None]), GROUP),
    ("image-inf-channel", PIXEL, picture(lambda v: torch.cat([v[:2], torch.full_like(v[:1], INF)])), BF16),
    ("image-minus-inf-fcos", PIXEL, picture(lambda v: v.index_fill(0, torch.tensor([1]), -INF)), FCOS),
    ("masks-rle", MASK, entry("masks", lambda v: [{"size": [64, 64], "counts": [0, 9, 4087]}] * len(v)), SGD),
    ("masks-flat", MASK, entry("masks", lambda v: v.reshape(len(v), -1)), ADAM),
    ("masks-nan", MASK, entry("masks", lambda v: v.float().masked_fill(v == 0, NAN)), SGD),
    ("masks-logits", MASK, entry("masks", lambda v: v.float() * 40 - 20), BATCH),
    ("masks-minus", MASK, entry("masks", lambda v: v.to(torch.int16) * -255), TWO),
    ("boxes-inverted-fcos", BOX, entry("boxes", lambda v: v[:, [2, 3, 0, 1]]), FCOS),
    ("boxes-nan-ssd", BOX, entry("boxes", lambda v: v * NAN), SSD),
    ("boxes-nan-own", BOX, entry("boxes", lambda v: v * NAN), OWN),
    ("boxes-inf-own", BOX, entry("boxes", lambda v: v + INF), Setup(model="own", batch=2)),
    ("labels-past-own", LABEL, entry("labels", lambda v: v + 90), OWN),
    ("labels-past-ssd", LABEL, entry("labels", lambda v: v + 90), SSD),
    ("labels-past-fcos", LABEL, entry("labels", lambda v: v + 90), FCOS),
    ("pixel-nan-ssd", PIXEL, picture(lambda v: v.index_fill(1, torch.tensor([3]), NAN)), SSD),
    ("pixel-nan-points", PIXEL, picture(lambda v: v.index_fill(1, torch.tensor([3]), NAN)), POINTS),
    (
        "pixel-nan-own",
        PIXEL,
        picture(lambda v: v.index_fill(1, torch.tensor([3]), NAN)),
        Setup(model="own", norm="batch"),
    ),
    ("pixel-1e30-own", PIXEL, picture(lambda v: v * 1e30), OWN),
)
WHOLE = (
    ("labels-numpy", LABEL, entry("labels", lambda v: v.numpy()), SGD),
    ("boxes-bbox", BOX, renamed("boxes", "bbox"), FASTER),
    ("image-numpy", PIXEL, picture(lambda v: v.permute(1, 2, 0).numpy()), TWO),
    ("image-int64", PIXEL, picture(lambda v: (v * 255).long()), SGD),
    ("masks-4d", MASK, entry("masks", lambda v: v[:, None]), SGD),
    ("masks-255-float", MASK, entry("masks", lambda v: v.float() * 255), ADAM),
)
ITEMS = (
    ("item-none", raising(TypeError("'NoneType' object is not subscriptable")), SGD, PIXEL),
    ("item-missing-file", raising(FileNotFoundError("img_0042.png")), TWO, PIXEL),
    ("item-key-error", raising(KeyError("annotations")), GROUP, PIXEL),
    ("item-index-error", raising(IndexError("list index out of range")), FASTER, PIXEL),
    ("item-three", lambda image, target: (image, target, "a.png"), SGD, BOX),
    ("item-dict", lambda image, target: {"image": image, **target}, ADAM, BOX),
    ("item-image-alone", lambda image, target: image, SINGLE, BOX),
    ("item-nothing", lambda image, target: None, SGD, BOX),
)
NO_POINTS = Scenario(
    "wild-points-missing",
    "DATA_BOX",
    "pytorch/vision#2144",
    handed_out(without("keypoints")),
    POINTS,
    ONE,
    also=("DATA_MASK", "UNKNOWN"),  # there is no code of its own for keypoints
)
WILD_DATA: tuple[Scenario, ...] = (
    *(
        Scenario(
            f"wild-{name}",
            code,
            "pytorch/vision, own data sets",
            handed_out(change, nameless=name.startswith(("target-empty", "target-annotations"))),
            setup,
            ONE,
        )
        for name, code, change, setup in FORMS
    ),
    *(
        Scenario(f"wild-{name}-all", code, "pytorch/vision, own data sets", every(change), setup, verdict=True, onset=0)
        for name, code, change, setup in WHOLE
    ),
    *(
        # What is no pair of image and target has no part to blame but itself; a target inside still tells its id.
        Scenario(
            f"wild-{name}",
            code,
            "pytorch/vision, own data sets",
            item(make, nameless=name not in ("item-three", "item-dict")),
            setup,
            ONE,
            also=(BOX, PIXEL),
        )
        for name, make, setup, code in ITEMS
    ),
    NO_POINTS,
    Scenario("wild-two-causes", PIXEL, "nan_cases R-D4", two_causes, TWO, ONE, also=(LABEL,)),
    Scenario(
        "wild-pixel-inf-adagrad",
        PIXEL,
        "nan_cases R-D4",
        single(lambda image, target: (image.index_fill(2, torch.tensor([9]), INF), target)),
        Setup(optimizer="adagrad"),
        ONE,
    ),
    Scenario(
        "wild-box-inverted-rmsprop",
        BOX,
        "pytorch/vision#997",
        single(lambda image, target: (image, {**target, "boxes": target["boxes"][:, [2, 3, 0, 1]]})),
        Setup(optimizer="rmsprop"),
        ONE,
    ),
)
