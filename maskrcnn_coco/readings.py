"""Small measurements for replays and `experiments`: gradient norms, what differs, what was recorded, a repair."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.facts import Drift, Facts, InputFault, Outcome, TargetFault
from maskrcnn_coco.guard.norms import Layout, stacked_norms
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.snapshot import Snapshot

RATIOS = 20
"""Most measured steps that go into a mean update-to-weight ratio."""


def read_norms(layout: Layout, outcome: Outcome, scale: float) -> None:
    """Per-component norms, computed as the guard does: clipping must come out the same to the last bit."""
    gradients, where = layout.gradients()
    if scale != 1.0 and gradients:
        torch._foreach_div_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    if not gradients:
        outcome.finite = outcome.finite and not outcome.bad_losses
        return
    stacked = stacked_norms(gradients)
    *each, outcome.grad_norm = torch.cat([stacked, stacked.norm().reshape(1)]).tolist()
    for i in [i for i, v in enumerate(each) if not math.isfinite(v)]:
        if _finite(gradients[i]):
            # Only the square of a huge norm overflowed.
            each[i] = float(gradients[i].double().norm())
        else:
            outcome.bad_grads.append(layout.names[where[i]])
    outcome.bad_grad_count = len(outcome.bad_grads)
    outcome.group_grad_norm = layout.by_component(layout.totals(each, where))
    if not math.isfinite(outcome.grad_norm):
        outcome.grad_norm = _total(outcome.group_grad_norm.values())
    outcome.finite = outcome.finite and not outcome.bad_losses and outcome.bad_grad_count == 0


def _total(values: Iterable[float]) -> float:
    squares = sum(v * v for v in values)
    return math.sqrt(squares) if squares == squares else squares


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def gradient_digest(model: nn.Module, outcome: Outcome) -> str:
    h = hashlib.sha256(repr(sorted(outcome.losses.items())).encode())
    for parameter in model.parameters():
        if parameter.grad is not None:
            h.update(parameter.grad.detach().float().cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


def between(low: float, high: float, most: float) -> float:
    """``low`` times the square root of high / low, at most ``most`` times."""
    return low * min(most, math.sqrt(max(high / low, 1.0))) if low > 0 and math.isfinite(low) else math.inf


def repair(batch: Any, facts: Facts) -> Any:
    copy = batch.subset(list(range(len(batch))))
    scales = {i.image_id: i.scale for i in facts.inputs if i.scale}
    copy.images = [im / scales[i] if scales.get(i) else im for im, i in zip(copy.images, batch.image_ids, strict=True)]
    copy.targets = [
        {**t, "masks": (t["masks"] > 0).to(torch.uint8)} if isinstance(t.get("masks"), Tensor) else t
        for t in copy.targets
    ]
    return copy


def differences(model: nn.Module, now: Snapshot) -> list[tuple[float, str]]:
    found = []
    for name, parameter in model.named_parameters():
        other = now.model.get(name.replace("_orig_mod.", ""))
        if other is None:
            continue
        here, there = parameter.detach().double(), other.detach().double()
        size = max(float(there.norm()), float(here.norm()), 1e-12)
        difference = float((here - there).norm()) / size
        found.append((difference if difference == difference else math.inf, name))
    return found


def drift(differing: list[tuple[float, str]], from_step: int) -> Drift | None:
    """The one tensor that is off, where nearly all others are as they should be."""
    if not differing:
        return None
    ordered = sorted(differing, reverse=True)
    worst, name = ordered[0]
    median = ordered[len(ordered) // 2][0]
    # Non-determinism moves every tensor a little; a changed weight moves one, by far.
    if worst < 1e-2 or median > 1e-3 or (len(ordered) > 8 and ordered[len(ordered) // 8][0] > worst / 10):
        return None
    return Drift(name, component_of(name), name.rpartition(".")[0] or None, worst, from_step)


def ratios(before: list[StepRecord], onset: int) -> dict[str, float]:
    """Update-to-weight ratio per component: geometric mean over the steps measured before the onset, else over all.

    The last one alone misleads: once one component runs wild, the others move too.
    """
    measured = [r for r in before if r.update_ratio]
    early = [r for r in measured if r.step < onset] or measured
    names = early[-1].update_ratio if early else {}
    logs = {c: [math.log(max(r.update_ratio.get(c, 0.0), 1e-12)) for r in early[-RATIOS:]] for c in names}
    return {c: math.exp(sum(v) / len(v)) for c, v in logs.items()}


_KINDS = {"box": "DATA_BOX", "label": "DATA_LABEL", "mask": "DATA_MASK", "shape": "DATA_MASK", "batch": "DATA_BOX"}


def reported(
    problems: list[dict[str, Any]], targets: list[TargetFault], inputs: list[InputFault]
) -> tuple[list[TargetFault], list[InputFault]]:
    """What the guard's own input check reported and the scans here did not: no alarm of it goes unexplained."""
    known = {(t.code, t.image_id) for t in targets} | {("DATA_PIXEL", i.image_id) for i in inputs}
    more_targets: list[TargetFault] = []
    more_inputs: list[InputFault] = []
    for problem in problems:
        kind, image_id, what = problem.get("kind"), problem.get("image_id"), str(problem.get("message"))
        code = _KINDS.get(str(kind), "DATA_PIXEL")
        if kind == "shape" and "mask" not in what:
            code = "DATA_BOX"
        if image_id is None or (code, image_id) in known:
            continue
        if code == "DATA_PIXEL":
            more_inputs.append(InputFault(int(image_id), what, "before", True))
        else:
            more_targets.append(TargetFault(code, int(image_id), problem.get("annotation_id"), what, True))
    return more_targets, more_inputs


def record_of(case: Case, step: int) -> StepRecord | None:
    return next((r for r in reversed(case.history) if r.step == step), None)


def optimizer_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names = {id(p): n for n, p in model.named_parameters()}
    return [names.get(id(p), "?") for group in optimizer.param_groups for p in group["params"]]


def num_classes(model: nn.Module, settings: dict[str, Any]) -> int | None:
    predictor = getattr(getattr(model, "roi_heads", None), "box_predictor", None)
    score = getattr(predictor, "cls_score", None)
    found = getattr(score, "out_features", None)
    given = settings.get("num_classes") or len(settings.get("classes") or []) or None
    return int(found) if isinstance(found, int) else given


def dict_of(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def weights(snapshot: Snapshot | None) -> str:
    """Which weights a replay used, where they are not the failing step's own."""
    return "" if snapshot is None else f", weights of step {snapshot.step}"
