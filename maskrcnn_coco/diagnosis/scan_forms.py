"""Forms that a detector does not take: a missing key, a column where a row is expected, another dtype, four channels.

Looked at only after the model raised an error, or the guard's input check refused the batch: what a caller's own model
takes is its own business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.diagnosis.facts import InputFault, TargetFault

CODES = {"boxes": "DATA_BOX", "labels": "DATA_LABEL", "masks": "DATA_MASK"}
SHAPES = {"boxes": "(N, 4)", "labels": "(N,)", "masks": "(N, H, W)"}


def scan_forms(
    batch: Any, model: nn.Module, *, refused: bool, raised: str
) -> tuple[list[TargetFault], list[InputFault]]:
    """What torchvision's detection contract does not allow in a batch of images and targets.

    Args:
        refused: the guard did not let the batch through to native code, and no replay must.
        raised: what the model raised: a key that it names is one that it needs.
    """
    targets: list[TargetFault] = []
    inputs: list[InputFault] = []
    batch = getattr(batch, "detection", batch)  # of a loop of somebody's own: None where it is no detector's
    if batch is None:
        return targets, inputs
    channels = len(getattr(getattr(model, "transform", None), "image_mean", None) or ()) or None
    needed = _needed(model, raised)
    for image, target, image_id in zip(batch.images, batch.targets, batch.image_ids, strict=True):
        what = _image(image, channels, whole="floating type" not in raised)
        if what is not None:
            inputs.append(InputFault(image_id, what, "before", refused, form=True))
        for key, fault in _target(image, target, needed):
            targets.append(TargetFault(CODES[key], image_id, None, fault, refused, form=True))
    return targets, inputs


def _needed(model: nn.Module, raised: str) -> set[str]:
    heads = getattr(model, "roi_heads", None)
    found = {"boxes", "labels"} if hasattr(model, "transform") else set()
    if getattr(heads, "mask_predictor", None) is not None:
        found.add("masks")
    return found | {k for k in CODES if raised.startswith(f"KeyError: '{k}'")}


def _image(image: Any, channels: int | None, *, whole: bool) -> str | None:
    """What is wrong with one image. ``whole``: bytes of 0..255 are fine, as they are scaled before the model."""
    if not isinstance(image, Tensor):
        return f"the image is a {type(image).__name__}, expected a tensor float32 (3, H, W) in 0..1"
    if image.layout != torch.strided or image.is_meta:
        kind = "meta tensor, without data" if image.is_meta else f"tensor of layout {_name(image.layout)}"
        return f"the image is a {kind}, expected a dense one, float32 (3, H, W) in 0..1"
    if image.ndim != 3:
        return f"the image has shape {tuple(image.shape)}, expected (3, H, W)"
    if not image.numel():
        return f"the image has no pixels: its shape is {tuple(image.shape)}"
    if channels is not None and image.shape[0] != channels:
        return f"the image has {image.shape[0]} channels, the model expects {channels}"
    if image.dtype is not torch.float32 and not (whole and image.dtype is torch.uint8):
        return f"the image is {_name(image.dtype)}, expected float32 in 0..1"
    return None


def _target(image: Any, target: Any, needed: set[str]) -> list[tuple[str, str]]:
    """(key, what is wrong) of one target."""
    if not isinstance(target, Mapping):
        return [("boxes", f"the target is a {type(target).__name__}, expected a dict with boxes and labels")]
    found: list[tuple[str, str]] = []
    for key in CODES:
        value = target.get(key)
        if value is None:
            if key in needed and not (key == "masks" and "outlines" in target):
                found.append((key, f"the target has no '{key}': its keys are {', '.join(map(str, target)) or 'none'}"))
        elif not isinstance(value, Tensor):
            found.append((key, f"{key} is a {type(value).__name__}, expected a tensor {SHAPES[key]}"))
        elif (what := _tensor(key, value)) is not None:
            found.append((key, what))
    if found:
        return found
    return _together(image, target)


def _tensor(key: str, value: Tensor) -> str | None:
    shape, given = tuple(value.shape), f"{key} has shape {tuple(value.shape)}"
    right = {"boxes": value.ndim == 2 and shape[-1:] == (4,), "labels": value.ndim == 1, "masks": value.ndim == 3}
    if not right[key]:
        return f"{given}, expected {SHAPES[key]}"
    if key == "labels" and value.dtype != torch.int64:
        return f"labels are {_name(value.dtype)}, expected int64"
    return None


def _together(image: Any, target: Mapping[str, Any]) -> list[tuple[str, str]]:
    boxes, labels, masks = (target.get(k) for k in CODES)
    count = len(boxes) if isinstance(boxes, Tensor) else None
    if count is None:
        return []
    found = []
    if isinstance(labels, Tensor) and len(labels) != count:
        found.append(("labels", f"{len(labels)} labels for {count} boxes"))
    if isinstance(masks, Tensor) and len(masks) != count:
        found.append(("masks", f"{len(masks)} masks for {count} boxes"))
    elif (
        isinstance(masks, Tensor)
        and isinstance(image, Tensor)
        and image.numel()  # masks do not have to fit an image that has no pixels
        and count
        and tuple(masks.shape[-2:]) != tuple(image.shape[-2:])
    ):
        found.append(("masks", f"masks of {tuple(masks.shape[-2:])} for an image of {tuple(image.shape[-2:])}"))
    return found


def _name(dtype: torch.dtype | torch.layout) -> str:
    return str(dtype).removeprefix("torch.")
