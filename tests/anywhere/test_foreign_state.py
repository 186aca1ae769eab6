"""An optimizer's state that is finite and wrong: named, proved with another state, and put back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco import attach


@pytest.mark.parametrize(
    ("make", "key", "by"),
    [
        (lambda p: torch.optim.Adam(p, 2e-3), "exp_avg", 1e6),
        (lambda p: torch.optim.AdamW(p, 2e-3), "exp_avg", 1e4),
        (lambda p: torch.optim.SGD(p, 0.05, 0.9), "momentum_buffer", 1e6),
        (lambda p: torch.optim.SGD(p, 0.05, 0.9), "momentum_buffer", 1e3),
        (lambda p: torch.optim.RMSprop(p, 1e-3, momentum=0.9, centered=True), "grad_avg", 1e3),
        (lambda p: torch.optim.Adamax(p, 2e-3), "exp_avg", 1e4),
    ],
)
@pytest.mark.parametrize("at", [23, 30])
def test_it_is_the_state_and_no_rate(make: Callable[[Any], Any], key: str, by: float, at: int) -> None:
    """``at`` 30 is a step whose state is copied at its begin: that copy must not be gone back to."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    optimizer = make(model.parameters())

    def loss_of(m: nn.Module, b: Any) -> torch.Tensor:
        return nn.functional.cross_entropy(m(b[0]), b[1])

    guard: Any = attach(model, optimizer, diagnose=True, forward=loss_of, logdir=None, say=False)
    for step in range(45):
        x = torch.randn(16, 8)
        given = guard.batch((x, x[:, :3].argmax(1)))
        if step == at:
            for entry in optimizer.state.values():
                entry[key].mul_(by)
        optimizer.zero_grad()
        guard.see(loss_of(model, given)).backward()
        optimizer.step()
    (incident,) = guard.incidents
    assert (incident.step, incident.cause, incident.action.kind) == (at, "POISONED_STATE", "rollback")
    assert incident.confidence >= 0.9 and incident.lost_steps > 0
    assert any(key in e.outcome for e in incident.evidence) and not guard.instruments.lowered.factors
