"""Tall losses with calm ones in between: seen where a run comes apart, never in tails that were always there."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable

import pytest

from maskrcnn_coco.guard.divergence import Divergence
from maskrcnn_coco.guard.rows import SPREAD, Scattered

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
