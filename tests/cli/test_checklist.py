"""The checklist of `verify`: each check passes a healthy run and fails its own fault, by name."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest

from maskrcnn_coco.cli import checklist
from maskrcnn_coco.records import StepRecord


def records(losses, norms=None, *, applied=True, ratio=None):
    return [
        StepRecord(
            i, 0, {"loss": v}, v, (norms or [5.0] * len(losses))[i], {}, {}, None, [i], applied,
            update_ratio={"backbone": ratio} if ratio is not None else {},
        )
        for i, v in enumerate(losses)
    ]  # fmt: skip


def falling(n=40, noise=0.3, seed=0):
    rng = random.Random(seed)
    return [4 * math.exp(-i / 20) + 1 + noise * rng.random() for i in range(n)]


def test_a_healthy_run_passes_everything():
    run = records(falling(), ratio=1e-4)
    for check in (
        checklist.finite(run),
        checklist.falling(run),
        checklist.no_spikes(run),
        checklist.curves_smooth(run),
        checklist.norms_bounded(run),
        checklist.weights_move(run, {}, 480),
        checklist.clipping_leaves_something(run, 10.0),
        checklist.enough_images(1, 100),
    ):
        assert check.ok, check


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_loss_is_named_by_step(bad):
    losses = falling()
    losses[7] = bad
    check = checklist.finite(records(losses))
    assert not check.ok
    assert "7" in check.message


def test_a_refused_step_is_not_called_non_finite():
    run = records(falling())
    check = checklist.finite([*run[:-1], replace(run[-1], applied=False)])
    assert not check.ok and check.message == "refused: step 39"


def test_no_records_at_all_is_not_finite():
    assert not checklist.finite([]).ok


@pytest.mark.parametrize("seed", range(5))
def test_noise_without_a_trend_is_not_falling(seed):
    rng = random.Random(seed)
    assert not checklist.falling(records([2 + rng.random() for _ in range(40)])).ok


def test_rising_losses_are_not_falling():
    assert not checklist.falling(records(falling()[::-1])).ok


def test_one_spike_does_not_hide_the_trend_but_is_found():
    losses = falling()
    losses[30] = 60.0
    assert checklist.falling(records(losses)).ok
    check = checklist.no_spikes(records(losses))
    assert not check.ok
    assert "step 30" in check.message


def test_growing_norms_are_found():
    assert not checklist.norms_bounded(records(falling(), [2.0 * 1.2**i for i in range(40)])).ok


def test_a_learning_rate_too_low_to_move_anything_fails_by_name():
    for ratio in (1e-10, 1e-5):
        check = checklist.weights_move(records(falling(), ratio=ratio), {}, 480)
        assert not check.ok
        assert "raise --lr" in check.message
    assert checklist.weights_move(records(falling(), ratio=1e-5), {}, 50_000).ok


def test_a_step_of_the_warm_up_is_not_taken_for_a_low_rate():
    run = [replace(r, lr={"backbone": 1e-5}) for r in records(falling(), ratio=1e-5)]
    assert checklist.weights_move(run, {"backbone": 1e-3}, 480).ok
    assert not checklist.weights_move(run, {"backbone": 1e-5}, 480).ok


def test_a_curve_that_leaps_is_found_and_a_tiny_one_is_not():
    run = records(falling())
    for size, smooth in ((1.0, False), (0.01, True)):
        leap = [replace(r, losses={"loss_mask": size * (1.0 if r.step >= 20 else 0.01)}) for r in run]
        check = checklist.curves_smooth(leap)
        assert check.ok is smooth, check
    assert (
        "loss/loss_mask"
        in checklist.curves_smooth(
            [replace(r, losses={"loss_mask": 1.0 if r.step >= 20 else 0.01}) for r in run]
        ).message
    )


def test_clipping_that_stops_learning_fails():
    assert not checklist.clipping_leaves_something(records(falling(), [1e6] * 40), 1.0).ok
    assert checklist.clipping_leaves_something(records(falling(), [1e6] * 40), 0).ok


def test_images_left_out_until_little_is_left_fails():
    assert not checklist.enough_images(30, 100).ok


def test_too_few_steps_are_no_answer_and_say_so():
    for n in (1, 3, 7):
        run = records(falling(n))
        checks = [
            checklist.falling(run),
            checklist.norms_bounded(run),
            checklist.weights_move(run, {}, 480),
            *([checklist.no_spikes(run), checklist.curves_smooth(run)] if n <= 5 else []),
        ]
        assert [c.ok for c in checks] == [None] * len(checks)
        assert all(c.mark == "?" and c.message for c in checks)


def test_of_no_step_no_figure_is_said():
    checks = [
        *(checklist.norms_bounded([]), checklist.falling([]), checklist.no_spikes([]), checklist.curves_smooth([])),
        *(checklist.weights_move([], {}, 48), checklist.clipping_leaves_something([], 10.0), checklist.finite([])),
    ]
    assert not [c.message for c in checks if "nan" in c.message or "inf" in c.message]
    assert all(c.message and not c.ok for c in checks)


@pytest.mark.parametrize("seed", range(4))
def test_a_trend_hidden_in_the_noise_of_few_steps_is_no_answer_and_a_rise_is_one(seed: int):
    rng = random.Random(seed)
    noise = [2 + rng.random() for _ in range(12)]
    assert checklist.falling(records(noise)).ok is not True
    assert checklist.falling(records([1 + 0.5 * i + 0.01 * rng.random() for i in range(12)])).ok is False
    assert checklist.falling(records([9 - 0.5 * i + 0.01 * rng.random() for i in range(12)])).ok is True


def test_the_verdict_has_three_answers():
    good, bad, open_ = checklist.Check("a", True, ""), checklist.Check("b", False, ""), checklist.Check("c", None, "")
    assert checklist.verdict([good]) == "holds"
    assert checklist.verdict([good, open_]) == "unknown"
    assert checklist.verdict([good, open_, bad]) == "does not hold"
    assert [c.mark for c in (good, bad, open_)] == ["✓", "✗", "?"]
