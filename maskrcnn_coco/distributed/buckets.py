"""Gradients laid side by side in buckets that are the same at every step, to be summed over the processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BUCKET_BYTES = 8 << 20
FIRST_BYTES = 1 << 20
"""The first bucket is the last to be ready, and nothing is left to compute while it is on its way."""


def by_kind(params: list[Tensor]) -> list[list[Tensor]]:
    """Those that are trained, those of one dtype and device together."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for p in params:
        if p.requires_grad:
            kinds.setdefault((p.dtype, p.device), []).append(p)
    return list(kinds.values())


def in_buckets(params: list[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters in their order, at most `BUCKET_BYTES` (`FIRST_BYTES`) at a time, or a single larger one."""
    share: list[Tensor] = []
    size, limit = 0, FIRST_BYTES
    for p in params:
        if share and size + p.nbytes > limit:
            yield share
            share, size, limit = [], 0, BUCKET_BYTES
        share.append(p)
        size += p.nbytes
    yield share


def fill(bucket: Tensor, share: list[Tensor]) -> None:
    """Copy the gradients of ``share`` into ``bucket`` (1-D); zeros where there is none."""
    start = 0
    for p in share:
        part = bucket[start : start + p.numel()].view_as(p)
        if p.grad is None:
            part.zero_()
        else:
            part.copy_(p.grad)
        start += p.numel()


def empty(bucket: Tensor, share: list[Tensor], present: dict[int, int]) -> None:
    """Copy them back; ``present``: id of a parameter → on how many processes it has a gradient."""
    start = 0
    for p in share:
        part = bucket[start : start + p.numel()].view_as(p)
        if p.grad is not None:
            p.grad.copy_(part)
        elif present[id(p)]:
            # Laid out as the weights are: fused kernels walk weight and gradient side by side in memory.
            p.grad = torch.empty_like(p).copy_(part)
        start += p.numel()
