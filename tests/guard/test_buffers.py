"""Buffers that a forward pass spoils are named and put back; what was meant to be infinite is left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_coco.guard.buffers import Buffers


class Masked(nn.Module):
    """A norm layer, and a causal mask that is -inf by design."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.register_buffer("mask", torch.full((2, 2), -math.inf).triu(1))


def test_a_nan_batch_spoils_the_statistics_and_they_are_put_back_bit_for_bit() -> None:
    model = Masked().train()
    buffers = Buffers(model)
    buffers.save()
    model.norm(torch.randn(4, 3))
    buffers.changed()
    assert buffers.wrong() == []
    buffers.save()
    before = {n: b.clone() for n, b in model.named_buffers()}
    model.norm(torch.full((4, 3), math.nan))
    buffers.changed()
    assert set(buffers.wrong()) == {"norm.running_mean", "norm.running_var"}
    buffers.restore()
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())


def test_a_huge_but_finite_batch_is_a_leap() -> None:
    model = Masked().train()
    buffers = Buffers(model)
    step(buffers, model, 1.0)
    assert "norm.running_var" in step(buffers, model, 1e12)


def step(buffers: Buffers, model: Masked, scale: float) -> list[str]:
    """Statistics that are wrong after a forward pass over a batch of this scale."""
    buffers.save()
    model.norm(torch.randn(4, 3) * scale)
    buffers.changed()
    return buffers.wrong()


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.5, 1.0, None])
@pytest.mark.parametrize("scale", [1e5, 1e9, 1e15])
def test_data_in_units_of_their_own_are_no_leap(scale: float, momentum: float | None) -> None:
    """A salary, a time stamp: a norm takes it as it comes, whose statistics began at 0 and 1."""
    torch.manual_seed(0)
    model = Masked().train()
    model.norm.momentum = momentum
    buffers = Buffers(model)
    assert [step(buffers, model, scale) for _ in range(6)] == [[]] * 6


@pytest.mark.parametrize("momentum", [0.1, 0.01, 0.5, 1.0, None])
def test_a_first_batch_that_alone_is_huge_is_found_at_the_second(momentum: float | None) -> None:
    """Its statistics would outweigh those of a hundred batches after it."""
    torch.manual_seed(0)
    model = Masked().train()
    model.norm.momentum = momentum
    buffers = Buffers(model)
    assert step(buffers, model, 1e9) == []
    assert "norm.running_var" in step(buffers, model, 1.0)


def test_statistics_that_were_put_back_are_at_their_first_update_again() -> None:
    model = Masked().train()
    buffers = Buffers(model)
    for scale in (1e5, 9e4, 8e4):  # squares of raw incomes; each step but the last is refused for what it would do
        buffers.save()
        model.norm(scale * torch.randn(16, 3))
        buffers.changed()
        assert buffers.wrong() == []
        if scale > 8e4:
            buffers.restore()


def test_a_mask_of_minus_infinity_is_by_design_until_it_holds_a_nan() -> None:
    model = Masked().train()
    buffers = Buffers(model)
    assert buffers.by_design == {"mask"}
    buffers.save()
    assert buffers.wrong(whole=True) == []
    with torch.no_grad():
        model.get_buffer("mask")[0, 0] = math.nan
    assert buffers.wrong(whole=True) == ["mask"]


def test_a_negative_variance_is_found_between_steps() -> None:
    model = Masked().train()
    buffers = Buffers(model)
    buffers.save()
    with torch.no_grad():
        model.norm.running_var.fill_(-1.0)
    verdict = buffers.verdict(whole=True)
    assert verdict is not None and verdict.symptom == "buffer_nonfinite" and "norm.running_var" in verdict.message


@pytest.mark.parametrize("bad", [True, False])
def test_put_back_on_the_device_only_where_the_step_is_bad(bad: bool) -> None:
    model = Masked().train()
    buffers = Buffers(model)
    buffers.save()
    before = model.norm.running_mean.clone()
    model.norm(torch.randn(4, 3) + 5)
    after = model.norm.running_mean.clone()
    buffers.changed()
    buffers.restore_where(torch.tensor(bad))
    assert torch.equal(model.norm.running_mean, before if bad else after)


