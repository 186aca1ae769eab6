"""Images and targets to the network's size: constants made once, nothing resized that has its size already."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class FastTransform(GeneralizedRCNNTransform):
    """`GeneralizedRCNNTransform` with the same numbers; images land in channels-last memory."""

    def normalize(self, image: Tensor) -> Tensor:
        """``image`` (3, H, W) float in 0..1, minus mean, over standard deviation."""
        if not image.is_floating_point():
            raise TypeError(f"images must be of floating type (in range [0, 1]), got {image.dtype}")
        mean, std = self._constants(image.dtype, image.device)
        return (image - mean) / std

    def _constants(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation, (3, 1, 1); made again when somebody changed them."""
        key = (dtype, device, tuple(self.image_mean), tuple(self.image_std))
        if self.__dict__.get("_constants_key") != key:
            pair = [torch.as_tensor(v, dtype=dtype, device=device)[:, None, None] for v in key[2:]]
            self.__dict__.update(_constants_key=key, _constants_value=(pair[0], pair[1]))
        return self.__dict__["_constants_value"]

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        """As torchvision's: draws the size from torch's generator in training, resizes image, masks and boxes."""
        if self.fixed_size is not None or (target is not None and "keypoints" in target):
            return super().resize(image, target)
        if self.training and self._skip_resize:
            return image, target
        sides = [*self.min_size] if isinstance(self.min_size, (tuple, list)) else [self.min_size]
        side = self.torch_choice(sides) if self.training else sides[-1]
        height, width = image.shape[-2:]
        scale = min(side / min(height, width), self.max_size / max(height, width))
        size = (math.floor(height * scale), math.floor(width * scale))
        if size != (height, width):
            image = F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]
            if target is not None:
                target = _resized(target, (height, width), size)
        return image, target

    def batch_images(self, images: list[Tensor], size_divisible: int = 32) -> Tensor:
        """Images (3, h, w) padded with 0 to a common multiple of ``size_divisible``: (B, 3, H, W), channels-last."""
        height, width = (
            math.ceil(max(i.shape[axis] for i in images) / size_divisible) * size_divisible for axis in (1, 2)
        )
        shape = (len(images), images[0].shape[0], height, width)
        batch = images[0].new_zeros(shape).contiguous(memory_format=torch.channels_last)
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]].copy_(image)
        return batch


def _resized(target: dict[str, Any], before: tuple[int, int], after: tuple[int, int]) -> dict[str, Any]:
    """Boxes (N, 4) scaled and masks (N, H, W) resampled (nearest) from size ``before`` to ``after``."""
    target = dict(target)
    boxes = target["boxes"]
    height, width = (
        torch.tensor(a, dtype=torch.float32) / torch.tensor(b, dtype=torch.float32)
        for a, b in zip(after, before, strict=True)
    )
    target["boxes"] = boxes * torch.stack((width, height, width, height)).to(boxes.device, non_blocking=True)
    if "masks" in target:
        masks = target["masks"]
        target["masks"] = F.interpolate(masks[:, None].to(torch.uint8), size=after, mode="nearest")[:, 0]
    return target
