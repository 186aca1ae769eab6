"""The table of overlaps is bounded: beyond a limit groups are settled in parts, with the same answer."""

from __future__ import annotations

import pytest
import torch
from torchvision.ops import boxes as box_ops

from maskrcnn_coco.model.fast import nms


def groups(count: int, size: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(7)
    corner = torch.rand(count, size, 2, generator=g) * 60
    return torch.cat((corner, corner + 5 + 30 * torch.rand(count, size, 2, generator=g)), 2)


@pytest.mark.parametrize("pairs", [1, 300, 1 << 20])
def test_a_table_made_in_blocks_is_the_same(monkeypatch, pairs):
    boxes = groups(3, 40)
    whole = nms.overlaps(boxes, 0.4)
    monkeypatch.setattr(nms, "PAIRS", pairs)
    assert torch.equal(nms.overlaps(boxes, 0.4), whole) and whole.any()


@pytest.mark.parametrize("most", [1, 2 * 40 * 40, 5 * 40 * 40, 1 << 30])
def test_groups_settled_in_parts_keep_what_torchvision_keeps(monkeypatch, most):
    boxes = groups(6, 40)
    scores = torch.linspace(1, 0, 40)
    fit = torch.ones(6, 40, dtype=torch.bool)
    made: list[int] = []
    inner = nms.overlaps
    monkeypatch.setattr(nms, "overlaps", lambda b, t: made.append(2 * b.shape[0] * b.shape[1] ** 2) or inner(b, t))
    monkeypatch.setattr(nms, "MOST_BYTES", most)
    stay, final = nms.suppress_in_parts(boxes, 0.4, fit, fit, rounds=40)
    assert bool(final) and nms.fits(boxes) == (most >= 1 << 30)
    for kept, group in zip(stay, boxes, strict=True):
        assert kept.nonzero().flatten().tolist() == sorted(box_ops.nms(group, scores, 0.4).tolist())
    assert max(made) <= max(most, 2 * 40 * 40), "one group is the least there can be"
    assert max(made) < 1 << 20