def test_a_variance_that_a_forward_pass_makes_negative_is_found_at_once() -> None:
    """A momentum above 1 has it swing, and a look at every tenth step alone met the good half of the swings."""
    model = Masked().train()
    model.norm.momentum = 3.0
    buffers = Buffers(model)
    buffers.save()
    model.norm(torch.randn(4, 3) * 0.1)
    buffers.changed()
    assert buffers.wrong() == ["norm.running_var"]


@pytest.mark.parametrize(("frozen", "value", "found"), [(True, 0.0, True), (False, 0.0, False), (True, 2.0, False)])
def test_variances_that_somebody_clears_between_two_steps_are_found_where_they_are_gone_by(
    frozen: bool, value: float, found: bool
) -> None:
    model = Masked().train(not frozen)
    buffers = Buffers(model)
    assert buffers.verdict(whole=True) is None
    buffers.save()
    model.norm(torch.randn(4, 3))
    buffers.changed()
    buffers.save()
    assert buffers.verdict(whole=False) is None
    model.norm.get_buffer("running_var").fill_(value)
    verdict = buffers.verdict(whole=False)
    assert (verdict is not None) is found
    assert verdict is None or verdict.measured["buffers"] == ["norm.running_var"]


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [("running_mean", 1e12, True), ("running_var", 1e-20, True), ("running_mean", 3.0, False), ("bias", 0.5, False)],
)
def test_a_frozen_norm_gathers_no_statistics_that_could_leap(name: str, value: float, found: bool) -> None:
    """Its mean of 0 is as its constructor made it, and what is there at the next step no batch has brought."""
    model = nn.Sequential(FrozenBatchNorm2d(4)).train()
    buffers = Buffers(model)
    assert buffers.verdict(whole=True) is None
    buffers.save()
    model(torch.randn(2, 4, 3, 3))
    buffers.changed()
    assert buffers.wrong() == [] and buffers.verdict(whole=False) is None
    model[0].get_buffer(name).fill_(value)
    verdict = buffers.verdict(whole=False)
    assert (verdict.measured["buffers"] if verdict else []) == ([f"0.{name}"] if found else [])


def test_what_a_refused_pass_left_can_be_passed_on_where_it_is_finite() -> None:
    model = Masked().train()
    model.register_buffer("mean", torch.zeros(3))
    model.register_buffer("spoilt", torch.zeros(3))
    model.last = torch.zeros(3)
    model.most = 0.0
    buffers = Buffers(model)
    buffers.save()
    model.mean = model.mean + 1
    model.spoilt.fill_(math.nan)
    model.last, model.most = torch.ones(3), 4.0
    buffers.restore()
    buffers.save()
    assert not model.mean.any() and not model.last.any() and model.most == 0.0
    buffers.pass_on()
    assert model.mean.eq(1).all() and not model.spoilt.any()
    assert torch.equal(model.last, torch.ones(3)) and model.most == 4.0
    buffers.save()
    buffers.changed()
    assert buffers.wrong() == []
    buffers.pass_on()
    assert model.mean.eq(1).all(), "only once"


def test_a_range_that_begins_anew_is_as_it_was_meant() -> None:
    """An observer's range starts at ±inf, and a script that resets it between two phases puts it there again."""
    model = nn.Module()
    model.register_buffer("low", torch.full((3,), math.inf))
    model.register_buffer("high", torch.full((3,), -math.inf))
    buffers = Buffers(model)

    def hold(low: float, high: float, at: int = 0) -> list[str]:
        buffers.save()
        model.low[at], model.high[at] = low, high
        buffers.changed()
        return buffers.wrong(whole=True)

    assert hold(-1.0, 1.0) == [] and hold(-2.0, 2.0) == []
    assert hold(math.inf, -math.inf) == [], "anew"
    assert hold(-1.0, 1.0) == []
    assert hold(-math.inf, 1.0) == ["low"], "the other infinity is no beginning"
    buffers.restore()
    assert hold(-1.0, math.nan) == ["high"]
