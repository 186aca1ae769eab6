"""Which buffers a replayed pass counts as thrown."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from maskrcnn_coco.replay.thrown import thrown


@pytest.mark.parametrize(
    ("first", "scale", "bad"),
    [
        (True, 1.0, False),
        (True, 1e9, False),  # data in units of their own, which statistics meet for the first time
        (False, 1e9, True),
        (True, math.inf, True),
        (False, 1.0, False),
    ],
)
def test_statistics_may_leap_at_their_first_update_alone(first: bool, scale: float, bad: bool) -> None:
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(3)
    if not first:
        norm(torch.randn(8, 3))
    before = {name: held.clone() for name, held in norm.state_dict().items()}
    norm(torch.randn(8, 3) * scale)
    assert bool(thrown(norm, before)) is bad
