"""Scans of targets, images and anchors."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import class_count
from maskrcnn_coco.diagnosis.facts import AnchorFault, Facts, InputFault, TargetFault
from maskrcnn_coco.replay.locate import largest


def repair(batch: Any, facts: Facts) -> Any:
    copy = batch.subset(list(range(len(batch))))
    scales = {i.image_id: i.scale for i in facts.inputs if i.scale}
    copy.images = [im / scales[i] if scales.get(i) else im for im, i in zip(copy.images, batch.image_ids, strict=True)]
    copy.targets = [
        {**t, "masks": (t["masks"] > 0).to(torch.uint8)} if isinstance(t.get("masks"), Tensor) else t
        for t in copy.targets
    ]
    return copy


_OF_SAMPLES = ("box", "label", "mask", "pixel")
"""Kinds of problems whose position is a sample's."""
_KINDS = {"box": "DATA_BOX", "label": "DATA_LABEL", "mask": "DATA_MASK", "shape": "DATA_BOX", "batch": "DATA_BOX"}


def reported(
    problems: list[dict[str, Any]], targets: list[TargetFault], inputs: list[InputFault], ids: Sequence[int] = ()
) -> tuple[list[TargetFault], list[InputFault]]:
    """What the guard's own input check reported and the scans here did not: no alarm of it goes unexplained.

    ``ids``: of the samples at the positions that it reported, where the batch itself carries none.
    """
    known = {(t.code, t.image_id) for t in targets} | {("DATA_PIXEL", i.image_id) for i in inputs}
    images = {i for _, i in known}
    more_targets: list[TargetFault] = []
    more_inputs: list[InputFault] = []
    for problem in problems:
        kind, image_id, what = problem.get("kind"), problem.get("image_id"), str(problem.get("message"))
        if image_id is None and kind in _OF_SAMPLES and int(problem["position"]) < len(ids):
            image_id = ids[int(problem["position"])]
        code = _KINDS.get(str(kind), "DATA_PIXEL")
        # "These shapes do not fit": the scan of forms says which of them.
        if image_id is None or (code, image_id) in known or (kind == "shape" and image_id in images):
            continue
        if code == "DATA_PIXEL":
            more_inputs.append(InputFault(int(image_id), what, "before", True))
        else:
            more_targets.append(TargetFault(code, int(image_id), problem.get("annotation_id"), what, True))
    return more_targets, more_inputs


def largest_given(batch: Any) -> float:
    """The largest number of a batch in any loop: what a loss compares with may be in units of its own."""
    return largest([batch.data]) if hasattr(batch, "data") else largest([batch.images, batch.targets])


def num_classes(model: nn.Module, settings: dict[str, Any]) -> int | None:
    """Classes with background: of the model's own head, or as the settings say."""
    given = settings.get("num_classes") or len(settings.get("classes") or []) or None
    return class_count(model) or given


HUGE_BOX = 1e6
"""Pixels. Beyond it roi_align runs out of memory or raises; no image is that large."""


MAX_PIXEL = 10.0
"""Images are 0..1; normalised ones stay below 5, 0..255 ones are far above."""


def scan_targets(batch: Any, num_classes: int | None) -> list[TargetFault]:
    """Boxes, labels and masks that no detector can learn from, per annotation.

    ``batch.targets``: torchvision's target dicts; ``annotation_ids`` optional.
    """
    faults: list[TargetFault] = []
    for image, target, image_id in zip(batch.images, batch.targets, batch.image_ids, strict=True):
        if not isinstance(target, Mapping):
            continue
        ids = _annotation_ids(target)
        boxes = target.get("boxes")
        if isinstance(boxes, Tensor) and boxes.numel() and boxes.shape[-1] == 4:
            faults += _box_faults(boxes, image_id, ids)
        labels = target.get("labels")
        if isinstance(labels, Tensor) and labels.numel():
            faults += _label_faults(labels, image_id, ids, num_classes)
        masks = target.get("masks")
        pictured = isinstance(image, Tensor) and image.ndim >= 2 and image.numel() > 0
        if isinstance(masks, Tensor) and pictured and masks.numel() and masks.ndim == 3:
            faults += _mask_faults(masks, target, image_id, ids, (image.shape[-2], image.shape[-1]))
    return faults


def _annotation_ids(target: Mapping[str, Any]) -> list[int | None]:
    held = next((target[k] for k in ("labels", "boxes") if isinstance(target.get(k), Tensor) and target[k].ndim), ())
    count = len(held)
    ids = target.get("annotation_ids")
    values: list[int | None] = [int(i) for i in ids] if ids is not None and len(ids) == count else [None] * count
    return values


