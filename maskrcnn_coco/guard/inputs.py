"""Is a batch fit for a forward pass? Checked on the host, before native code sees it.

An infinite box kills `roi_align` on the CPU without a traceback and a NaN one passes torchvision's own check, so this
runs before every forward pass. The fast path reads a few numbers per batch; only a bad batch is looked at closely.
Tensors that are already on another device are left to the checks after the backward pass: reading them would wait.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import class_count
from maskrcnn_coco.guard.norms import as_real
from maskrcnn_coco.guard.verdict import Verdict

MAX_COORDINATE = 1e6
"""Pixels. roi_align's sampling grid grows with the box; beyond this it fails or dies."""
MAX_DEVIATIONS = 50.0
"""Largest |pixel - mean| / std that is taken for a scaled image: 0..1 images stay below 5, 0..255 ones reach 1000."""


@dataclass
class Expected:
    """What the model expects: classes with background (None: unknown), and its normalisation of 0..1 images."""

    num_classes: int | None = None
    mean: float = 0.45
    std: float = 0.225

    @classmethod
    def of(cls, model: nn.Module) -> Expected:
        """Read from a torchvision detector; the defaults for other models."""
        inner = getattr(model, "module", model)
        transform = getattr(inner, "transform", None)
        mean, std = getattr(transform, "image_mean", None) or [0.45], getattr(transform, "image_std", None) or [0.225]
        # A zero std is the transform's own fault (NORM_STATE, DATA_PIXEL), found after the forward pass.
        return cls(class_count(inner), float(sum(mean) / len(mean)), float(max(std)) or 0.225)


@dataclass
class Problem:
    """One thing wrong with one image, target or tensor. Unknown ids are None; ``position`` counts in the batch."""

    kind: str
    position: int
    message: str
    image_id: int | None = None
    annotation_id: int | None = None


def check(batches: Sequence[Any], expected: Expected) -> list[Problem]:
    """Everything in these micro-batches that must not reach the model; empty for a sound step."""
    problems: list[Problem] = []
    for batch in batches:
        if type(batch) is tuple and set(map(type, batch)) == {Tensor}:
            problems += _check_tensors(batch)  # what a model is called with, most of the time
            continue
        pair = detection_pair(batch)
        if pair is None:
            problems += _check_tensors(batch)
        elif not _sound(*pair, expected):
            problems += _explain(*pair, expected)
    return problems


def verdict_on(batches: Sequence[Any], expected: Expected) -> Verdict | None:
    """The same as a verdict; "fatal" where native code could take the interpreter down."""
    problems = check(batches, expected)
    if not problems:
        return None
    lines = "; ".join(p.message for p in problems[:3]) + (" …" if len(problems) > 3 else "")
    kinds = {p.kind for p in problems}
    fatal = bool(kinds & {"box", "label", "shape", "batch"})
    measured = {"problems": [vars(p) for p in problems[:100]]}
    return Verdict("input_nonfinite", lines, measured, fatal=fatal, suspicion=kinds == {"input"})


def detection_pair(batch: Any) -> tuple[Sequence[Tensor], Sequence[Mapping[str, Any]]] | None:
    """(images, targets) of a detection batch: an object with both, or torchvision's pair of sequences; else None."""
    images, targets = getattr(batch, "images", None), getattr(batch, "targets", None)
    if images is None and isinstance(batch, (tuple, list)) and len(batch) == 2:
        images, targets = batch
    if not isinstance(images, (list, tuple, Tensor)) or not isinstance(targets, (list, tuple)):
        return None
    # Boxes of another form are the model's business: it raises, or takes them.
    if not targets or not all(isinstance(t, Mapping) and isinstance(t.get("boxes"), Tensor) for t in targets):
        return None
    return images, targets  # type: ignore[return-value]


def image_ids(batches: Sequence[Any]) -> list[int]:
    """The image ids that the batches themselves carry; empty where they carry none."""
    found: list[int] = []
    for batch in batches:
        own = getattr(batch, "image_ids", None)
        if own is not None:
            found += [int(i) for i in own]
        else:
            ids = [_scalar(t.get("image_id")) for t in _targets(batch)]
            found += [i for i in ids if i is not None]
    return found


