"""Optimizers around others: `attach` diagnoses with the outer one or the one inside, and says where it cannot."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.replay.snapshot import restore, take


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


@pytest.mark.parametrize("whole", [True, False])
def test_bad_steps_are_diagnosed_with_either(whole: bool) -> None:
    """Weights that go half of the way back are no alarm; a sample with NaN is named, a NaN weight is put back."""
    model, optimizer = _parts()
    guard: Any = attach(model, optimizer if whole else optimizer.inner, diagnose=True, logdir=None, forward=_loss)
    for step in range(40):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        y = x[:, :3].argmax(1)
        if step == 27:
            x[5] = torch.nan
        if step == 33:
            model[2].weight.data[0, 0] = torch.nan  # type: ignore[index]
        batch = guard.batch((x, y))
        optimizer.zero_grad()
        guard.see(_loss(model, batch)).backward()
        optimizer.step()
    assert [(i.step, i.cause) for i in guard.incidents] == [(27, "DATA_PIXEL"), (33, "POISONED_STATE")]
    assert guard.incidents[0].culprit.image_ids == [27 * 8 + 5]
    assert all(p.isfinite().all() for p in [*model.parameters(), *optimizer.slow])


def test_what_the_outer_one_keeps_goes_back_too() -> None:
    """Its slow weights and its count are part of the state, and so are the moments of the one inside."""
    model, optimizer = _parts()

    def on(steps: int) -> list[torch.Tensor]:
        for step in range(steps):
            x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            _loss(model, (x, x[:, :3].argmax(1))).backward()
            optimizer.step()
        return [p.detach().clone() for p in model.parameters()]

    on(7)
    kept = take(model, optimizer, None, step=7, epoch=0)
    once = on(6)
    restore(kept, model, optimizer, rng=False)
    assert optimizer.taken == 7 and all(map(torch.equal, once, on(6)))


def test_one_inside_with_groups_of_its_own_is_led_to() -> None:
    """A rate that is lowered would not be its; the message gives the very call that works."""
    model, optimizer = _parts()
    optimizer.param_groups = [dict(group) for group in optimizer.param_groups]
    with pytest.raises(ConfigError, match=r"Lookahead around AdamW") as told:
        attach(model, optimizer, diagnose=True, logdir=None)
    assert "attach(model, optimizer.inner, diagnose=True)" in str(told.value)


def _loss(model: nn.Module, batch: Any) -> torch.Tensor:
    x, y = batch
    return F.cross_entropy(model(x), y)
