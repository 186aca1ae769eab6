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


def overlaps(boxes: Tensor, threshold: float) -> Tensor:
    """Which boxes of a group suppress which later ones: 0 or 1, (G, K, K), float16, [group, earlier, later].

    Args:
        boxes: (G, K, 4), xyxy, best first. threshold: intersection over union above which the later one goes.
    """
    groups, size = boxes.shape[:2]
    # As torchvision's kernel, which counts areas in float32.
    boxes = boxes.float() if boxes.dtype in (torch.float16, torch.bfloat16) else boxes
    found = boxes.new_empty((groups, size, size), dtype=torch.float16)
    step = max(1, PAIRS // max(1, size * size))
    for part, out in zip(boxes.split(step), found.split(step), strict=True):
        out.copy_((_iou(part) > threshold).triu_(1))
    return found


def _iou(boxes: Tensor) -> Tensor:
    """Intersection over union (G, K, K) in the order of operations of torchvision's kernels; 0 / 0 is NaN."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    area = (x1 - x0) * (y1 - y0)
    inter = torch.minimum(x1[:, :, None], x1[:, None]).sub_(torch.maximum(x0[:, :, None], x0[:, None])).clamp_(min=0)
    height = torch.minimum(y1[:, :, None], y1[:, None]).sub_(torch.maximum(y0[:, :, None], y0[:, None])).clamp_(min=0)
    inter.mul_(height)
    union = torch.add(area[:, :, None], area[:, None], out=height).sub_(inter)
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
