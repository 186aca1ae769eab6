"""torchvision's resizing as its eager code computes it, in a form that tracing and scripting keep.

torchvision computes the scale in float32 where it is traced or scripted and in float64 elsewhere: on one image size in
three, 100 × 60 at a longest side of 96 for example, an export would resize to 95 pixels what the checkpoint resizes
to 96, and boxes would move by tenths of a pixel.
"""

import math
from typing import Optional  # TorchScript reads annotations as they stand

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.onnx import operators
from torchvision.models.detection.transform import GeneralizedRCNNTransform


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
        shape = operators.shape_as_tensor(image)[-2:].to(torch.float64)
        # A number over a tensor would be computed as the tensor's reciprocal times the number, and rounded twice.
        limits = torch.tensor([float(self.min_size[-1]), float(self.max_size)], dtype=torch.float64)  # pyright: ignore[reportIndexIssue]
        sides = limits / torch.stack([shape.min(), shape.max()])
        size = torch.floor(shape * sides.min()).to(torch.int64)
        return F.interpolate(image[None], size=[size[0], size[1]], mode="bilinear", align_corners=False)[0]  # type: ignore[list-item]
