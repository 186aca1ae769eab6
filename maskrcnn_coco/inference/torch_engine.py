"""A torch detector behind a `Predictor`: a checkpoint's own model, or one in TorchScript."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskrcnn_coco.evaluation.detect import RAW, detections, pasted
from maskrcnn_coco.inference.detections import THRESHOLD, Found, Window, found_of, nothing, windows_of_full


class TorchEngine:
    """``model`` with torchvision's detection contract, on ``device``, in ``precision`` ("fp32", "bf16", "fp16")."""

    def __init__(self, model: nn.Module, device: torch.device | str, precision: str = "fp32") -> None:
        self.model: Any = model.eval().to(device)
        self.device = torch.device(device)
        self.precision = precision

    @property
    def batch_size(self) -> int:
        """Images at a time: a GPU is idle with one, a CPU is not."""
        return 1 if self.device.type == "cpu" else 8

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each."""
        tensors = [as_tensor(i) for i in images]
        outputs = detections(self.model, tensors, device=self.device, precision=self.precision)
        return [found_in(o, *i.shape[:2]) for o, i in zip(outputs, images, strict=True)]


def as_tensor(pixels: np.ndarray) -> Tensor:
    """float32 (3, H, W) in 0..1 of uint8 (H, W, 3)."""
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float().div_(255.0)


def found_in(output: dict[str, Tensor], height: int, width: int, threshold: float = THRESHOLD) -> Found:
    """A torchvision detector's output of one image, of ``height`` × ``width`` pixels.

    ``threshold``: the probability above which a pixel belongs to an object.
    """
    boxes = output["boxes"].detach().float().cpu().reshape(-1, 4)
    if len(boxes) == 0:
        return nothing()
    if RAW in output:
        fit = torch.nan_to_num(boxes)  # boxes that are not finite are left out below
        masks = pasted(output[RAW].detach().float().cpu(), fit, height, width, threshold)
        windows = [Window(x, y, m).trimmed() for x, y, m in masks]
    elif "masks" in output:
        windows = windows_of_full(output["masks"].detach().float().cpu().numpy(), threshold)
    else:
        windows = [_of_box(b, height, width) for b in torch.nan_to_num(boxes).tolist()]
    scores, labels = output["scores"].detach().float().cpu().numpy(), output["labels"].detach().cpu().numpy()
    return found_of(boxes.numpy(), scores, labels, windows)


def _of_box(box: list[float], height: int, width: int) -> Window:
    """A detector without masks: the whole box."""
    x0, y0 = (min(max(round(v), 0), m) for v, m in zip(box[:2], (width, height), strict=True))
    x1, y1 = (min(max(round(v), 0), m) for v, m in zip(box[2:], (width, height), strict=True))
    return Window(x0, y0, np.ones((max(y1 - y0, 0), max(x1 - x0, 0)), bool))
