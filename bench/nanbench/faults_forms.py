"""A data set of one's own in every odd form: a missing key, a column for a row, another dtype, four channels.

One item of 24 is odd, unless it says "all". Sources are what people's own ``__getitem__`` returned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

ONE = Culprit(image=True)
Item = tuple[Any, Any]
Change = Callable[[Any, Any], Item]


def handed_out(change: Change, *, every: bool = False, nameless: bool = False) -> Callable[[Scene], None]:
    """The bad item (or every one) as ``change`` leaves it; ``nameless``: it has no id but its position."""

    def fault(scene: Scene) -> None:
        def draw(index: int) -> Item:
            image, target = scene.samples[index]
            target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
            return change(image.clone(), target) if every or index == scene.culprit else (image.clone(), target)

        scene.draw = draw
        if nameless:
            scene.ids[scene.culprit] = scene.culprit

    return fault


def entry(key: str, change: Callable[[Any], Any]) -> Change:
    """One entry of the target."""
    return lambda image, target: (image, {**target, key: change(target[key])})


def without(key: str) -> Change:
    """One key is missing."""
    return lambda image, target: (image, {k: v for k, v in target.items() if k != key})


def picture(change: Callable[[Tensor], Any]) -> Change:
    """The image in another form."""
    return lambda image, target: (change(image), target)


def four_channels(image: Tensor) -> Tensor:
    """With the alpha of a PNG."""
    return torch.cat([image, torch.ones_like(image[:1])])


def scored(boxes: Tensor) -> Tensor:
    """(N, 5): a score behind each box."""
    return torch.cat([boxes, torch.ones(len(boxes), 1)], 1)


BOX, LABEL, MASK, PIXEL = "DATA_BOX", "DATA_LABEL", "DATA_MASK", "DATA_PIXEL"
SGD, ADAM, GROUP, BATCH = Setup(), Setup(optimizer="adamw"), Setup(norm="group"), Setup(norm="batch")
TWO, ONCE = Setup(batch=2), Setup(batch=1)
ACC, RETINA, FASTER = Setup(accumulate=4), Setup(model="retina"), Setup(model="faster")

ROWS: tuple[tuple[str, str, str, Change, Setup], ...] = (
    ("labels-float", LABEL, "pytorch/vision#2740", entry("labels", Tensor.float), SGD),
    ("labels-float-batch-1", LABEL, "pytorch/vision#2740", entry("labels", Tensor.float), ONCE),
    ("labels-column", LABEL, "pytorch/vision#3247", entry("labels", lambda v: v[:, None]), GROUP),
    ("labels-column-faster", LABEL, "pytorch/vision#3247", entry("labels", lambda v: v[:, None]), FASTER),
    ("labels-int32", LABEL, "pytorch/vision#1544", entry("labels", Tensor.int), ADAM),
    ("labels-short", LABEL, "pytorch/vision#2300", entry("labels", lambda v: v[:1]), TWO),
    ("labels-missing", LABEL, "pytorch/vision#1598", without("labels"), FASTER),
    ("labels-missing-batch-1", LABEL, "pytorch/vision#1598", without("labels"), ONCE),
    ("labels-list", LABEL, "pytorch/vision#2196", entry("labels", Tensor.tolist), SGD),
    ("boxes-scored", BOX, "pytorch/vision#2720", entry("boxes", scored), SGD),
    ("boxes-scored-retina", BOX, "pytorch/vision#2720", entry("boxes", scored), RETINA),
    ("boxes-missing", BOX, "pytorch/vision#1872", without("boxes"), TWO),
    ("boxes-missing-faster", BOX, "pytorch/vision#1872", without("boxes"), FASTER),
    ("boxes-list", BOX, "pytorch/vision#2196", entry("boxes", Tensor.tolist), ADAM),
    ("boxes-flat", BOX, "pytorch/vision#2235", entry("boxes", lambda v: v[0]), ACC),
    ("boxes-empty-flat", BOX, "pytorch/vision#1598", entry("boxes", lambda v: v.new_zeros(0)), SGD),
    ("masks-missing", MASK, "pytorch/vision#2144", without("masks"), SGD),
    ("masks-missing-batch-2", MASK, "pytorch/vision#2144", without("masks"), TWO),
    ("masks-list", MASK, "pytorch/vision#2325", entry("masks", Tensor.tolist), GROUP),
    ("masks-one-for-all", MASK, "pytorch/vision#3069", entry("masks", lambda v: v.sum(0)), BATCH),
    ("masks-short", MASK, "pytorch/vision#2300", entry("masks", lambda v: v[:1]), ADAM),
    ("image-rgba", PIXEL, "pytorch/vision#2720", picture(four_channels), SGD),
    ("image-rgba-batch-1", PIXEL, "pytorch/vision#2720", picture(four_channels), ONCE),
    ("image-rgba-retina", PIXEL, "pytorch/vision#2720", picture(four_channels), RETINA),
    ("image-two-channels", PIXEL, "pytorch/vision#4043", picture(lambda v: v[:2]), FASTER),
    ("image-channels-last", PIXEL, "pytorch/vision#2263", picture(lambda v: v.permute(1, 2, 0)), TWO),
    ("image-flat", PIXEL, "pytorch/vision#3034", picture(lambda v: v[0]), GROUP),
    ("image-none", PIXEL, "pytorch/vision#1640", picture(lambda v: None), SGD),
    ("target-none", BOX, "pytorch/vision#1640", lambda image, target: (image, None), ADAM),
)
ALL = (
    ("labels-float", LABEL, "pytorch/vision#2740", entry("labels", Tensor.float), TWO),
    ("boxes-scored", BOX, "pytorch/vision#2720", entry("boxes", scored), GROUP),
    ("image-rgba", PIXEL, "pytorch/vision#2720", picture(four_channels), BATCH),
    ("masks-missing", MASK, "pytorch/vision#2144", without("masks"), SGD),
    ("labels-missing", LABEL, "pytorch/vision#1598", without("labels"), RETINA),
)
FORMS = (
    *(
        Scenario(f"form-{name}", code, source, handed_out(change, nameless=name == "target-none"), setup, ONE)
        for name, code, source, change, setup in ROWS
    ),
    *(
        Scenario(f"form-{name}-all", code, source, handed_out(change, every=True), setup, verdict=True, onset=0)
        for name, code, source, change, setup in ALL
    ),
)
