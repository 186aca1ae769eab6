"""Data of a seventh round: maps, words and numbers of other tasks, mixtures, casts, and empty things after a change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanbench.faults_fifth_data import Fault, drawn
from nanbench.faults_forms import Change, entry, picture
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
BOX, LABEL, MASK, PIXEL = "DATA_BOX", "DATA_LABEL", "DATA_MASK", "DATA_PIXEL"


def semantic(target: dict[str, Any]) -> Tensor:
    """int64 (H, W): the class of each pixel."""
    return (target["masks"].long() * target["labels"][:, None, None]).amax(0)


def added(key: str, make: Callable[[dict[str, Any]], Any]) -> Change:
    """A target of another task, made of what is there."""
    return lambda image, target: (image, {**target, key: make(target)})


def raw_ids(target: dict[str, Any]) -> Tensor:
    """The numbers of the annotators in a corner, not those of training."""
    ids = semantic(target)
    ids[:6, :6] = 19
    return ids


def signed_void(target: dict[str, Any]) -> Tensor:
    """Void as -1, where the loss ignores 255."""
    ids = semantic(target)
    ids[ids == 0] = -1
    return ids


def counted_from_one(target: dict[str, Any]) -> Tensor:
    """The last class of three, counted from 1."""
    return torch.tensor(3)


def empty_cell(target: dict[str, Any]) -> Tensor:
    """A row of a table with an empty cell."""
    return torch.tensor([0.3, NAN])


def log_of_zero(target: dict[str, Any]) -> Tensor:
    """The logarithm of a size of 0."""
    return torch.tensor([0.0, 0.4]).log()


def other_vocabulary(target: dict[str, Any]) -> Tensor:
    """A word of a larger vocabulary."""
    return torch.tensor([1, 30, 2])


def cast_from_nan(labels: Tensor) -> Tensor:
    """A missing class, read as a float and cast."""
    labels[-1] = -(2**63)
    return labels


def of_no_pixels(boxes: Tensor) -> Tensor:
    """The least and the greatest of a mask that a rotation has moved out of the picture."""
    boxes[0] = torch.tensor([INF, INF, -INF, -INF])
    return boxes


def trimap(masks: Tensor) -> Tensor:
    """1 inside, 2 outside, 3 along the edge."""
    inside = masks.bool()
    edge = inside & ~(inside.roll(2, 2) & inside.roll(-2, 2))
    return torch.where(inside, 1, 2).to(torch.uint8).masked_fill(edge, 3)


def light(image: Tensor) -> Tensor:
    """Radiance, where the camera was dazzled."""
    image[:, 12:14, 30:40] = INF
    return image


def exposed(image: Tensor) -> Tensor:
    """Radiance over an exposure of 0 seconds: 0 / 0 where it is dark, infinite elsewhere."""
    image = image.clone()
    image[:, :8] = 0.0
    return image / 0.0


def worker_of_others(step: int) -> bool:
    """From the second epoch on, at every other step."""
    return step >= 6 and step % 2 == 0


def mixed(lam: float, *steps: int) -> Fault:
    """Every picture of a batch is mixed with another one; at these steps the share is what a Beta(0, 0) gives."""

    def fault(scene: Scene) -> None:
        model: Any = scene.model
        usual = model.collate

        def collate(pairs: Any) -> Any:
            x, y = usual(pairs)
            share = lam if scene.active and scene.step in steps else 0.9
            return share * x + (1 - share) * x.flip(0), y

        model.collate = collate

    return fault


def pasted(scene: Scene) -> None:
    """An object is pasted into a picture whose cut-out has no pixels: its mean colour is 0 / 0, over its whole box."""

    def change(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        cut = image[:, 5:5, 5:5]
        image[:, 30:40, 30:40] -= cut.mean((1, 2))[:, None, None]
        return image, target

    drawn({0: change}, lambda step: step >= 9)(scene)


SEVENTH_DATA: tuple[Scenario, ...] = (
    # An attached loop whose loss raises is ended by that: only the verdict is asked for there.
    # A class that the head has not, in a map: of the labels, or of the mask that holds them.
    Scenario("seventh-map-raw-ids", LABEL, "https://github.com/mcordts/cityscapesScripts/issues/43",
             drawn({0: added("map", raw_ids)}), Setup(model="segment", way="guard"), ONE, also=(MASK,)),
    Scenario("seventh-map-minus", LABEL, "https://github.com/open-mmlab/mmsegmentation/issues/550",
             drawn({0: added("map", signed_void), 7: added("map", signed_void)}),
             Setup("adamw", model="segment", batch=2, way="attach"), also=(MASK,), open_end=True),
    Scenario("seventh-class-from-one", LABEL, "https://github.com/pytorch/pytorch/issues/1204",
             drawn({0: added("label", counted_from_one)}), Setup("adam", model="classify", way="guard"), ONE),
    Scenario("seventh-class-from-one-attach", LABEL, "https://github.com/pytorch/pytorch/issues/1204",
             drawn({0: added("label", counted_from_one)}), Setup(norm="batch", model="classify", way="attach"),
             open_end=True),
    Scenario("seventh-empty-cell", LABEL, "https://discuss.pytorch.org/t/getting-nan-after-first-iteration/25929",
             drawn({0: added("numbers", empty_cell)}), Setup("adamw", model="regress", way="guard"), ONE),
    Scenario("seventh-log-target", LABEL, "https://discuss.pytorch.org/t/nan-loss-in-regression/16216",
             drawn({0: added("numbers", log_of_zero), 5: added("numbers", log_of_zero)}),
             Setup(norm="group", model="regress", batch=2, way="attach")),
    # A word is neither a pixel nor a label; both say that the input holds a number that does not exist.
    Scenario("seventh-word-unknown", LABEL, "https://github.com/huggingface/transformers/issues/1805",
             drawn({0: added("words", other_vocabulary)}), Setup("adamw", model="text", way="guard"), ONE,
             also=(PIXEL,)),
    Scenario("seventh-encode-light", PIXEL, "https://github.com/AntixK/PyTorch-VAE/issues/10",
             drawn({0: picture(light)}), Setup("adamw", "bf16", model="encode", way="attach")),
    Scenario("seventh-critic-exposure", PIXEL, "https://github.com/eriklindernoren/PyTorch-GAN/issues/7",
             drawn({0: picture(exposed)}, lambda step: step >= 6), Setup("adam", model="critic", batch=2, way="guard"),
             ONE),
    Scenario("seventh-mixed-by-nan", PIXEL, "https://github.com/huggingface/pytorch-image-models/issues/1106",
             mixed(NAN, 9, 17), Setup(norm="group", model="classify", way="guard"), onset=9),
    Scenario("seventh-emptied-mask", BOX, "https://github.com/pytorch/vision/issues/4339",
             drawn({0: entry("boxes", of_no_pixels)}, lambda step: step >= 6), Setup("adamw", batch=2, way="guard"),
             ONE),
    Scenario("seventh-cast-label", LABEL, "https://github.com/facebookresearch/detectron2/issues/1154",
             drawn({0: entry("labels", cast_from_nan)}), Setup(accumulate=4, model="faster", way="guard"), ONE),
    Scenario("seventh-unscaled-worker", PIXEL, "https://github.com/open-mmlab/mmdetection/issues/2739",
             drawn({0: picture(lambda v: v * 255), 3: picture(lambda v: v * 255)}, worker_of_others),
             Setup(norm="batch", way="guard"), ONE),
    Scenario("seventh-trimap", MASK, "https://github.com/pytorch/vision/issues/2720",
             drawn({0: entry("masks", trimap)}), Setup("adamw", "bf16", way="guard"), ONE),
    Scenario("seventh-pasted", PIXEL, "https://github.com/conradry/copy-paste-aug/issues/12", pasted,
             Setup(model="fcos", batch=2), ONE),
)  # fmt: skip
