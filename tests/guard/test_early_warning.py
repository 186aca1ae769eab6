"""Early warnings: what they see, what they leave alone, and that a run gives them before its alarm."""

from __future__ import annotations

import math

import pytest

from maskrcnn_coco.guard.early_warning import early_warning, trend
from maskrcnn_coco.records import StepRecord


def record(step: int, norm: float, ratio: float | None = None, component: str = "box_head") -> StepRecord:
    groups = {"backbone": 1.0, component: norm}
    ratios = {} if ratio is None else {component: ratio}
    return StepRecord(step, 0, {}, 1.0, norm, groups, {}, None, [], True, update_ratio=ratios)


def test_early_warning_sees_a_norm_that_grows_steadily():
    quiet = [record(s, 1.0 + 0.3 * math.sin(3 * s)) for s in range(30)]
    assert early_warning(quiet) == []
    rising = quiet + [record(30 + s, 1.3**s) for s in range(10)]
    found = early_warning(rising)
    assert [w.component for w in found] == ["box_head"] and found[0].what == "norm"
    assert "--head-lr-multiplier" in found[0].fix
    for n, r in enumerate(rising):
        r.loss = 10.0 - 0.1 * n
    assert early_warning(rising) == [], "the loss falls: weights that find their way"


def test_early_warning_ignores_a_single_spike_and_a_fall():
    spike = [record(s, 50.0 if s == 27 else 1.0) for s in range(30)]
    assert early_warning(spike) == []
    assert early_warning([record(s, 0.8**s) for s in range(30)]) == []


def test_early_warning_sees_updates_that_are_too_large():
    records = [record(s, 1.0, 1e-3 if s % 10 == 0 else None) for s in range(30)]
    assert early_warning([*records, record(30, 1.0, 2e-3)]) == []
    found = early_warning([*records, record(30, 1.0, 0.3)])
    assert [w.what for w in found] == ["ratio"] and "30" in found[0].message


def test_trend_is_robust():
    slope, rising = trend([0.1 * i for i in range(10)])
    assert slope == pytest.approx(0.1) and rising == 1.0
    assert abs(trend([0.0] * 5 + [100.0] + [0.0] * 4)[0]) < 1e-9


def test_early_warning_of_a_leap_comes_with_the_first_step():
    found = early_warning([record(0, 1.0, 0.4)])
    assert [(w.component, w.what, w.step) for w in found] == [("box_head", "ratio", 0)]
    assert early_warning([record(0, 1.0, 0.1)]) == []


def own(step: int, loss: float, ratio: float | None) -> StepRecord:
    at = record(step, 1.0, ratio)
    at.losses = {"loss_classifier": loss / 2, "loss_box_reg": loss / 2, "loss_mask": 1.0}
    return at


def test_a_jump_of_own_losses_is_told_only_after_large_updates():
    calm = [own(s, 1.0, 1e-3) for s in range(8)]
    assert early_warning([*calm, own(8, 20.0, None)]) == [], "one hard batch"
    moved = [*calm[:-1], own(7, 1.0, 0.08)]
    assert early_warning([*moved, own(8, 5.0, None)]) == []
    found = early_warning([*moved, own(8, 20.0, None)])
    assert [(w.component, w.what) for w in found] == [("box_head", "jump")] and "20 times" in found[0].message
    refused = own(8, 20.0, None)
    refused.applied = False
    assert early_warning([*moved, refused]) == []
