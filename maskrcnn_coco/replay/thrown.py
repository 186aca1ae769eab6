"""Buffers that a pass made non-finite, or threw beyond any bound."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.guard.buffers import LEAP, as_made
from maskrcnn_coco.guard.norms import has_fractions, norms
from maskrcnn_coco.replay.state import in_double

STATISTICS = ("running_mean", "running_var")


def thrown(model: nn.Module, state: dict[str, Any]) -> list[str]:
    """Floating buffers that are not finite now, or leapt from what they are in ``state``, before the failing step."""
    found = [(n, b) for n, b in model.named_buffers() if has_fractions(b) and b.numel()]
    pairs = [(n, b, state.get(n.replace("_orig_mod.", ""))) for n, b in found]
    known = [(n, b, k) for n, b, k in pairs if k is not None and k.shape == b.shape]
    now, was = _sizes([b for _, b, _ in known]), _sizes([k for _, _, k in known])
    bad = []
    for (name, buffer, before), size, old in zip(known, now, was, strict=True):
        if buffer.numel() == 1 and not name.endswith(STATISTICS):
            continue  # a counter; `Buffers.wrong` has the same rule
        least = 1e-3 * math.sqrt(buffer.numel())
        if as_made(name.rpartition(".")[2], before) and bool(buffer.isfinite().all()) and not _below_zero(name, buffer):
            continue  # data have units of their own; `Buffers.wrong` has this rule too
        # What is not finite before the step either (a causal mask of -inf) was not thrown by it.
        if math.isfinite(old) and (not size <= LEAP * max(old, least) or _below_zero(name, buffer)):
            bad.append(name)
    return bad


def _sizes(tensors: list[torch.Tensor]) -> list[float]:
    """Norms, also of what only the squares are beyond range."""
    found = norms(tensors)
    return [s if math.isfinite(s) else float(in_double(t.cpu()).norm()) for s, t in zip(found, tensors, strict=True)]


def _below_zero(name: str, buffer: torch.Tensor) -> bool:
    real = name.endswith("running_var") and not buffer.is_meta and not buffer.is_complex()
    return real and float(buffer.min()) < 0
