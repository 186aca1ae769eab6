"""Trials start from one saved state, bit for bit, however often; an alarm ends one."""

from __future__ import annotations

import math

import pytest
import torch
from toy import quadratic

from maskrcnn_coco.advice.trials import Trials

CURVES = {"backbone": 1.0, "box_head": 100.0}


@pytest.mark.parametrize(("kind", "rate"), [("sgd", 1e-3), ("adamw", 1e-3)])
def test_the_same_trial_from_the_same_state_gives_the_same_losses(kind: str, rate: float) -> None:
    trials = Trials(quadratic(CURVES, momentum=0.9, kind=kind))
    rates = dict.fromkeys(CURVES, rate)
    trials.run(rates, 3)
    state = trials.save(3)
    first = trials.run(rates, 6, first_step=3)
    places = [v.data_ptr() for e in trials.optimizer.state.values() for v in e.values() if isinstance(v, torch.Tensor)]
    for _ in range(2):
        trials.load(state)
        assert trials.run(rates, 6, first_step=3).losses == first.losses
    after = [v.data_ptr() for e in trials.optimizer.state.values() for v in e.values() if isinstance(v, torch.Tensor)]
    assert after == places, "moments are put back in place, where fused kernels and weights expect them"


def test_a_fresh_state_is_fresh_again() -> None:
    trials = Trials(quadratic(CURVES, momentum=0.9))
    fresh = trials.save(0)
    trials.run(dict.fromkeys(CURVES, 1e-3), 4)
    trials.load(fresh)
    moments = [v for e in trials.optimizer.state.values() for v in e.values() if isinstance(v, torch.Tensor)]
    assert not any(bool(m.any()) for m in moments)
    assert all(float(p.detach()) == 1.0 for p in trials.model.parameters())


def test_a_rate_past_the_limit_ends_with_an_alarm_and_a_safe_one_does_not() -> None:
    trials = Trials(quadratic(CURVES))
    start = trials.save(0)
    hot = trials.run({"backbone": 1e-3, "box_head": 0.2}, 60)  # stable below 2 / 100
    assert not hot.stable and hot.symptom is not None and hot.steps < 60 and hot.final_loss == math.inf
    trials.load(start)
    assert trials.run({"backbone": 1e-3, "box_head": 1e-3}, 30).stable


def test_a_loss_is_looked_at_without_a_trace() -> None:
    trials = Trials(quadratic(CURVES))
    before = [p.detach().clone() for p in trials.model.parameters()]
    whole = trials.loss(0)
    assert whole == pytest.approx(trials.loss(0, ["loss_backbone"]) + trials.loss(0, ["loss_classifier"]))
    assert all(torch.equal(p, b) for p, b in zip(trials.model.parameters(), before, strict=True))
    assert trials.steps_spent == 0


def test_a_ramp_and_a_stop() -> None:
    trials = Trials(quadratic(CURVES))
    seen: list[float] = []
    trial = trials.run(
        {"backbone": 0.1, "box_head": 1e-4},
        9,
        ramp={"backbone": lambda i: (i + 1) / 10},
        stop=lambda record: bool(seen.append(record.lr["backbone"])) or record.step == 3,
    )
    assert trial.steps == 4 and seen == pytest.approx([0.01, 0.02, 0.03, 0.04])
