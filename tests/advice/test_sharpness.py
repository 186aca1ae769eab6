"""Critical learning rate and exact curvature, against closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from toy import quadratic

from maskrcnn_coco.advice.sharpness import critical_lr, line_search, real_update
from maskrcnn_coco.advice.trials import Trials


@pytest.mark.parametrize("curvature", [0.01, 1.0, 300.0])
@pytest.mark.parametrize("start", [1e-4, 1.0])
def test_line_search_finds_two_over_lambda(curvature: float, start: float):
    found = line_search(lambda t: 0.5 * curvature * (1 - t * curvature) ** 2, start, max_forwards=40)
    assert found.lr == pytest.approx(2 / curvature, rel=0.15)
    assert found.sharpness == pytest.approx(curvature, rel=0.15)


def test_line_search_counts_its_forwards_and_stops():
    calls = []
    found = line_search(lambda t: calls.append(t) or 1.0 + t, 1.0, max_forwards=7)
    assert found.lr == 0.0 and math.isinf(found.sharpness)
    assert found.forwards == len(calls) == 7


def test_line_search_takes_a_non_finite_loss_for_a_raised_one():
    found = line_search(lambda t: math.nan if t > 0.5 else 1.0 - t, 0.01, max_forwards=30)
    assert 0.5 / 1.3 <= found.lr <= 0.5 * 1.3


def test_critical_rate_of_one_component_and_everything_put_back():
    trials = Trials(quadratic({"backbone": 4.0, "box_head": 100.0}))
    state = trials.save(0)
    for component, curvature in (("backbone", 4.0), ("box_head", 100.0)):
        found = critical_lr(trials, state, component, start=1e-3, max_forwards=30)
        assert found.lr == pytest.approx(2 / curvature, rel=0.2)
    for name, value in trials.model.state_dict().items():
        assert torch.equal(value, state.model[name])


def test_real_update_is_what_the_optimizer_subtracts():
    trials = Trials(quadratic({"backbone": 4.0, "box_head": 100.0}, momentum=0.9, clip=1.0))
    trials.set_lr({"backbone": 0.0, "box_head": 0.0})
    trials.step(0)
    with_momentum = real_update(trials, "backbone", 1, fresh=False)[0]
    alone = real_update(trials, "backbone", 1, fresh=True)[0]
    assert torch.allclose(with_momentum, alone * 1.9, rtol=1e-4)
    gradient = 4.0 / math.hypot(4.0, 100.0)
    assert alone.item() == pytest.approx(gradient, rel=1e-3)
