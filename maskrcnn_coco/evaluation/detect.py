"""Detections of a model on images, as COCO results. Shared by evaluation and prediction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes

from maskrcnn_coco.data.images import too_thin
from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.system.exact_boxes import exact_boxes
from maskrcnn_coco.system.memory import ran_out

_DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}
RAW = "masks_of_boxes"
"""Where `detections` hands out a torchvision detector's masks, (N, 1, 28, 28) in their boxes."""


class Sized(Protocol):
    """An image and the size, in pixels, in which its results are wanted."""

    row: int
    image: Tensor
    height: int
    width: int


@dataclass
class Prediction:
    """``results``: COCO dicts, best first; image_id is the row, category_id the label. ``dropped``: non-finite ones."""

    results: list[dict[str, Any]] = field(default_factory=list)
    has_masks: bool = False
    dropped: int = 0


def infer(
    model: nn.Module, images: Sequence[Sized], *, device: torch.device | str, precision: str = "fp32"
) -> list[Prediction]:
    """Detections on ``images``, one `Prediction` each. The mode of every module is left as it was found."""
    outputs = detections(model, [i.image for i in images], device=device, precision=precision)
    return [_prediction(image, output) for image, output in zip(images, outputs, strict=True)]


def detections(
    model: nn.Module, images: Sequence[Tensor], *, device: torch.device | str, precision: str = "fp32"
) -> list[dict[str, Tensor]]:
    """What ``model`` answers to ``images``, float (3, H, W) in 0..1; see `infer`.

    A torchvision detector's masks come as (N, 1, 28, 28) in their boxes, under `RAW`, not under "masks".
    """
    device = torch.device(device)
    dtype = _DTYPES.get(precision)
    # no_grad, not inference_mode: tensors that a model caches here (anchors) must stay usable in training.
    half = torch.autocast(device.type, dtype=dtype or torch.bfloat16, enabled=dtype is not None)
    with torch.no_grad(), evaluating(model), _masks_of_boxes(model), half:
        return exact_boxes(model)([i.to(device) for i in images])


def infer_each(
    model: nn.Module, images: Sequence[Sized], *, device: torch.device | str, precision: str = "fp32"
) -> list[Prediction | DataError]:
    """`infer`, where an image that the model cannot take costs that image alone: a DataError stands in its place.

    Running out of memory is raised: it is the machine's fault, not the image's.
    """
    thin = [_too_thin(model, i) for i in images]
    fit = [i for i, problem in zip(images, thin, strict=True) if problem is None]
    found = iter(_inferred(model, fit, device, precision))
    return [next(found) if problem is None else problem for problem in thin]


def _inferred(
    model: nn.Module, images: list[Sized], device: torch.device | str, precision: str
) -> list[Prediction | DataError]:
    if not images:
        return []
    try:
        return list(infer(model, images, device=device, precision=precision))
    except Exception as e:
        if isinstance(e, MemoryError) or ran_out(e):
            raise
        if len(images) > 1:  # which of them was it?
            return [found for i in images for found in _inferred(model, [i], device, precision)]
        return [DataError(f"the model failed on it: {type(e).__name__}: {e}", fix="leave it out, or look at the model")]


def _too_thin(model: nn.Module, image: Sized) -> DataError | None:
    """Why torchvision's resizing leaves nothing of an image, if so: a side of 0 pixels."""
    longest = longest_side(model)
    height, width = (int(n) for n in image.image.shape[-2:])
    return None if longest is None else too_thin(height, width, longest)


