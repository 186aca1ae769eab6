"""Non-maximum suppression of many groups of boxes at once, which asks the host nothing.

torchvision's kernel answers with a list, whose length the host must wait for, once for every image (and level). Here
every group keeps its size, and a flag says who stays. A box stays where no box before it that stays overlaps it: from
"all stay", each round of that rule settles the boxes at one more step of such a chain, and a round that changes nothing
is the answer of the one-by-one loop exactly. Chains are short (at most 11 boxes in 2000 of one to 2000 clusters), so a
few rounds are enough; whether they were is one more flag, and further rounds make up for it where not.
"""

from __future__ import annotations

import torch
from torch import Tensor

ROUNDS = 16
"""Rounds before the host looks whether anything is left to settle; chains are longer where neighbours score alike."""
PAIRS = 2**25
"""Pairs of boxes compared at a time: three temporary tensors of that many numbers."""
MOST_BYTES = 2**30
"""Largest table of overlaps held at once; beyond it groups are settled one part after the other."""


def overlaps(boxes: Tensor, threshold: float) -> Tensor:
    """Which boxes of a group suppress which later ones: 0 or 1, (G, K, K), float16, [group, earlier, later].

    Args:
        boxes: (G, K, 4), xyxy, best first. threshold: intersection over union above which the later one goes.
    """
    groups, size = boxes.shape[:2]
    rows = max(1, min(size, PAIRS // max(1, size)))
    # As torchvision's kernel, which counts areas in float32.
    boxes = boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes
    found = boxes.new_empty((groups, size, size), dtype=torch.float16)
    step = max(1, PAIRS // max(1, size * size))
    for part, out in zip(boxes.split(step), found.split(step), strict=True):
        for first in range(0, size, rows):
            block = slice(first, first + rows)
            out[:, block].copy_((_iou(part[:, block], part) > threshold).triu_(1 + first))
    return found


def fits(boxes: Tensor) -> bool:
    """Whether the table of `overlaps` of ``boxes`` (G, K, 4) may be held at once."""
    return _table_bytes(boxes) * len(boxes) <= MOST_BYTES


def _table_bytes(boxes: Tensor) -> int:
    return 2 * boxes.shape[1] ** 2


def suppress_in_parts(
    boxes: Tensor, threshold: float, fit: Tensor, stay: Tensor, rounds: int = ROUNDS
) -> tuple[Tensor, Tensor]:
    """`suppress` without the table of all groups: some groups at a time, in at most `MOST_BYTES`, or one."""
    step = max(1, MOST_BYTES // max(1, _table_bytes(boxes)))
    parts = [
        suppress(overlaps(b, threshold), f, s, rounds)
        for b, f, s in zip(boxes.split(step), fit.split(step), stay.split(step), strict=True)
    ]
    return torch.cat([kept for kept, _ in parts]), torch.stack([final for _, final in parts]).all()


def _iou(earlier: Tensor, later: Tensor) -> Tensor:
    """Intersection over union (G, M, K) of (G, M, 4) with (G, K, 4), in the order of operations of torchvision's
    kernels; 0 / 0 is NaN.
    """
    x0, y0, x1, y1 = (c[:, :, None] for c in earlier.unbind(-1))
    u0, v0, u1, v1 = (c[:, None] for c in later.unbind(-1))
    inter = torch.minimum(x1, u1).sub_(torch.maximum(x0, u0)).clamp_(min=0)
    height = torch.minimum(y1, v1).sub_(torch.maximum(y0, v0)).clamp_(min=0)
    inter.mul_(height)
    union = torch.add((x1 - x0) * (y1 - y0), (u1 - u0) * (v1 - v0), out=height).sub_(inter)
    return inter.div_(union)


def suppress(suppresses: Tensor, fit: Tensor, stay: Tensor, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """``rounds`` (1 or more) from ``stay``: who stays (G, K), bool, and whether that is final, bool ().

    Args:
        suppresses: of `overlaps`. fit: (G, K), bool: others neither stay nor suppress. stay: ``fit`` to begin with.
    """
    now, allowed = stay.to(suppresses.dtype), fit.to(suppresses.dtype)
    before = now
    # Sums of zeros and ones: whatever the precision, only "none" is 0.
    with torch.autocast(fit.device.type, enabled=False):
        for _ in range(rounds):
            before = now
            now = torch.bmm(before[:, None], suppresses)[:, 0].eq(0) * allowed
    return now > 0, (now == before).all()
