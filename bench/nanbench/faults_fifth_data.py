"""Data that is wrong beside something else, only now and then, in several images, or in one class alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from nanbench.faults_forms import Change, entry, picture
from nanbench.faults_fourth import replaced
from nanbench.faults_lr import rates
from nanbench.faults_state import FC6, between, weight
from nanbench.faults_wild import set_by_hook, times
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import CLASSES

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
BOX, LABEL, MASK, PIXEL, LR = "DATA_BOX", "DATA_LABEL", "DATA_MASK", "DATA_PIXEL", "LR_TOO_HIGH"
OWN_DATA = "pytorch/vision, own data sets"
Fault = Callable[[Scene], None]


def always(step: int) -> bool:
    """At every draw."""
    return True


def drawn(changes: Mapping[int, Change], when: Callable[[int], bool] = always) -> Fault:
    """Images at these distances from the bad one are as their change leaves them, at the steps that ``when`` names."""

    def fault(scene: Scene) -> None:
        places = {(scene.culprit + away) % len(scene.samples): change for away, change in changes.items()}
        scene.also_bad = [p for p in places if p != scene.culprit]

        def draw(index: int) -> Any:
            image, target = scene.samples[index]
            pair = image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
            return places[index](*pair) if index in places and when(scene.step) else pair

        scene.draw = draw

    return fault


def together(*faults: Fault) -> Fault:
    """Several things are wrong in one run."""

    def fault(scene: Scene) -> None:
        for one in faults:
            one(scene)

    return fault


def nan_corner(image: Tensor) -> Tensor:
    """A few pixels without a number."""
    image[:, :2, :2] = NAN
    return image


def inf_row(image: Tensor) -> Tensor:
    """One row divided by 0."""
    image[1, 5] = INF
    return image


def inverted(boxes: Tensor) -> Tensor:
    """The first box's corners are exchanged."""
    boxes[0] = boxes[0, [2, 3, 0, 1]]
    return boxes


def nan_box(boxes: Tensor) -> Tensor:
    """The last box was interpolated between a frame and none."""
    boxes[-1, 2] = NAN
    return boxes


def past_the_end(labels: Tensor) -> Tensor:
    """The first object has a class that the head does not."""
    labels[0] = CLASSES + 1
    return labels


def bytes_mask(masks: Tensor) -> Tensor:
    """0 and 255."""
    return masks * 255


def nan_masks(masks: Tensor) -> Tensor:
    """Soft masks, of which one was divided by its maximum of 0."""
    masks = masks.float()
    masks[0, 30:] = NAN
    return masks


def steep(start: int, stop: int, factor: float) -> Fault:
    """The rates of every group are ``factor`` times as high, for some steps."""
    return set_by_hook(start, stop, times(factor))


