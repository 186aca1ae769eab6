"""What a sample must look like for torchvision's detectors, and for each other form the line that makes it so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

TAKEN = "return what torchvision's detection models take"


class Form(NamedTuple):
    """What keeps a sample from being read, in words that are the same for each sample of its kind, and what to do."""

    what: str
    fix: str = TAKEN


def form_of(image: Any, target: Any, channels: int | None = None, *, masks: bool = False) -> Form | None:
    """What keeps a sample from being read as (image (3, H, W), target dict), or None.

    Args:
        channels: of the images that the model takes; None: not known.
        masks: the model learns masks, as torchvision's does; others may take them in any form.
    """
    return _image(image, channels) or _target(target, masks) or _together(image, target)


def _image(image: Any, channels: int | None) -> Form | None:
    if not isinstance(image, Tensor):
        return Form(f"the image is {type(image).__name__}, expected float32 (3, H, W) in 0..1")
    if image.ndim != 3:
        fix = "image = image[0]: a data set gives one image" if image.ndim == 4 else TAKEN
        return Form(f"the image is a tensor of {image.ndim} dimensions, expected float32 (3, H, W) in 0..1", fix)
    if image.shape[0] not in (1, 3) and image.shape[-1] in (1, 3):
        return Form("the image is (H, W, 3): channels come first, (3, H, W)", "image = image.permute(2, 0, 1)")
    if image.is_complex() or not image.numel():
        got = f"complex, {image.dtype}" if image.is_complex() else f"empty, of shape {tuple(image.shape)}"
        return Form(f"the image is {got}, expected float32 (3, H, W) in 0..1")
    if channels is not None and image.shape[0] not in (1, channels):  # one is spread to all by broadcasting
        fix = "image = image[:3]: without transparency" if (image.shape[0], channels) == (4, 3) else TAKEN
        return Form(f"the image has {image.shape[0]} channels, the model takes {channels}", fix)
    return None


def _target(target: Any, learned: bool) -> Form | None:
    if not isinstance(target, Mapping):
        return Form(f"the target is {type(target).__name__}, expected a dict")
    missing = [k for k in ("boxes", "labels") if k not in target]
    if missing:
        has = ", ".join(map(repr, target)) or "nothing"
        return Form(f"the target has no {' and no '.join(map(repr, missing))}, only {has}", _renamed(target))
    for name in ("boxes", "labels"):
        if not isinstance(target[name], Tensor):
            line = f'target["{name}"] = torch.as_tensor(target["{name}"])'
            if name == "boxes":
                line = 'target["boxes"] = torch.as_tensor(target["boxes"], dtype=torch.float32).reshape(-1, 4)'
            return Form(
                f"target[{name!r}] is {type(target[name]).__name__}, expected a tensor: torch.as_tensor(…)", line
            )
    masks = target.get("masks")
    if masks is None or not learned or (isinstance(masks, Tensor) and masks.layout == torch.strided):
        return None
    return _no_tensor(masks)


def _renamed(target: Mapping[str, Any]) -> str:
    """The line for keys under another name."""
    for name, others in (("boxes", ("bboxes", "bbox", "box")), ("labels", ("class_labels", "label", "category_id"))):
        known = next((o for o in others if o in target), None)
        if name not in target and known is not None:
            return f'target["{name}"] = target.pop("{known}")'
    return TAKEN


def _no_tensor(masks: Any) -> Form | None:
    """Masks that are anything but a dense tensor, and how each becomes one. An empty list has none to convert."""
    if isinstance(masks, Tensor):
        return Form(f"target['masks'] is {masks.layout}, expected a dense tensor (N, H, W)", "masks = masks.to_dense()")
    if isinstance(masks, (list, tuple)):
        if not masks:
            return None
        first = masks[0]
        kind = f"list of {type(first).__name__}"
        lines = {
            "Tensor": 'target["masks"] = torch.stack(list(target["masks"]))',
            "ndarray": 'target["masks"] = torch.as_tensor(np.stack(target["masks"]), dtype=torch.uint8)',
            "dict": 'target["masks"] = torch.as_tensor(pycocotools.mask.decode(target["masks"])).permute(2, 0, 1)',
        }
        line = lines.get(type(first).__name__)
        if line is None and isinstance(first, (list, tuple)):
            kind, line = (
                "list of polygons",
                "draw each polygon: pycocotools.mask.decode(mask.merge(mask.frPyObjects(…)))",
            )
        return Form(f"target['masks'] is a {kind}, expected a tensor (N, H, W)", line or TAKEN)
    line = 'target["masks"] = torch.as_tensor(target["masks"], dtype=torch.uint8)'
    if getattr(masks, "ndim", 0) == 3 and masks.shape[0] > masks.shape[-1]:
        line = 'target["masks"] = torch.as_tensor(target["masks"], dtype=torch.uint8).permute(2, 0, 1)'
    return Form(f"target['masks'] is {type(masks).__name__}, expected a tensor (N, H, W)", line)


def _together(image: Tensor, target: Mapping[str, Any]) -> Form | None:
    boxes, labels, masks = target["boxes"], target["labels"], target.get("masks")
    if boxes.numel() and (boxes.ndim != 2 or boxes.shape[-1] != 4):
        return Form(f"target['boxes'] has shape {_any(boxes)}, expected (N, 4)")
    count = len(boxes) if boxes.numel() else 0
    if labels.numel() and (labels.is_floating_point() or labels.is_complex()):
        return Form(f"target['labels'] is {labels.dtype}, expected int64: labels.long()", "labels = labels.long()")
    if count and labels.ndim != 1:
        return Form(f"target['labels'] has shape {_any(labels)}, expected (N,)", "labels = labels.reshape(-1)")
    if labels.numel() != count:
        return Form("target has another number of labels than of boxes", "filter boxes, labels and masks alike")
    if isinstance(masks, Tensor) and masks.layout == torch.strided and count:
        return _masks(masks, image, count)
    return None


def _masks(masks: Tensor, image: Tensor, count: int) -> Form | None:
    size = tuple(image.shape[-2:])
    if masks.ndim == 4 and masks.shape[1] == 1 and len(masks) == count:
        return Form("target['masks'] has shape (N, 1, H, W), expected (N, H, W)", "masks = masks[:, 0]")
    if masks.ndim == 3 and len(masks) != count and tuple(masks.shape) == (*size, count):
        return Form("target['masks'] has shape (H, W, N), expected (N, H, W)", "masks = masks.permute(2, 0, 1)")
    if masks.ndim == 2 or (masks.ndim == 3 and len(masks) == 1 and count > 1):
        fix = "masks = instances == torch.arange(1, count + 1)[:, None, None]"
        return Form("target['masks'] is one map for all objects, expected (N, H, W): one mask an object", fix)
    if masks.ndim != 3 or len(masks) != count:
        return Form(
            "target['masks'] has another number of masks than of boxes, expected (N, H, W)", "filter both alike"
        )
    if tuple(masks.shape[-2:]) != size:
        what = f"masks are {tuple(masks.shape[-2:])} and the image is {size}: (H, W) must be equal"
        return Form(what, "resize the masks with the image, by nearest neighbours")
    return None


def _any(value: Tensor) -> str:
    """A shape without the number of objects, which differs from sample to sample."""
    return f"({', '.join(['N', *map(str, value.shape[1:])])})"
