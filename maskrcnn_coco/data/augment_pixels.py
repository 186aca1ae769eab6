"""A `Change` on pixels: uint8 (3, H, W) in, uint8 (3, h, w) out."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from maskrcnn_coco.data.augment import UNCHANGED, Change

_LUMA = (0.299, 0.587, 0.114)
_TO_YIQ = np.array([_LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135)])


def change_pixels(image: Tensor, change: Change) -> Tensor:
    """``image`` uint8 (3, H, W) after ``change``; geometry first, so that colour costs by what is left."""
    if change == UNCHANGED:
        return image
    image = turn(image, change)
    if change.grey or change.saturation != 1.0 or change.hue:
        image = _recolour(image, 0.0 if change.grey else change.saturation, change.hue)
    if change.blur:
        image = _blur(image, change.blur)
    if change.noise:
        image = _noise(image, change.noise, change.seed)
    if change.jpeg:
        image = _compressed(image, change.jpeg)
    if change.holes:
        image = image.clone()
        fill = mean_colour(image)
        for top, left, height, width in change.holes:
            image[:, top : top + height, left : left + width] = fill
    return image.contiguous()


def turn(image: Tensor, change: Change) -> Tensor:
    """The geometry of ``change`` alone: vertical flip, quarter turns, rotation, crop."""
    if change.vertical:
        image = image.flip(-2)
    if change.quarters:
        image = torch.rot90(image, change.quarters, (-2, -1))
    if change.degrees:
        fill = mean_colour(image).flatten().tolist()
        image = F.rotate(image, change.degrees, InterpolationMode.BILINEAR, fill=fill)
    if change.crop is not None:
        top, left, height, width = change.crop
        image = image[:, top : top + height, left : left + width]
    return image.contiguous()


def mean_colour(image: Tensor) -> Tensor:
    """uint8 (3, 1, 1): the mean of every 13th pixel, which a network that normalises sees as next to nothing."""
    return image.reshape(3, -1)[:, ::13].float().mean(1).round().to(torch.uint8)[:, None, None]


def _recolour(image: Tensor, saturation: float, hue: float) -> Tensor:
    """Saturation and hue as one matrix: the colour plane of YIQ scaled and turned, lightness as it was."""
    angle = 2 * np.pi * hue
    turn_plane = saturation * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    inner = np.eye(3)
    inner[1:, 1:] = turn_plane
    matrix = torch.from_numpy(np.linalg.inv(_TO_YIQ) @ inner @ _TO_YIQ).float()
    mixed = torch.einsum("rc,chw->rhw", matrix, image.float())
    return mixed.round_().clamp_(0, 255).to(torch.uint8)


def _blur(image: Tensor, sigma: float) -> Tensor:
    radius = max(1, round(3 * sigma))
    # Reflection needs more pixels than the radius on both sides.
    radius = min(radius, image.shape[-1] - 1, image.shape[-2] - 1)
    return image if radius < 1 else F.gaussian_blur(image, [2 * radius + 1] * 2, [sigma, sigma])


def _compressed(image: Tensor, quality: int) -> Tensor:
    # By Pillow: torchvision's codecs are to be removed.
    packed = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(packed, "jpeg", quality=quality)
    return torch.from_numpy(np.array(Image.open(packed))).permute(2, 0, 1)


def _noise(image: Tensor, sigma: float, seed: int) -> Tensor:
    rng = np.random.Generator(np.random.Philox(key=seed))
    noise = torch.from_numpy(rng.standard_normal(tuple(image.shape), dtype=np.float32))
    return (image.float() + sigma * noise).round_().clamp_(0, 255).to(torch.uint8)