def longest_side(model: nn.Module) -> int | None:
    """The longest side that a torchvision detector's own resizing lets an image have, pixels; None: it has none."""
    transform = getattr(model, "transform", None)
    return int(transform.max_size) if isinstance(transform, GeneralizedRCNNTransform) else None


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each module is back in the mode it had (frozen parts may differ from the rest)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def _masks_of_boxes(model: nn.Module) -> Iterator[None]:
    """Let a torchvision detector hand out its 28 × 28 masks instead of pasting each into an image of its own.

    Pasting 100 masks of 640 × 480 takes longer than the rest of the evaluation; here only each box is ever painted.
    """
    transform = getattr(model, "transform", None)
    if not isinstance(transform, GeneralizedRCNNTransform):
        yield
        return

    def postprocess(result: list[dict[str, Tensor]], image_shapes: Any, original_image_sizes: Any) -> Any:
        for found, shape, original in zip(result, image_shapes, original_image_sizes, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], shape, original)
            if "masks" in found:
                found[RAW] = found.pop("masks")
        return result

    transform.postprocess = postprocess
    try:
        yield
    finally:
        del transform.postprocess  # the class's own method shows again


def _prediction(image: Sized, output: dict[str, Tensor]) -> Prediction:
    boxes = output["boxes"].detach().float().cpu().reshape(-1, 4)
    scores = output["scores"].detach().float().cpu()
    labels = output["labels"].detach().cpu()
    finite = torch.isfinite(boxes).all(1) & torch.isfinite(scores)
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[finite[order]]
    out = Prediction(has_masks=RAW in output or "masks" in output, dropped=int((~finite).sum()))
    masks = _rles(output, boxes, order, image.height, image.width)
    for n, (box, score, label) in enumerate(
        zip(boxes[order].tolist(), scores[order].tolist(), labels[order].tolist(), strict=True)
    ):
        x0, y0, x1, y1 = box
        result = {"image_id": image.row, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        if out.has_masks:
            result["segmentation"] = masks[n]
        out.results.append(result)
    return out


def _rles(output: dict[str, Tensor], boxes: Tensor, order: Tensor, height: int, width: int) -> list[dict[str, Any]]:
    """RLE of size (height, width) of each mask in ``order``; a mask counts where it is above 0.5."""
    if RAW in output:
        masks = output[RAW].detach().float().cpu()[order]
        return list(_painted(masks, boxes[order], height, width))
    if "masks" in output:
        full = (output["masks"].detach()[order.to(output["masks"].device)] > 0.5).cpu().numpy()
        return [encode_rle(_fitted(m.reshape(m.shape[-2:]), height, width)) for m in full]
    return []


def _fitted(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """Cut or padded to the size that the annotations speak of."""
    if mask.shape == (height, width):
        return mask
    out = np.zeros((height, width), bool)
    out[: mask.shape[0], : mask.shape[1]] = mask[:height, :width]
    return out


def _painted(masks: Tensor, boxes: Tensor, height: int, width: int) -> Iterator[dict[str, Any]]:
    """RLE of each (1, M, M) mask resized into its xyxy box: torchvision's `paste_masks_in_image`, box by box."""
    canvas = np.zeros((height, width), np.uint8, order="F")
    for left, top, drawn in pasted(masks, boxes, height, width):
        part = canvas[top : top + drawn.shape[0], left : left + drawn.shape[1]]
        part[...] = drawn
        yield encode_rle(canvas)
        part[...] = 0


def pasted(
    masks: Tensor, boxes: Tensor, height: int, width: int, threshold: float = 0.5
) -> Iterator[tuple[int, int, np.ndarray]]:
    """(left, top, bool (h, w)) of each (1, M, M) mask in its xyxy box, inside the image; (0, 0) where nothing is."""
    padded, scale = expand_masks(masks, 1)
    corners = expand_boxes(boxes, scale).to(torch.int64).tolist()
    for mask, (x0, y0, x1, y1) in zip(padded, corners, strict=True):
        size = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
        top, left, bottom, right = max(y0, 0), max(x0, 0), min(y1 + 1, height), min(x1 + 1, width)
        if bottom <= top or right <= left:
            yield 0, 0, np.zeros((0, 0), bool)
            continue
        drawn = F.interpolate(mask[None], size=size, mode="bilinear", align_corners=False)[0, 0] > threshold
        yield left, top, drawn[top - y0 : bottom - y0, left - x0 : right - x0].numpy()
