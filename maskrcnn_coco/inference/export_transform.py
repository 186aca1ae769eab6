"""torchvision's resizing of images and pasting of masks, as its eager code computes them, for tracing and scripting.

torchvision computes the scale in float32 where it is traced or scripted and in float64 elsewhere: on one image size in
three, 100 × 60 at a longest side of 96 for example, an export would resize to 95 pixels what the checkpoint resizes
to 96, and boxes would move by tenths of a pixel. `export_sizes` has the sides without a float64 in the graph.

Traced, it pastes masks in a loop, each cut to the image and filled up with rows and columns of zeros. Of a mask of
which one column is left, at the right side of the image, OpenVINO 2026.4 writes pixels far below the box; and of an
image of 1280 pixels the loop takes longer than the network. Here all masks are pasted by one product, and none is cut.
"""

import math
from typing import Optional  # TorchScript reads annotations as they stand

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.onnx import operators
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from maskrcnn_coco.inference.export_sizes import resized


class ExportTransform(GeneralizedRCNNTransform):
    """`GeneralizedRCNNTransform` in evaluation, without targets."""

    def resize(
        self,
        image: Tensor,
        target: Optional[dict[str, Tensor]] = None,  # noqa: UP045
    ) -> tuple[Tensor, Optional[dict[str, Tensor]]]:  # noqa: UP045
        """``image`` (3, H, W) with its short side at ``min_size``, or its long side at ``max_size``."""
        if torch.jit.is_scripting():  # pyright: ignore[reportPrivateImportUsage]
            height, width = image.shape[-2], image.shape[-1]
            scale = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))  # pyright: ignore[reportIndexIssue]
            size = [math.floor(height * scale), math.floor(width * scale)]
            return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0], target
        return self._traced(image), target

    @torch.jit.unused
    def _traced(self, image: Tensor) -> Tensor:
        height, width = operators.shape_as_tensor(image)[-2:]
        size = resized(height, width, int(self.min_size[-1]), int(self.max_size))  # pyright: ignore[reportIndexIssue]
        return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]  # type: ignore[arg-type]

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Boxes in pixels of the images as they came, and masks (N, 1, H, W) over the whole of them."""
        for i, (found, inner, original) in enumerate(zip(result, image_shapes, original_image_sizes)):  # noqa: B905
            boxes = resize_boxes(found["boxes"], list(inner), list(original))
            result[i]["boxes"] = boxes
            result[i]["masks"] = paste(found["masks"], boxes, original[0], original[1])
        return result


def paste(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
    """`torchvision.models.detection.roi_heads.paste_masks_in_image`, all masks at once.

    Args:
        masks: float (N, 1, M, M), 0..1, each in its box.
        boxes: float (N, 4), xyxy in pixels of the image.
        height, width: of the image, pixels.

    Returns:
        Float (N, 1, height, width).
    """
    side = masks.shape[-1] + 2
    padded = F.pad(masks[:, 0], [1, 1, 1, 1])
    middle, half = (boxes[:, 2:] + boxes[:, :2]) * 0.5, (boxes[:, 2:] - boxes[:, :2]) * 0.5
    half = half * (float(side) / float(masks.shape[-1]))
    first, last = (middle - half).to(torch.int64), (middle + half).to(torch.int64)
    rows = _shares(first[:, 1], last[:, 1], height, side)
    columns = _shares(first[:, 0], last[:, 0], width, side)
    return torch.matmul(torch.matmul(rows, padded), columns.transpose(1, 2))[:, None]


def _shares(first: Tensor, last: Tensor, length: int, side: int) -> Tensor:
    """(N, length, side): the share of each value in each pixel of a line, resized bilinearly into first to last."""
    pixels = (last - first + 1).clamp(min=1)[:, None]
    place = torch.arange(length, device=first.device)[None] - first[:, None]
    inside = (place >= 0) & (place < pixels)
    step = float(side) / pixels.to(torch.float32)
    at = ((place.to(torch.float32) + 0.5) * step - 0.5).clamp(min=0.0, max=float(side - 1))
    values = torch.arange(side, device=first.device).to(torch.float32)
    return (1.0 - (at[:, :, None] - values).abs()).clamp(min=0.0) * inside[:, :, None].to(torch.float32)