def _targets(batch: Any) -> Sequence[Mapping[str, Any]]:
    """The targets of a detection batch, in whatever form its boxes are; none of another batch."""
    targets = getattr(batch, "targets", None)
    if targets is None and isinstance(batch, (tuple, list)) and len(batch) == 2:
        targets = batch[1]
    given = isinstance(targets, (list, tuple))
    return targets if given and all(isinstance(t, Mapping) for t in targets) else ()  # type: ignore[return-value]


def _sound(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], expected: Expected) -> bool:
    """The fast path: one pass over pixels and masks, and one small tensor for all boxes."""
    if any(not _image_ok(i, expected) for i in images) or len(images) != len(targets):
        return False
    if any(not _shapes_ok(i, t) for i, t in zip(images, targets, strict=True)):
        return False
    boxes = [t["boxes"] for t in targets if t["boxes"].numel() and t["boxes"].device.type == "cpu"]
    if boxes and not bool(_good_boxes(torch.cat(boxes)).all()):
        return False
    given = (_tensor(t, "labels") for t in targets)
    labels = [v.reshape(-1) for v in given if v is not None and v.numel() and _host(v)]
    if labels and not bool(_good_labels(torch.cat(labels), expected).all()):
        return False
    return all(_masks_ok(_tensor(t, "masks")) for t in targets)


def _tensor(target: Mapping[str, Any], key: str) -> Tensor | None:
    """An entry that is a tensor; what is none is for the model to take or to raise at."""
    value = target.get(key)
    return value if isinstance(value, Tensor) else None


def _good_boxes(boxes: Tensor) -> Tensor:
    """bool (N,): finite, bounded, and of positive width and height. A NaN fails every comparison.

    As float32, in which detectors compute: what is thinner than that can tell is empty there.
    """
    boxes = boxes.float() if boxes.dtype is torch.float64 else boxes
    bounded = (boxes.abs() <= MAX_COORDINATE).all(1)
    return bounded & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])


def _good_labels(labels: Tensor, expected: Expected) -> Tensor:
    good = labels >= 1
    return good if expected.num_classes is None else good & (labels < expected.num_classes)


def _image_ok(image: Tensor, expected: Expected) -> bool:
    if not isinstance(image, Tensor) or not _host(image) or not image.is_floating_point():
        return True
    if image.layout != torch.strided:
        return True  # the model takes it, or raises
    if image.numel() == 0:
        return image.ndim != 3  # a picture without pixels; of other shapes only the model knows
    low, high = (v.item() for v in torch.aminmax(image))
    # A NaN or an infinity fails the comparison too.
    return (high - expected.mean) / expected.std <= MAX_DEVIATIONS and (
        expected.mean - low
    ) / expected.std <= MAX_DEVIATIONS


def _shapes_ok(image: Tensor, target: Mapping[str, Any]) -> bool:
    boxes = target["boxes"]
    if boxes.ndim != 2 or boxes.shape[-1] != 4:
        return boxes.numel() == 0
    count = len(boxes)
    labels, masks, outlines = _tensor(target, "labels"), _tensor(target, "masks"), target.get("outlines")
    if labels is not None and (labels.ndim < 1 or len(labels) != count or labels.is_floating_point()):
        return False
    if not isinstance(image, Tensor):
        return masks is None or (masks.ndim >= 1 and len(masks) == count)  # the model takes it, or raises
    if outlines is not None and (len(outlines) != count or tuple(outlines.size) != tuple(image.shape[-2:])):
        return False
    return masks is None or (
        masks.ndim >= 2 and len(masks) == count and (count == 0 or tuple(masks.shape[-2:]) == tuple(image.shape[-2:]))
    )


def _masks_ok(masks: Tensor | None) -> bool:
    if masks is None or masks.numel() == 0 or masks.dtype == torch.bool or not _host(masks):
        return True
    if masks.layout != torch.strided:
        return True
    low, high = torch.aminmax(masks)
    # Not 0 <= low: a NaN must fail.
    return bool((low >= 0) & (high <= 1))


