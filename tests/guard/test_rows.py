"""Tall losses with calm ones in between: seen where a run comes apart, never in tails that were always there."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest

from maskrcnn_coco.guard.divergence import Divergence
from maskrcnn_coco.guard.rows import SPREAD, Scattered, risen

# A classifier with momentum 1.2, as measured: (loss, gradient norm) of each step from the 14th on.
CERTAIN = [
    *((0.435, 0.65), (0.0238, 0.22), (0.369, 0.68), (0.00153, 0.012), (0.12, 0.25), (0.187, 0.12), (0.155, 0.92)),
    *((0.163, 0.58), (0.378, 0.14), (0.114, 0.066), (31.2, 8.7), (0, 0), (0.361, 0.59), (0.339, 0.074), (42.2, 12)),
    *((0.583, 0.14), (0.0903, 0.12), (2.33, 9.5), (113, 38), (133, 26), (0.81, 0.088), (1.28, 0.15), (2.21, 3)),
]
BEFORE = [(1.44, 5.6), (1.43, 8.1), (1.12, 4.1), (1.58, 6.5), (0.301, 1.7), (0.159, 0.83), (0.2, 0.83), (0.697, 1.3)]


def play(run: Iterable[tuple[float, float]], alarm: Divergence | None = None, at: int = 0) -> tuple[int, int] | None:
    """(step that is refused, where it is said to have begun), if any is."""
    alarm = alarm or Divergence()
    for step, (loss, norm) in enumerate(run, at):
        found = alarm.judge(step, loss, norm, {"a": norm})
        if found is not None:
            assert found.onset_step is not None and "of 16 steps above" in found.message
            return step, found.onset_step
        alarm.accept(loss, norm, {"a": norm})
    return None


def test_a_classifier_that_is_certain_and_wrong_now_and_then_has_diverged():
    run = [*BEFORE, *BEFORE[4:], *BEFORE[6:], *CERTAIN]
    assert play(run) == (33, 24)


def test_a_run_that_goes_on_from_its_checkpoint_sees_the_same():
    run, alarm = [*BEFORE, *BEFORE[4:], *BEFORE[6:], *CERTAIN], Divergence()
    assert play(run[:30], alarm) is None
    again = Divergence()
    again.load_state_dict(json.loads(json.dumps(alarm.state_dict())))
    assert play(run[30:], again, at=30) == (33, 24)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("tail", [1.0, 1.5, 2.0])
def test_tails_that_were_there_from_the_beginning_are_none(seed: int, tail: float) -> None:
    """One sample in ten costs as much as a Pareto's tail says; the others next to nothing."""
    rng = random.Random(seed)
    losses = [rng.uniform(0.5, 1.0) + (rng.paretovariate(tail) if rng.random() < 0.1 else 0.0) for _ in range(2000)]
    assert scattered(losses) == []


def scattered(sizes: Iterable[float], r_norm: float = 10.0) -> list[int]:
    """The steps at which something is said; the healthy loss is 1."""
    seen, said = Scattered(), []
    for taken, size in enumerate(sizes):
        if size > 3.0:
            if seen.judge(taken, size, size, r_norm) is not None:
                said.append(taken)
            seen.accept(taken + 1, taken, size, size, r_norm)
    return said


def test_what_counts_are_tall_ones_in_several_places_above_all_that_was_before():
    calm = [1.0] * (2 * SPREAD)
    assert scattered([*calm, 50, 1, 50, 1, 1, 50, 50]) == [38]
    assert scattered([*calm, 50, 50, 50, 1, 1, 1, 50]) == [], "two places: a row in between"
    assert scattered([*calm, 50, 1, 50, 1, 1, 50, *([1] * 11), 50]) == [], "too far apart"
    assert scattered([*calm[:10], 20, *calm, 50, 1, 50, 1, 1, 50, 50]) == [], "it was as loud before"
    assert scattered([*calm, 50, 1, 50, 1, 1, 50, 50], r_norm=2.0) == [], "no gradient rose"
    assert scattered([*calm[:20], 50, 1, 50, 1, 1, 50, 50]) == [], "too few steps to compare with"


# Points and momentum 1.1, as measured: a loss that is now next to nothing and now three times the last ones.
RISING = (
    "1.17/2.8 1.11/2 .934/2.3 .805/1.9 .62/1.3 .605/2.4 .826/3.4 .626/2.8 .281/1.8 .586/2.9 .283/2.2 .111/1.6 .876/3.6 "
    "1.28/2.8 .349/3.6 .765/3.4 .329/3.7 2.34/3.9 .899/3 .0043/.098 1.6/3.8 2.83/4.7 .371/2.5 2.98/5.8 3.46/6.2 "
    "3.52/8.3 6.37/9.3 2.11/5.4 .0016/.033 .983/6.2 1.8/6.4 4.34/10 .138/4.2 6.05/8.4 8.07/9.5 4/8.3 7.13/8.8 7.05/7.2 "
    ".27/5.6 5.32/15 3.04/9.8 18.9/22 7.2/12 6.83/10 2.94/5.9 15.3/10 27.2/23 5.14/12 6.96/19 28.9/23"
)


def test_a_level_that_rises_in_noise_is_seen_though_no_row_is_unbroken():
    run = [(float(a), float(b)) for a, b in (pair.split("/") for pair in RISING.split())]
    found = play(run)
    assert found is not None and found[0] <= 46 and found[1] >= 26, found


def test_a_level_that_was_there_before_has_not_risen():
    last = [(step, 5.0 + step % 2, 5.0 + step % 2, 3.0) for step in range(16)]
    assert risen(last, 4.0, 1.0) == ("16 of 16 steps above 4 times, gradients too", 0)
    assert risen(last, 4.0, 4.0) is None, "as loud before"
    assert risen([(s, v, r, 1.0) for s, v, r, _ in last], 4.0, 1.0) is None, "no gradient rose"
    assert risen(last[:9], 4.0, 1.0) is None, "too few"
    assert risen([*last[1:], (16, 1.0, 1.0, 3.0)], 4.0, 1.0) is None, "it is calm now"
