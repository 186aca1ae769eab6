"""Optimizers of somebody's own whose arithmetic makes NaN of sound gradients; rates that no weight's type can hold."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.errors import GuardStop


class Rows(nn.Module):
    """Half of its embedding is never looked up: those gradients are 0."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


class Own(torch.optim.Optimizer):
    """A step for each weight, by `move`."""

    def __init__(self, params: Any, lr: float = 1e-2) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(self.move(p.grad, self.state[p]), alpha=-group["lr"])

    def move(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        raise NotImplementedError


class BySquares(Own):
    """Divides by the root of a mean of squares, and forgot what keeps that from being 0."""

    def move(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        squares = state.setdefault("squares", torch.zeros_like(g)).mul_(0.9).addcmul_(g, g, value=0.1)
        return g / squares.sqrt()


class Quantised(Own):
    """Momentum as bytes with one scale for each row: that of a row that never moved is 0."""

    def move(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        kept = state.get("bytes", torch.zeros_like(g, dtype=torch.int8)).float() * state.get("scale", 1.0)
        momentum = 0.9 * kept + g
        state["scale"] = momentum.abs().amax(-1, keepdim=True) / 127
        whole = momentum / state["scale"]
        state["bytes"] = whole.nan_to_num().round().to(torch.int8)
        return whole * state["scale"]


class CorrectedTooEarly(Own):
    """Counts its steps from 0, so that the first mean is divided by 1 - 0.9 ** 0."""

    def move(self, g: Tensor, state: dict[str, Any]) -> Tensor:
        mean = state.setdefault("mean", torch.zeros_like(g)).lerp_(g, 0.1)
        state["step"] = state.get("step", -1) + 1
        return mean / torch.tensor(1 - 0.9 ** state["step"])


def trained(way: str, optimizer_of: Callable[[nn.Module], Any], folder: Any, *, half: bool = False) -> Any:
    """A guard after up to 12 steps."""
    model = Rows().half() if half else Rows()
    optimizer = optimizer_of(model)
    loss_of = lambda m, batch: F.cross_entropy(m(batch[0]).float(), batch[1])  # noqa: E731
    warnings.simplefilter("ignore")
    maker: Any = Guard if way == "guard" else attach
    guard = maker(model, optimizer, forward=loss_of, diagnose=True, logdir=folder)
    with contextlib.suppress(GuardStop):
        for step in range(12):
            x = torch.randint(0, 10, (16, 4), generator=torch.Generator().manual_seed(step))
            batch = (x, x.sum(1) % 3)
            if way == "guard":
                guard.step(batch)
            else:
                optimizer.zero_grad()
                guard.see(loss_of(model, guard.batch(batch))).backward()
                optimizer.step()
            assert all(bool(v.isfinite().all()) for v in model.state_dict().values()), "nothing non-finite is applied"
    return guard


@pytest.mark.parametrize("way", ["guard", "attach"])
@pytest.mark.parametrize("kind", [BySquares, Quantised, CorrectedTooEarly])
def test_the_line_of_an_optimizer_that_makes_nan_is_named(kind: Any, way: str, tmp_path: Any) -> None:
    guard = trained(way, lambda m: kind(m.parameters()), tmp_path)
    first = guard.incidents[0]
    assert first.cause == "POISONED_STATE" and first.confidence >= 0.9
    assert "div (" in first.fix and "test_own_optimizers.py" in first.fix and "move" in first.fix
    assert any("after the update non-finite" in e.outcome for e in first.evidence), "it says what is not finite"


def test_a_rate_that_half_precision_cannot_hold_is_a_rate(tmp_path: Any) -> None:
    guard = trained("guard", lambda m: torch.optim.SGD(m.parameters(), lr=1e6), tmp_path, half=True)
    assert [i.cause for i in guard.incidents][:1] == ["LR_TOO_HIGH"] and guard.incidents[0].confidence >= 0.9


def test_an_eps_of_0_is_told_without_a_group_that_has_no_name(tmp_path: Any) -> None:
    guard = trained("guard", lambda m: torch.optim.Adam(m.parameters(), eps=0.0), tmp_path)
    told = [e.test for e in guard.incidents[0].evidence]
    assert "scan: settings of the optimizer, eps" in told and not any("None" in t for t in told)


class InDisc(Own):
    """Riemannian: steps are short near the rim, and rows that leave the disc are put back into it: none is long."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for p in self.param_groups[0]["params"]:
            p.sub_(self.param_groups[0]["lr"] * (1 - p.square().sum(-1, keepdim=True)).square() / 4 * p.grad)
            p.div_((p.norm(dim=-1, keepdim=True) / 0.999).clamp(min=1))


class Near(nn.Module):
    """Of seven rows of a disc that of its pair is to be the nearest; gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.places = nn.Embedding(40, 3)
        nn.init.uniform_(self.places.weight, -0.1, 0.1)

    def forward(self, one: Tensor, others: Tensor) -> Tensor:
        u, v = self.places(one)[:, None], self.places(others)
        rim = (1 - u.square().sum(-1)) * (1 - v.square().sum(-1))
        away = torch.acosh(1 + 2 * (u - v).square().sum(-1) / rim.clamp(min=1e-5) + 1e-5)
        return F.cross_entropy(-away, torch.zeros_like(one))


def test_a_rate_too_high_of_an_optimizer_that_puts_weights_back_is_lowered() -> None:
    model = Near()
    optimizer = InDisc(model.parameters(), lr=3e4)
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None, say=False)
    losses = []
    for _ in range(80):
        one = torch.randint(0, 40, (16,))
        others = torch.cat([(one[:, None] + 20) % 40, torch.randint(0, 40, (16, 6))], 1)
        optimizer.zero_grad()
        loss = model(one, others)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert [(i.step, i.cause, i.action.kind) for i in guard.incidents] == [(0, "LR_TOO_HIGH", "lower_lr")]
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])
