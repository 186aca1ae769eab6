"""Optimizers around others: `attach` diagnoses the one that takes the steps, and says so where it gets the other."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.errors import ConfigError


class Lookahead(torch.optim.Optimizer):
    """Half of the way back every fifth step (Zhang et al. 2019)."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        super().__init__(inner.param_groups, {})
        self.param_groups, self.taken = inner.param_groups, 0
        self.slow = [p.detach().clone() for p in self.params()]

    def params(self) -> list[torch.Tensor]:
        """All weights."""
        return [p for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """The inner step, and the way back."""
        self.inner.step()
        self.taken += 1
        if self.taken % 5 == 0:
            for p, kept in zip(self.params(), self.slow, strict=True):
                p.copy_(kept.lerp_(p, 0.5))


def _parts() -> tuple[nn.Module, Lookahead]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return model, Lookahead(torch.optim.AdamW(model.parameters(), 3e-3))


def test_diagnose_leads_to_the_inner_optimizer() -> None:
    """The message gives the very call that works."""
    model, optimizer = _parts()
    with pytest.raises(ConfigError, match=r"Lookahead around AdamW") as told:
        attach(model, optimizer, diagnose=True, logdir=None)
    assert "attach(model, optimizer.inner, diagnose=True)" in str(told.value)


def test_the_inner_optimizer_is_diagnosed() -> None:
    """Weights that go half of the way back are no alarm; a sample with NaN is named and left out of the step."""
    model, optimizer = _parts()
    guard: Any = attach(model, optimizer.inner, diagnose=True, logdir=None, forward=_loss)
    for step in range(40):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        y = x[:, :3].argmax(1)
        if step == 27:
            x[5] = torch.nan
        batch = guard.batch((x, y))
        optimizer.zero_grad()
        guard.see(_loss(model, batch)).backward()
        optimizer.step()
    assert [i.step for i in guard.incidents] == [27]
    assert guard.incidents[0].culprit.image_ids == [27 * 8 + 5]
    assert all(p.isfinite().all() for p in model.parameters())


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)
