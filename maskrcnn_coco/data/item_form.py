"""What a data set of somebody's own yields in place of (image tensor, target dict), in words, and the cure for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from maskrcnn_coco.errors import DataError

EXPECTED = "(image float32 tensor (3, H, W) in 0..1, target dict)"
WRAP = (
    "wrap it: torchvision.datasets.wrap_dataset_for_transforms_v2(dataset, target_keys=['image_id', 'boxes', 'labels', "
    "'masks']), with transforms=v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])"
)
_IMAGES = ("image", "img", "pixel_values", "x", "input")


def is_sample(item: Any) -> bool:
    """Whether ``item`` is an image tensor and a target dict."""
    return (
        isinstance(item, (tuple, list)) and len(item) == 2 and isinstance(item[0], Tensor) and isinstance(item[1], dict)
    )


def refusal(item: Any, index: int) -> DataError:
    """The error for an ``item`` that is none, with the line that makes one of it where that is plain."""
    what, fix = _named(item)
    parts = [type(i).__name__ for i in item] if isinstance(item, (tuple, list)) else type(item).__name__
    got = f"({', '.join(parts)})" if isinstance(parts, list) else parts
    return DataError(f"item {index} of the data set is {what}", got=got, expected=EXPECTED, fix=fix)


def _named(item: Any) -> tuple[str, str]:
    if item is None:
        return (
            "None",
            "leave such images out of the list that the data set counts: every index gives an image and a target",
        )
    if isinstance(item, Mapping):
        key = next((k for k in _IMAGES if k in item), None)
        line = f'item = dict(dataset[i]); return item.pop("{key}"), item' if key else "return image, target"
        return f"one dict ({', '.join(map(repr, list(item)[:8]))}), no pair of image and target", line
    if not isinstance(item, (tuple, list)):
        return "no pair of image and target", "return image, target"
    if len(item) != 2:
        return f"{len(item)} values, no pair of image and target", "return image, target; put the rest into the target"
    return _pair(*item)


def _pair(image: Any, target: Any) -> tuple[str, str]:
    if isinstance(image, Mapping) and isinstance(target, Tensor):
        return "the target and the image, in this order", "return image, target"
    if isinstance(target, (list, tuple)):
        of = next((t for t in target if isinstance(t, Mapping)), None)
        if of is not None and {"bbox", "segmentation", "category_id"} & set(of):
            return "an image and COCO's annotations as they stand in the file", WRAP
        if of is not None or not target:
            fix = 'return one dict of all objects: {"boxes": (N, 4), "labels": (N,), "masks": (N, H, W)}'
            return "an image and a list, not one dict of all objects", fix
    if not isinstance(target, Mapping):
        return f"an image and {type(target).__name__}, not a dict", "return image, target"
    name = type(image).__name__
    if isinstance(image, Tensor):  # and the target is a mapping that is no dict
        return f"an image and {type(target).__name__}, not a dict", "return image, dict(target)"
    if name == "ndarray":
        line = "image = torch.from_numpy(image).permute(2, 0, 1) / 255"
        if getattr(image, "ndim", 3) == 2:
            line = "image = torch.from_numpy(image)[None].expand(3, -1, -1) / 255"
        return "an image that is a NumPy array, not a tensor", f"{line}, where its values go to 255"
    if hasattr(image, "convert") and hasattr(image, "size"):
        return (
            "an image of Pillow, not a tensor",
            'image = torchvision.transforms.functional.to_tensor(image.convert("RGB"))',
        )
    return f"an image of type {name}, not a tensor", "return image, target"