def _explain(images: Sequence[Tensor], targets: Sequence[Mapping[str, Any]], expected: Expected) -> list[Problem]:
    """The slow path: every problem of a bad batch, with image and annotation ids."""
    if len(images) != len(targets):
        return [Problem("batch", 0, f"{len(images)} images but {len(targets)} targets")]
    problems = []
    for i, (image, target) in enumerate(zip(images, targets, strict=True)):
        image_id = _scalar(target.get("image_id"))
        name = f"image {image_id}" if image_id is not None else f"image at position {i} of the batch"
        if not _image_ok(image, expected):
            problems.append(Problem("pixel", i, f"{name}: {_pixels(image)}", image_id))
            if not image.numel():
                continue  # nothing fits an image without pixels
        if not _shapes_ok(image, target):
            problems.append(Problem("shape", i, f"{name}: {_shapes(image, target)}", image_id))
            continue
        for kind, row, message in _rows(target, expected):
            annotation = _annotation(target, row)
            where = f", annotation {annotation}" if annotation is not None else f", object {row}"
            problems.append(Problem(kind, i, f"{name}{where}: {message}", image_id, annotation))
    return problems


def _rows(target: Mapping[str, Any], expected: Expected) -> Iterator[tuple[str, int, str]]:
    boxes, labels, masks = target["boxes"], _tensor(target, "labels"), _tensor(target, "masks")
    if boxes.numel() and _host(boxes):
        for row in (~_good_boxes(boxes)).nonzero().flatten().tolist():
            yield "box", row, f"box {boxes[row].tolist()} (x1, y1, x2, y2) is not finite, too large, or empty"
    if labels is not None and labels.numel() and _host(labels):
        known = "" if expected.num_classes is None else f"..{expected.num_classes - 1}"
        flat = labels.reshape(-1)
        for row in (~_good_labels(flat, expected)).nonzero().flatten().tolist():
            start = "; 0 is the background, labels start at 1" if int(flat[row]) == 0 else ""
            yield "label", row, f"label {int(flat[row])}, expected 1{known}{start}"
    if masks is not None and not _masks_ok(masks):
        for row, mask in enumerate(masks):
            if not _masks_ok(mask):
                yield "mask", row, f"mask values reach {mask.float().abs().max().item():g}, expected 0 and 1"


def _check_tensors(batch: Any) -> list[Problem]:
    problems = []
    for i, tensor in enumerate(_tensors(batch)):
        kind = tensor.dtype
        if not (kind.is_floating_point or kind.is_complex) or kind.itemsize < 2 or tensor.layout != torch.strided:
            continue
        tensor = tensor.detach()
        if not _host(tensor) or tensor.numel() == 0:
            continue
        # A finite sum proves that every element is finite; an infinite one may be overflow, so look again.
        total = (as_real(tensor) if kind.is_complex else tensor).sum().item()
        if not math.isfinite(total) and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            rows = (
                (~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero().flatten().tolist()
                if tensor.ndim
                else [0]
            )
            text = f"input tensor {i} {tuple(tensor.shape)}: {bad} values not finite, in rows {rows[:8]}"
            problems += [Problem("input", row, text) for row in rows]
    return problems


DEEP = 8
"""Levels of a nest that are looked into: one that holds itself has no last."""


def _tensors(value: Any, levels: int = DEEP) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif not levels:
        return
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _tensors(v, levels - 1)
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from _tensors(v, levels - 1)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for f in dataclasses.fields(value):
            yield from _tensors(getattr(value, f.name), levels - 1)


def _pixels(image: Tensor) -> str:
    if not image.numel():
        return f"the image has no pixels: its shape is {tuple(image.shape)}"
    bad = int((~image.isfinite()).sum())
    if bad:
        return f"{bad} of {image.numel()} pixel values are NaN or infinite"
    return f"pixel values from {image.min().item():g} to {image.max().item():g}, expected 0..1"


def _shapes(image: Tensor, target: Mapping[str, Any]) -> str:
    shapes = {k: tuple(target[k].shape) for k in ("boxes", "labels", "masks") if isinstance(target.get(k), Tensor)}
    outlines = target.get("outlines")
    if outlines is not None:
        shapes["outlines"] = (len(outlines), *outlines.size)
    return f"targets {shapes} do not fit each other or the image {tuple(image.shape)}"


def _annotation(target: Mapping[str, Any], row: int) -> int | None:
    ids = target.get("annotation_ids")
    return int(ids[row]) if ids is not None and row < len(ids) else None


def _scalar(value: Any) -> int | None:
    if isinstance(value, Tensor):
        return int(value.reshape(-1)[0]) if value.numel() else None
    return int(value) if isinstance(value, int) else None


def _host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"