def wrong_flip(scene: Scene) -> None:
    """A flip, at every other step, that forgets to exchange left and right where all objects are of one class."""
    alike = [p for p, (_, t) in enumerate(scene.samples) if int(t["labels"].min()) == int(t["labels"].max()) == 2]
    scene.also_bad = alike = sorted({*alike, scene.culprit})

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        target = {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        if scene.step % 2 == 0:
            return image.clone(), target
        boxes = target["boxes"]
        boxes[:, 0::2] = 64 - boxes[:, 0::2]
        if index not in alike:
            target["boxes"] = boxes[:, [2, 1, 0, 3]]
        return image.flip(2), {**target, "masks": target["masks"].flip(2)}

    scene.draw = draw


def one_class(scene: Scene) -> None:
    """Class 3 of the list has the number 4 in the annotations of one team: past the end, wherever it stands."""
    for place, (_, target) in enumerate(scene.samples):
        if (bool((target["labels"] == 3).any()) and place % 3 == 0) or place == scene.culprit:
            target["labels"][0 if place == scene.culprit else target["labels"] == 3] = 4
            scene.also_bad.append(place)


def last_of_epoch(scene: Scene) -> None:
    """The images of the last batch of the first epoch, by another worker: a NaN in a box, at that step alone."""
    places = scene.order(scene.per_epoch - 1)[0]
    scene.also_bad = places[:2]

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        pair = image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        bad = index in places[:2] and scene.step == scene.per_epoch - 1
        return entry("boxes", nan_box)(*pair) if bad else pair

    scene.draw = draw


def after_resume(scene: Scene) -> None:
    """The run is interrupted after step 12 and goes on with a folder in which one picture is broken."""
    scene.on_resume = lambda state: None
    drawn({0: picture(inf_row)}, lambda step: step >= 12)(scene)


def odd_epochs(step: int) -> bool:
    """The second and the fourth epoch."""
    return step // 6 % 2 == 1


def both(first: Change, second: Change) -> Change:
    """Two things are wrong with one item."""
    return lambda image, target: second(*first(image, target))


THREE = {0: picture(nan_corner), 4: entry("labels", past_the_end), 9: entry("masks", bytes_mask)}
TWO_FAULTS = (
    Scenario("fifth-pixel-then-rate", PIXEL, "nan_cases R-D4",
             together(drawn({0: picture(nan_corner)}), rates(clip=0.0), steep(14, 18, 1e3)), Setup(accumulate=4),
             together=(PIXEL, LR)),
    Scenario("fifth-box-and-rate", BOX, "facebookresearch/Detectron#676",
             together(drawn({0: entry("boxes", inverted)}), rates(0.5, warmup=0)), Setup("adamw", way="guard"),
             together=(BOX, LR)),
    Scenario("fifth-glitch-then-box", "TRANSIENT", "NVIDIA/apex#1322",
             together(replaced("backbone.body.layer2", (4,), 1e30),
                      drawn({0: entry("boxes", nan_box)}, lambda step: step >= 6)),
             Setup(batch=2, way="guard"), together=("TRANSIENT", BOX), onset=4),
    Scenario("fifth-flip-and-label", LABEL, "AlexeyAB/darknet#5547",
             together(drawn({0: entry("labels", past_the_end)}), between(9, weight(f"{FC6}.weight", -3e37))),
             Setup(norm="group", batch=2), together=("TRANSIENT", LABEL)),
    Scenario("fifth-pixel-and-heads", PIXEL, "facebookresearch/detectron2#508",
             together(drawn({0: picture(inf_row)}), rates(heads=100)), Setup(precision="bf16", way="attach"),
             together=(PIXEL, LR)),
)  # fmt: skip
SEVERAL = (
    Scenario("fifth-three-kinds", PIXEL, OWN_DATA, drawn(THREE), Setup("adamw", norm="group", batch=1), ONE,
             together=(PIXEL, LABEL, MASK)),
    Scenario("fifth-three-kinds-guard", PIXEL, OWN_DATA, drawn(THREE), Setup(accumulate=2, way="guard"), ONE,
             together=(PIXEL, LABEL, MASK)),
    Scenario("fifth-one-image-twice", PIXEL, OWN_DATA,
             drawn({0: both(picture(nan_corner), entry("boxes", inverted))}), Setup(precision="bf16", accumulate=4),
             ONE, also=(BOX,)),
    Scenario("fifth-wrong-flip", BOX, "albumentations-team/albumentations#459", wrong_flip,
             Setup("adam", way="guard"), ONE),
    Scenario("fifth-one-class", LABEL, OWN_DATA, one_class, Setup(model="retina", way="guard"), ONE),
    Scenario("fifth-last-of-epoch", BOX, OWN_DATA, last_of_epoch, Setup("adamw", norm="group", way="guard"), ONE,
             onset=5),
    Scenario("fifth-comes-and-goes", PIXEL, OWN_DATA, drawn({0: picture(nan_corner)}, odd_epochs),
             Setup(precision="fp16", accumulate=4), ONE),
    Scenario("fifth-after-resume", PIXEL, OWN_DATA, after_resume, Setup("adamw", norm="batch"), ONE,
             needs=("resume",)),
    Scenario("fifth-masks-nan-fp16", MASK, OWN_DATA, drawn({0: entry("masks", nan_masks)}),
             Setup(precision="fp16", accumulate=4, way="attach"), ONE),
)  # fmt: skip
FIFTH_DATA: tuple[Scenario, ...] = (*TWO_FAULTS, *SEVERAL)