def _box_faults(boxes: Tensor, image_id: int, ids: list[int | None]) -> list[TargetFault]:
    faults = []
    for row, box in enumerate(boxes.detach().float().cpu().reshape(-1, 4).tolist()):
        shown = ", ".join(f"{v:g}" for v in box)
        if not all(math.isfinite(v) for v in box):
            what = f"box ({shown}) is not finite"
        elif box[2] <= box[0] or box[3] <= box[1]:
            what = f"box ({shown}) is empty or inverted"
        elif max(abs(v) for v in box) > HUGE_BOX:
            what = f"box ({shown}) lies outside any image"
        else:
            continue
        faults.append(TargetFault("DATA_BOX", image_id, ids[row] if row < len(ids) else None, what, True))
    return faults


def _label_faults(labels: Tensor, image_id: int, ids: list[int | None], num_classes: int | None) -> list[TargetFault]:
    faults = []
    for row, label in enumerate(labels.detach().cpu().reshape(-1).tolist()):
        if label != label or label < 1 or (num_classes is not None and label >= num_classes):
            high = f"1..{num_classes - 1}" if num_classes else "1 or more"
            # 0 and negative labels run through silently; only a label past the end kills native code.
            lethal = num_classes is not None and not label < num_classes
            what = f"label {label}, expected {high}"
            faults.append(TargetFault("DATA_LABEL", image_id, ids[row] if row < len(ids) else None, what, lethal))
    return faults


def _mask_faults(
    masks: Tensor, target: Mapping[str, Any], image_id: int, ids: list[int | None], size: tuple[int, int]
) -> list[TargetFault]:
    faults = []
    if tuple(masks.shape[-2:]) != size:
        what = f"masks of {tuple(masks.shape[-2:])} for an image of {size}"
        return [TargetFault("DATA_MASK", image_id, None, what, False)]
    flat = masks.detach().reshape(masks.shape[0], -1)
    floats = flat.float()
    binary = ((floats == 0) | (floats == 1)).all(1).cpu().tolist()
    empty = (floats != 0).any(1).logical_not().cpu().tolist()
    for row in range(len(flat)):
        annotation = ids[row] if row < len(ids) else None
        if not binary[row]:
            values = f"{float(floats[row].min()):g}..{float(floats[row].max()):g}"
            what = f"mask values {values}, expected 0 and 1"
            faults.append(TargetFault("DATA_MASK", image_id, annotation, what, False, repairable=True))
        elif empty[row]:
            faults.append(TargetFault("DATA_MASK", image_id, annotation, "mask is empty", False))
    return faults


def scan_images(batch: Any, transform: nn.Module | None) -> list[InputFault]:
    """Non-finite and unscaled pixels before, and non-finite ones after, the model's own transform."""
    faults = []
    for image, image_id in zip(batch.images, batch.image_ids, strict=True):
        if not isinstance(image, Tensor) or image.is_complex():
            continue  # another form than a picture has: `scan_forms` names it
        if not image.is_floating_point() or not image.numel():
            pixels = image.float() / 255 if image.dtype == torch.uint8 else image.float()
        else:
            pixels = image
        if not bool(torch.isfinite(pixels).all()):
            bad = int((~torch.isfinite(pixels)).sum())
            faults.append(InputFault(image_id, f"{bad} of {pixels.numel()} pixel values non-finite", "before", True))
            continue
        high = float(pixels.abs().max()) if pixels.numel() else 0.0
        if high > MAX_PIXEL:
            scale = 255.0 if high <= 255 else 65535.0 if high <= 65535 else high
            faults.append(InputFault(image_id, f"pixel values up to {high:g}, expected 0..1", "before", False, scale))
        after = _transformed(pixels, transform)
        if after is not None and not bool(torch.isfinite(after).all()):
            faults.append(InputFault(image_id, _why_not_finite(transform), "after", True))
    return faults


def scan_values(batch: Any, model: nn.Module, settings: dict[str, Any]) -> tuple[list[TargetFault], list[InputFault]]:
    """What is wrong with the numbers of a detector's batch: targets, and pixels before and after the transform."""
    targets = scan_targets(batch, num_classes(model, settings))
    return targets, scan_images(batch, getattr(model, "transform", None))


def scan_transformed(batch: Any, transform: nn.Module | None) -> list[InputFault]:
    """Of a loop of somebody's own, pictures that its model's transform makes non-finite.

    What range it gives them is its own business.
    """
    pictures = getattr(batch, "detection", None)
    return [] if pictures is None else [i for i in scan_images(pictures, transform) if i.when == "after"]


def flat_images(batch: Any) -> list[int]:
    """Ids of the images all of whose pixels are one colour: nothing to see, and sound for most models."""
    pairs = zip((getattr(batch, "detection", None) or batch).images, batch.image_ids, strict=True)
    dense = [(i, n) for i, n in pairs if isinstance(i, Tensor) and i.ndim == 3 and i.numel() and i.isreal().all()]
    return [n for i, n in dense if bool((i == i[:, :1, :1]).all())]


