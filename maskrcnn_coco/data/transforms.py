"""Augmentation: what is done to a sample, drawn from a counter; and how image, boxes and masks follow it.

Sizes follow torchvision's detection transform exactly. What becomes of masks is in `outlines`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

from maskrcnn_coco.data.augment import LIGHT, Amount, Policy, draw_scale, generator
from maskrcnn_coco.data.plan import mix

FLIP = 0.5
"""Probability of a horizontal flip, where there is one."""


class Recipe(NamedTuple):
    """What happens to one image. ``height``, ``width``: after resizing, pixels."""

    height: int
    width: int
    flip: bool = False
    brightness: float = 1.0
    contrast: float = 1.0


def draw_recipe(
    seed: int,
    epoch: int,
    image_id: int,
    size: tuple[int, int],
    min_size: int,
    max_size: int,
    policy: Policy = LIGHT,
    *,
    least: float = 0.0,
    salt: int = 0,
) -> Recipe:
    """The recipe of a training image of ``size`` (height, width): a pure function of its arguments.

    Args:
        min_size, max_size: sides that scale 1 is resized to, pixels.
        policy: its flip, scale, brightness and contrast; the rest of it comes after, in `augmented`.
        least: a jittered scale is not below this.
        salt: other numbers for the same image, where it gives its objects to another one; 0: its own.
    """
    more = (salt,) if salt else ()
    a, b, c, d = (int.from_bytes(part, "little") / 2.0**64 for part in _quarters(mix(seed, epoch, image_id, *more)))
    steps = policy.scale.steps
    rng = generator(seed, epoch, image_id, 5, *more)
    if steps > 1:
        scales = np.linspace(policy.scale.low, policy.scale.high, steps).round(6)
        scale = float(scales[int(b * steps)])
    else:
        scale = draw_scale(policy, rng, least)
    height, width = output_size(*size, round(min_size * scale), round(max_size * max(1.0, scale)))
    flip = policy.flip in ("horizontal", "both") and a < FLIP
    return Recipe(height, width, flip, _light(policy.brightness, c, rng), _light(policy.contrast, d, rng))


def _light(op: Amount, place: float, rng: np.random.Generator) -> float:
    return 1 + op.amount * (2 * place - 1) if rng.random() < op.p else 1.0


def _quarters(data: bytes) -> list[bytes]:
    return [data[at : at + 8] for at in range(0, 32, 8)]


def output_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Size after resizing, as torchvision's ``GeneralizedRCNNTransform`` computes it, and at least 1 pixel."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return max(1, int(height * scale)), max(1, int(width * scale))


def change_image(pixels: np.ndarray, recipe: Recipe) -> Tensor:
    """``pixels`` uint8 (H, W, 3) RGB → uint8 (3, recipe.height, recipe.width), contiguous.

    Bilinear without antialiasing, because the model resizes so in evaluation. Light and flip come first: most images
    grow, and both cost by the pixel.
    """
    if recipe.brightness != 1.0 or recipe.contrast != 1.0:
        pixels = _relight(pixels, recipe.brightness, recipe.contrast)
    image = torch.from_numpy(pixels).permute(2, 0, 1)
    if recipe.flip:
        image = F.horizontal_flip(image)
    height, width = image.shape[-2:]
    if (height, width) != (recipe.height, recipe.width):
        # Where an image grows, antialiasing changes nothing, and torch's path with it is several times faster.
        grows = recipe.height >= height and recipe.width >= width
        image = F.resize(image, [recipe.height, recipe.width], antialias=grows)
    return image.contiguous()


def _relight(pixels: np.ndarray, brightness: float, contrast: float) -> np.ndarray:
    """Times ``brightness``, then spread by ``contrast`` around the mean of all channels: one table look-up a byte."""
    bright = np.minimum(np.arange(256) * brightness, 255.0)
    flat = np.ascontiguousarray(pixels).reshape(-1)
    # 13 has no factor in common with 3 channels; 70,000 of 920,000 values give the mean of a photo to a tenth.
    mean = bright[flat[::13]].mean()
    table = np.clip(np.rint(contrast * bright + (1 - contrast) * mean), 0, 255).astype(np.uint8)
    changed = bytearray(flat.data).translate(table.tobytes())
    return np.frombuffer(changed, np.uint8).reshape(pixels.shape)


def change_boxes(boxes: np.ndarray, size: tuple[int, int], recipe: Recipe) -> np.ndarray:
    """COCO xywh float64 (N, 4) on an image of ``size`` → xyxy float32 (N, 4) on the changed one, clamped to it.

    NaN stays NaN: bad numbers are for the guard to refuse, not for a transform to hide.
    """
    height, width = size
    xyxy = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    xyxy *= np.array([recipe.width / width, recipe.height / height] * 2)
    if recipe.flip:
        xyxy[:, [0, 2]] = recipe.width - xyxy[:, [2, 0]]
    return np.clip(xyxy, 0, [recipe.width, recipe.height] * 2).astype(np.float32)
