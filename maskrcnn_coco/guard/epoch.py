"""One guarded epoch over your own loader."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.findings.watch import watch_of
from maskrcnn_coco.guard.guard import Guard
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
        Mean loss over the applied steps; nan where none was.

    A step with anything non-finite is refused before it touches weights, buffers or optimizer state, and is said once
    on stderr. Diagnosis and recovery need the data set and are part of `train`.
    """
    device = torch.device(device)
    watch = watch_of(model)
    watch.train_mode(model)
    guard = Guard(model, optimizer, scaler=scaler, max_grad_norm=max_grad_norm)

    def forward(batch: Any) -> Any:
        images, targets = batch
        images = [image.to(device, non_blocking=True) for image in images]
        targets = [{k: _sent(v, device) for k, v in t.items()} for t in targets]
        with torch.autocast(device.type, dtype=torch.float16, enabled=scaler is not None and scaler.is_enabled()):
            return exact_boxes(model)(images, targets)

    total, applied = 0.0, 0
    for step, batch in enumerate(loader):
        record = guard.step(forward, batch, step=step)
        if record.applied:
            total, applied = total + record.loss, applied + 1
        if guard.alarm is not None:
            say(f"step {step} refused: {guard.alarm.message}")
    watch.end_of_epoch(guard.completed)
    return total / applied if applied else float("nan")


def _sent(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value


def say(text: str) -> None:
    """One line on stderr, for code that has no console."""
    sys.stderr.write(f"maskrcnn_coco: {text}\n")
