"""Rates and settings that recovery lowered are in force during a step and nowhere else."""

import pytest
import torch
from torch import nn

from maskrcnn_coco.anywhere.lowering import lower, rates_back
from maskrcnn_coco.components import TIMES
from maskrcnn_coco.guard.lowered import Lowered
from maskrcnn_coco.records import StepRecord


def two_groups(lr: float = 0.1, **settings: float) -> torch.optim.SGD:
    """A body and a head."""
    layers = [nn.Linear(2, 2), nn.Linear(2, 1)]
    return torch.optim.SGD([{"params": list(layer.parameters())} for layer in layers], lr, **settings)


def test_nothing_was_lowered() -> None:
    optimizer = two_groups()
    with Lowered().in_force(optimizer, ["body", "head"]):
        assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.1]


@pytest.mark.parametrize("planned", [1e-4, 0.01, 30.0])
def test_a_rate_is_no_higher_than_its_limit_and_the_schedule_s_own_below_it(planned: float) -> None:
    optimizer, lowered = two_groups(planned), Lowered()
    lowered.limit("body", "lr", 0.01)
    with lowered.in_force(optimizer, ["body", "head"]):
        assert [g["lr"] for g in optimizer.param_groups] == [min(planned, 0.01), planned]
    assert [g["lr"] for g in optimizer.param_groups] == [planned, planned]


def test_a_factor_counts_before_the_limit() -> None:
    optimizer, lowered = two_groups(1.0), Lowered()
    lowered.factors["head"] = 0.1
    lowered.limit("head", "lr", 0.2)
    with lowered.in_force(optimizer, ["body", "head"]):
        assert [g["lr"] for g in optimizer.param_groups] == [1.0, 0.1]
    lowered.limit("head", "lr", 0.05)
    lowered.limit("head", "lr", 0.07)
    with lowered.in_force(optimizer, ["body", "head"]):
        assert [g["lr"] for g in optimizer.param_groups] == [1.0, 0.05]


def test_a_group_at_a_multiple_of_its_component_s_rate_may_have_that_multiple_of_the_limit() -> None:
    optimizer, lowered = two_groups(), Lowered()
    optimizer.param_groups[1] |= {"lr": 0.1 * 3.7, TIMES: 3.7}
    for limit in (0.1, 0.05):
        lowered.limit("backbone", "lr", limit)
        with lowered.in_force(optimizer, ["backbone", "backbone"]):
            assert [g["lr"] for g in optimizer.param_groups] == [limit, limit * 3.7]


def test_settings_come_back_when_the_step_raises() -> None:
    """What a hook sets before each step is its own; the optimizer without such a setting is left as it is."""
    optimizer, lowered = two_groups(momentum=3.0, weight_decay=300.0), Lowered()
    for setting, most in (("momentum", 0.9), ("weight_decay", 1e-4), ("alpha", 0.5)):
        lowered.limit("head", setting, most)
    with pytest.raises(ZeroDivisionError), lowered.in_force(optimizer, ["body", "head"]):
        assert [(g["momentum"], g["weight_decay"]) for g in optimizer.param_groups] == [(3.0, 300.0), (0.9, 1e-4)]
        assert "alpha" not in optimizer.param_groups[1]
        raise ZeroDivisionError
    assert all((g["momentum"], g["weight_decay"]) == (3.0, 300.0) for g in optimizer.param_groups)


def test_a_lowered_rate_comes_back_below_what_the_sound_steps_had_and_not_where_a_schedule_anneals() -> None:
    """At 0 of warm-up, or where no sound step is known, there is nothing that it could come back to."""
    lowered, held = Lowered(), {"body": 0.02, "head": 0.0}
    lowered.factors.update(dict.fromkeys(("body", "head"), 0.01))
    assert rates_back(lowered, {"body": 0.011, "head": 0.0}, held) == []
    assert rates_back(lowered, {"body": 0.01, "head": 0.0}, held) == ["body"]
    assert lowered.factors == {"head": 0.01}


@pytest.mark.parametrize(("before", "expected"), [([], 0.0), ([0.1, 0.1], 0.0), ([0.1] * 8, 0.2), ([20.0] * 8, 0.3)])
def test_what_held_is_no_more_than_twice_the_rate_of_the_sound_steps(before: list[float], expected: float) -> None:
    rates = [*before, 30.0, 30.0]
    history = [StepRecord(s, 0, {}, 1.0, 1.0, {}, {"body": r}, None, [], applied=True) for s, r in enumerate(rates)]
    lowered, held = Lowered(), {}
    detail = {"components": ["body"], "factor": 0.01}
    lower(lowered, detail, ["body", "head"], history, held, since=len(before), proved=False)
    assert held == {"body": pytest.approx(expected)} and lowered.factors == {"body": 0.01} and not lowered.limits


def test_a_setting_that_was_proved_wrong_has_its_default_within_a_step_in_groups_that_have_it() -> None:
    layers = nn.Linear(2, 2)
    optimizer, lowered = torch.optim.Adam(layers.parameters(), eps=0.0, betas=(0.99, 0.9)), Lowered()
    assert not lowered
    lowered.usual = {"eps": 1e-8, "betas": (0.9, 0.999), "alpha": 0.99}
    lowered.factors["all"] = 0.5
    with lowered.in_force(optimizer, ["all"]):
        (group,) = optimizer.param_groups
        assert (group["eps"], group["betas"], group["lr"]) == (1e-8, (0.9, 0.999), 5e-4)
        assert "alpha" not in group
    assert (group["eps"], group["betas"], group["lr"]) == (0.0, (0.99, 0.9), 1e-3)


@pytest.mark.parametrize("proved", [True, False])
def test_a_schedule_that_goes_on_rising_does_not_bring_a_lowered_rate_back_to_what_diverged(proved: bool) -> None:
    rates = [0.03, 0.5, 1.9, 4.0]
    history = [StepRecord(s, 0, {}, 1.0, 1.0, {}, {"body": r}, None, [], applied=True) for s, r in enumerate(rates)]
    optimizer, lowered = two_groups(100.0), Lowered()
    lower(lowered, {"components": ["body"], "factor": 0.01}, ["body", "head"], history, {}, since=0, proved=proved)
    with lowered.in_force(optimizer, ["body", "head"]):
        assert [g["lr"] for g in optimizer.param_groups] == [pytest.approx(0.12 if proved else 1.0), 100.0]
