"""Clipping is torch's own formula, the step is torch's own step, and an optimizer that wants a closure is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.optimizer_step import apply, clip_coefficient, needs_closure, plain, refuse_closures


def weights(seed: int = 0) -> list[torch.nn.Parameter]:
    torch.manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(5))]
    for p in made:
        p.grad = torch.randn_like(p) * 10
    return made


def gradients(of: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    return [p.grad for p in of if p.grad is not None]


@pytest.mark.parametrize("most", [0.5, 3.0, 1e6])
@pytest.mark.parametrize("fused", [False, True])
def test_clipped_as_torch_clips(most: float, fused: bool) -> None:
    mine, theirs = weights(), weights()
    norm = float(torch.nn.utils.clip_grad_norm_(theirs, most))
    torch.optim.SGD(theirs, lr=0.1, momentum=0.9).step()
    apply(torch.optim.SGD(mine, lr=0.1, momentum=0.9, fused=fused), gradients(mine), clip_coefficient(norm, most))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("off", [None, 0, 0.0])
def test_nothing_is_clipped_where_clipping_is_off_or_the_norm_fits(off: float | None) -> None:
    assert clip_coefficient(1e9, off) == 1.0
    assert clip_coefficient(4.0, 4.0) == 1.0
    assert 0.39 < clip_coefficient(10.0, 4.0) < 0.4


def test_a_fused_optimizer_keeps_no_scale_behind() -> None:
    mine = weights()
    optimizer = torch.optim.AdamW(mine, lr=0.1, fused=True)
    apply(optimizer, gradients(mine), 0.5)
    assert not hasattr(optimizer, "grad_scale")


def test_the_plain_step_is_that_of_a_tutorial() -> None:
    mine, theirs = torch.nn.Linear(3, 1), torch.nn.Linear(3, 1)
    theirs.load_state_dict(mine.state_dict())
    halves = [torch.ones(2, 3), torch.full((2, 3), 2.0)]
    losses, norm = plain(
        lambda b: {"loss": mine(b).square().mean()}, halves, torch.optim.SGD(mine.parameters(), 0.1), None,
        list(mine.parameters()), None,
    )  # fmt: skip
    total: Any = sum(theirs(b).square().mean() for b in halves) / 2
    total.backward()
    torch.optim.SGD(theirs.parameters(), 0.1).step()
    torch.testing.assert_close(mine.weight, theirs.weight)
    assert losses["loss"] == pytest.approx(total.item()) and math.isnan(norm)


def test_an_optimizer_that_needs_a_closure_is_refused_by_name() -> None:
    assert not needs_closure(torch.optim.SGD(weights(), 0.1))
    with pytest.raises(ConfigError, match="LBFGS"):
        refuse_closures(torch.optim.LBFGS(weights()))


class Climbs(torch.optim.SGD):
    """Its closure has a default, and it cannot do without."""

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure()
        super().step()
        return loss


class Asserts(Climbs):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        assert closure is not None, "a closure is required, and none was given"
        return super().step(closure)


class Slips(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        raise TypeError("can't multiply sequence by non-int of type 'float'")


@pytest.mark.parametrize("kind", [Climbs, Asserts])
def test_one_that_misses_its_closure_says_which_way_serves_it(kind: Any) -> None:
    with pytest.raises(ConfigError, match="attach") as told:
        apply(kind(weights(), 0.1), [], 1.0)
    assert kind.__name__ in str(told.value)
    with pytest.raises(TypeError, match="multiply"):
        apply(Slips(weights(), 0.1), [], 1.0)