def broken_entries(batch: Any, guilty: list[int]) -> list[TargetFault]:
    """Further entries of the ``guilty`` images' targets that are not finite, and are in all others: a weight, a depth.

    What is unknown by design is unknown in more than one image.
    """
    given = getattr(batch, "detection", None) or batch
    pairs = [(i, t) for i, t in zip(batch.image_ids, given.targets, strict=True) if isinstance(t, Mapping)]
    usual = {k for i, t in pairs if i not in guilty for k, v in t.items() if _broken(v)}
    return [
        TargetFault("DATA_LABEL", i, None, f"{k!r} of the target is not finite", False)
        for i, t in pairs
        for k, v in t.items()
        if i in guilty and k not in usual | _SCANNED and _broken(v)
    ]


_SCANNED = {"boxes", "labels", "masks", "keypoints"}


def _broken(value: Any) -> bool:
    if isinstance(value, float):
        return not math.isfinite(value)
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(value.isfinite().all())


def _transformed(pixels: Tensor, transform: nn.Module | None) -> Tensor | None:
    normalize = getattr(transform, "normalize", None)
    if normalize is None or pixels.ndim != 3 or len(pixels) != len(getattr(transform, "image_mean", None) or ()):
        return None
    with torch.no_grad():
        return normalize(pixels.float())


def _why_not_finite(transform: nn.Module | None) -> str:
    std = getattr(transform, "image_std", None)
    if std is not None and any(float(s) == 0 or not math.isfinite(float(s)) for s in std):
        return f"finite pixels, non-finite after the transform: image_std is {[float(s) for s in std]}"
    return "finite pixels, non-finite after the model's transform"


ASSERTED = ("Anchors should be Tuple", "number of feature maps", "sizes / aspect ratios")
"""What torchvision's anchor generator says of itself where its levels and the feature maps do not fit."""


def scan_anchors(model: nn.Module, raised: str = "") -> list[AnchorFault]:
    """Anchors of no width or height after rounding, and counts that do not fit the head or the levels.

    Args:
        raised: what the model raised, if it did: the generator's own assertion is proof.
    """
    name, generator = next(((n, m) for n, m in model.named_modules() if _makes_anchors(m)), ("", None))
    if generator is None:
        return []
    if not hasattr(generator, "cell_anchors"):
        return _default_boxes(name, generator)
    faults: list[AnchorFault] = []
    sizes: Any = getattr(generator, "sizes", ())
    if any(words in raised for words in ASSERTED):
        what = f"{len(sizes)} tuples of sizes, and the feature pyramid has another number of levels: {raised[:120]}"
        faults.append(AnchorFault(what, "one tuple of anchor sizes, and one of ratios, for each feature map"))
    for level, cells in enumerate(generator.cell_anchors):  # type: ignore[union-attr, arg-type]
        sides = torch.stack([cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]])
        if bool((sides <= 0).any()) or not bool(torch.isfinite(sides).all()):
            given = sizes[level] if level < len(sizes) else "?"
            what = (
                f"level {level}, sizes {given}: an anchor is {float(sides.min()):g} pixels wide or high after rounding"
            )
            faults.append(AnchorFault(what, "anchor sizes of 2 pixels or more on every level, aspect ratios near 1"))
    counts = {len(c) for c in generator.cell_anchors}  # type: ignore[union-attr, arg-type]
    out = _outputs_a_place(model)
    if out is not None and (len(counts) > 1 or out not in counts):
        faults.append(AnchorFault(f"{sorted(counts)} anchors a place, but the head has outputs for {out}", "one count"))
    return [dataclasses.replace(f, module=name) for f in faults]


def _makes_anchors(module: nn.Module) -> bool:
    return hasattr(module, "aspect_ratios") and (hasattr(module, "cell_anchors") or hasattr(module, "_wh_pairs"))


def _default_boxes(name: str, generator: nn.Module) -> list[AnchorFault]:
    """Of an SSD: default boxes of no width or height, as shares of the picture."""
    faults = []
    for level, pairs in enumerate(generator._wh_pairs):  # type: ignore[union-attr, arg-type]
        # The encoding of a box divides by the sides; a clipped one is as large as the picture at most.
        if pairs.numel() and not bool(((pairs > 0) & pairs.isfinite()).all()):
            scale = getattr(generator, "scales", ())
            what = f"level {level}, scales {scale}: a default box is {float(pairs.min()):g} of the picture wide or high"
            faults.append(AnchorFault(what, "scales above 0, aspect ratios above 0, on every level", name))
    return faults


def _outputs_a_place(model: nn.Module) -> int | None:
    """Anchors a place that the head of an RPN, or of a one-stage detector, answers for; None: cannot be told."""
    for name, module in model.named_modules():
        if name.endswith("rpn.head.cls_logits"):
            return getattr(module, "out_channels", None)
        if name.endswith("head.regression_head.bbox_reg") and hasattr(module, "out_channels"):
            return int(module.out_channels) // 4  # pyright: ignore[reportArgumentType, reportCallIssue]
    return None
