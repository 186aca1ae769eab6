"""How far is too far, where the run's healthy steps are many, few, or none."""

from __future__ import annotations

import math

import pytest

from maskrcnn_coco.diagnosis.from_records import beyond_sense
from maskrcnn_coco.diagnosis.limits import FEW, LOSS_FACTOR, MOST_FACTOR, loss_factor


@pytest.mark.parametrize(
    ("count", "reached", "factor"),
    [
        (FEW, 1e6, LOSS_FACTOR),
        (0, 1e6, LOSS_FACTOR),
        (1, 1e6, MOST_FACTOR),
        (1, 10.0, 10.0),
        (2, 1.0, LOSS_FACTOR),
        (1, math.nan, LOSS_FACTOR),
        (1, None, LOSS_FACTOR),
    ],
)
def test_one_or_two_steps_are_no_spread(count: int, reached: float | None, factor: float):
    assert loss_factor(0.1, count, reached) == pytest.approx(factor)


def test_a_usual_weight_decay_is_not_to_blame_for_what_the_rate_makes_of_it():
    def named(decay: float) -> set[str]:
        return beyond_sense("weight_decay", [({"all": 1e4}, [{"weight_decay": decay}])], ["all"])

    assert named(1e-4) == set() and named(1.0) == {"all"}
