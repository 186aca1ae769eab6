"""Scans of state, targets, images and anchors: facts as plain names and numbers, found without running a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.diagnosis.facts import AnchorFault, InputFault, StateFault, TargetFault
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.state import nonfinite_names

HUGE_BOX = 1e6
"""Pixels. Beyond it roi_align runs out of memory or raises; no image is that large."""
MAX_PIXEL = 10.0
"""Images are 0..1; normalised ones stay below 5, 0..255 ones are far above."""
MIN_SCALE = 2.0**-10
"""A loss scale below this loses gradients to underflow and has no way back but time."""


def scan_state(snapshot: Snapshot, model: nn.Module, names: list[str], owner: Callable[[str], str]) -> list[StateFault]:
    """Non-finite weights, buffers and optimizer state, impossible norm statistics, lr and loss scale.

    Args:
        names: parameter names in the order of the optimizer's own numbering.
        owner: name of a parameter, buffer or module → component.
    """
    parameters = {n for n, _ in model.named_parameters()}
    norms = {f"{n}.{b}": n for n, m in model.named_modules() if _is_norm(m) for b in ("running_mean", "running_var")}
    frozen = {f"{n}.{b}": n for n, m in model.named_modules() if _is_frozen(m) for b in ("weight", "bias")}
    faults = []
    for name in nonfinite_names(snapshot.model):
        bad = int((~torch.isfinite(snapshot.model[name])).sum())
        where = "parameter" if name in parameters else "norm" if name in norms or name in frozen else "buffer"
        faults.append(_fault(where, name, f"{bad} of {snapshot.model[name].numel()} values non-finite", owner))
    faults += _zeroed(snapshot, parameters, owner)
    faults += _norm_faults(snapshot, model, owner)
    faults += _optimizer_faults(snapshot, names, owner)
    scale = (snapshot.scaler or {}).get("scale")
    if scale is not None and not (math.isfinite(scale) and scale >= MIN_SCALE):
        faults.append(StateFault("scaler", "scale", f"loss scale {scale:.3g}", certain=not math.isfinite(scale)))
    return faults


def _fault(where: str, name: str, what: str, owner: Callable[[str], str], certain: bool = True) -> StateFault:
    return StateFault(where, name, what, owner(name), name.rpartition(".")[0] or None, certain)


def _zeroed(snapshot: Snapshot, parameters: set[str], owner: Callable[[str], str]) -> list[StateFault]:
    kernels = [n for n in parameters if n in snapshot.model and snapshot.model[n].ndim >= 2]
    zero = sorted(n for n in kernels if snapshot.model[n].numel() and not snapshot.model[n].any())
    return [_fault("parameter", n, "every value is zero", owner, certain=False) for n in zero]


def _is_norm(module: nn.Module) -> bool:
    return isinstance(getattr(module, "running_var", None), Tensor)


def _is_frozen(module: nn.Module) -> bool:
    return _is_norm(module) and not isinstance(getattr(module, "weight", None), nn.Parameter)


def _norm_faults(snapshot: Snapshot, model: nn.Module, owner: Callable[[str], str]) -> list[StateFault]:
    faults = []
    frozen = identity = 0
    for name, module in model.named_modules():
        variance = snapshot.model.get(f"{name}.running_var")
        if variance is None or not bool(torch.isfinite(variance).all()):
            continue
        eps = float(getattr(module, "eps", 1e-5))
        low = float(variance.min())
        count = int((variance + eps <= 0).sum())
        if count or low < 0:
            what = f"running_var as low as {low:.3g} with eps {eps:.3g}: the square root of nothing"
            faults.append(_fault("norm", f"{name}.running_var", what, owner))
        elif low + eps < 1e-9:
            what = f"running_var {low:.3g} with eps {eps:.3g} multiplies by {(low + eps) ** -0.5:.3g}"
            faults.append(_fault("norm", f"{name}.running_var", what, owner, certain=False))
        if _is_frozen(module):
            frozen += 1
            mean = snapshot.model.get(f"{name}.running_mean")
            identity += bool((variance == 1).all() and (mean is None or not mean.any()))
    if frozen > 2 and identity == frozen:
        what = f"all {frozen} frozen norm layers hold mean 0 and variance 1: no statistics were loaded"
        faults.append(StateFault("norm", "identity", what, "backbone", None, certain=False))
    return faults


def _optimizer_faults(snapshot: Snapshot, names: list[str], owner: Callable[[str], str]) -> list[StateFault]:
    faults = []
    for index, entry in snapshot.optimizer.get("state", {}).items():
        name = names[index] if isinstance(index, int) and index < len(names) else str(index)
        for key, value in entry.items():
            if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
                faults.append(_fault("optimizer", name, f"{key} is non-finite", owner))
        faults += _vanished(entry, name, owner)
    for group in snapshot.optimizer.get("param_groups", []):
        for key in ("lr", "momentum", "weight_decay", "eps"):
            value = group.get(key)
            value = float(value) if isinstance(value, (int, float, Tensor)) else 0.0
            if not math.isfinite(value) or value < 0:
                component = group.get("component")
                faults.append(StateFault("lr", f"{key} of {component}", f"{key} is {value}", component))
    return faults


def _vanished(entry: dict[str, Any], name: str, owner: Callable[[str], str]) -> list[StateFault]:
    first, second = entry.get("exp_avg"), entry.get("exp_avg_sq")
    if first is None or second is None or not first.numel():
        return []
    # Adam divides by sqrt(exp_avg_sq): a zero below a non-zero mean cannot come from Adam's own arithmetic.
    gone = int(((second == 0) & (first.abs() > 1e-15)).sum())
    if gone <= 0.01 * first.numel():
        return []
    what = f"exp_avg_sq is 0 under a non-zero exp_avg in {gone} of {first.numel()} places"
    return [_fault("optimizer", name, what, owner)]


def scan_targets(batch: Any, num_classes: int | None) -> list[TargetFault]:
    """Boxes, labels and masks that no detector can learn from, per annotation.

    ``batch.targets``: torchvision's target dicts; ``annotation_ids`` optional.
    """
    faults: list[TargetFault] = []
    for image, target, image_id in zip(batch.images, batch.targets, batch.image_ids, strict=True):
        ids = _annotation_ids(target)
        boxes = target.get("boxes")
        if isinstance(boxes, Tensor) and boxes.numel():
            faults += _box_faults(boxes, image_id, ids)
        labels = target.get("labels")
        if isinstance(labels, Tensor) and labels.numel():
            faults += _label_faults(labels, image_id, ids, num_classes)
        masks = target.get("masks")
        if isinstance(masks, Tensor) and masks.numel():
            faults += _mask_faults(masks, target, image_id, ids, tuple(image.shape[-2:]))
    return faults


def _annotation_ids(target: dict[str, Any]) -> list[int | None]:
    count = len(target["labels"]) if "labels" in target else len(target.get("boxes", []))
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
    masks: Tensor, target: dict[str, Any], image_id: int, ids: list[int | None], size: tuple[int, int]
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


def _transformed(pixels: Tensor, transform: nn.Module | None) -> Tensor | None:
    normalize = getattr(transform, "normalize", None)
    if normalize is None:
        return None
    with torch.no_grad():
        return normalize(pixels.float())


def _why_not_finite(transform: nn.Module | None) -> str:
    std = getattr(transform, "image_std", None)
    if std is not None and any(float(s) == 0 or not math.isfinite(float(s)) for s in std):
        return f"finite pixels, non-finite after the transform: image_std is {[float(s) for s in std]}"
    return "finite pixels, non-finite after the model's transform"


def scan_anchors(model: nn.Module) -> list[AnchorFault]:
    """Anchors of no width or height after rounding, and counts that do not fit the RPN head."""
    generator = next((m for m in model.modules() if hasattr(m, "cell_anchors") and hasattr(m, "aspect_ratios")), None)
    if generator is None:
        return []
    faults = []
    sizes: Any = getattr(generator, "sizes", ())
    for level, cells in enumerate(generator.cell_anchors):  # type: ignore[union-attr, arg-type]
        sides = torch.stack([cells[:, 2] - cells[:, 0], cells[:, 3] - cells[:, 1]])
        if bool((sides <= 0).any()) or not bool(torch.isfinite(sides).all()):
            given = sizes[level] if level < len(sizes) else "?"
            what = (
                f"level {level}, sizes {given}: an anchor is {float(sides.min()):g} pixels wide or high after rounding"
            )
            faults.append(AnchorFault(what, "anchor sizes of 2 pixels or more on every level, aspect ratios near 1"))
    counts = {len(c) for c in generator.cell_anchors}  # type: ignore[union-attr, arg-type]
    logits = next((m for n, m in model.named_modules() if n.endswith("rpn.head.cls_logits")), None)
    out = getattr(logits, "out_channels", None)
    if out is not None and (len(counts) > 1 or out not in counts):
        faults.append(AnchorFault(f"{sorted(counts)} anchors a place, but the RPN head has {out} outputs", "one count"))
    return faults
