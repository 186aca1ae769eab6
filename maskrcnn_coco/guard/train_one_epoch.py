"""One guarded epoch over your own loader."""

from __future__ import annotations

import sys
import warnings
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.errors import GuardWarning
from maskrcnn_coco.findings.watch import watch_of
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.system.backends import faults_under
from maskrcnn_coco.system.exact_boxes import exact_boxes


def train_one_epoch(
    model: nn.Module,
    loader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    device: torch.device | str,
    scaler: Any = None,
    max_grad_norm: float = 10.0,
) -> float:
    """One guarded epoch over your own loader, for people who keep their own script.

    Args:
        model: a torchvision detector, or any module that returns a dict of losses for ``model(images, targets)``.
        loader: yields ``(images, targets)`` as torchvision's reference collate function does.
        scaler: a GradScaler; the forward pass then runs under fp16 autocast, boxes in float32 (`exact_boxes`).
        max_grad_norm: clip to this 2-norm after unscaling; 0 is off.

    Returns:
        Mean loss over the applied steps; nan where the epoch was lost: no step was applied, most were refused, or it
        ended in a row of refusals. The mean of the few steps before a divergence would look like a good epoch.

    A step with anything non-finite, or that diverges, is refused before it touches weights, buffers or optimizer state,
    and is said on stderr; their count is a `GuardWarning` at the end. What earlier epochs with the same optimizer
    taught about healthy losses stays known. Diagnosis and recovery need the data set and are part of `train`.
    """
    device = torch.device(device)
    watch = watch_of(model)
    watch.train_mode(model)
    guard = _guard_of(model, optimizer, scaler, max_grad_norm)

    def forward(batch: Any) -> Any:
        images, targets = batch
        images = [image.to(device, non_blocking=True) for image in images]
        targets = [{k: _sent(v, device) for k, v in t.items()} for t in targets]
        with torch.autocast(device.type, dtype=torch.float16, enabled=scaler is not None and scaler.is_enabled()):
            return exact_boxes(model)(images, targets)

    total, applied, last = 0.0, 0, deque[bool](maxlen=END)
    refused: Counter[str] = Counter()
    for batch in loader:
        record = guard.step(forward, batch)
        last.append(record.applied)
        if record.applied:
            total, applied = total + record.loss, applied + 1
        if guard.alarm is not None:
            refused[guard.alarm.symptom] += 1
    watch.end_of_epoch(guard.completed)
    count = sum(refused.values())
    lost = not applied or count > applied or (len(last) == END and not any(last))
    if count:
        kinds = ", ".join(f"{kind} {n}" for kind, n in refused.most_common())
        end = "; the epoch is lost, its loss is nan" if lost else ""
        warnings.warn(f"{count} of {count + applied} steps were refused ({kinds}){end}", GuardWarning, stacklevel=2)
    return float("nan") if lost else total / applied


SAID = 3
"""Refused steps of a kind that are said one by one."""
END = 5
"""Refusals in a row at the end of an epoch that say that training does not go on."""


def _guard_of(model: nn.Module, optimizer: torch.optim.Optimizer, scaler: Any, max_grad_norm: float) -> Guard:
    """The guard that the last epoch with this optimizer had, or a new one. A copied optimizer has none."""
    known = vars(optimizer).get("_epoch_guard")
    same = (id(model), id(scaler), max_grad_norm)
    if known is not None and known[0] == same:
        known[1].reset()
        return known[1]
    said: Counter[str] = Counter()

    def tell(alarm: Alarm) -> None:
        said[alarm.symptom] += 1
        if said[alarm.symptom] <= SAID:
            say(f"step {alarm.step} refused: {alarm.message}")

    for sentence in faults_under(model):
        say(sentence)
    guard = Guard(model, optimizer, scaler=scaler, max_grad_norm=max_grad_norm, on_alarm=tell)
    optimizer._epoch_guard = (same, guard)  # type: ignore[attr-defined]
    return guard


def _sent(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def say(text: str) -> None:
    """One line on stderr, for code that has no console."""
    sys.stderr.write(f"maskrcnn_coco: {text}\n")
