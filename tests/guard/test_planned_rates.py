"""Rates beside the plan are refused where their update would throw weights away, and only there."""

from __future__ import annotations

import pytest

from maskrcnn_coco.guard.planned_rates import FEWEST, PlannedRates


def judged(planned: float, rate: float, most: float, *, steps: int = FEWEST + 1) -> bool:
    plan = PlannedRates()
    plan.rates = {"head": planned, "rpn": 0.01}
    verdicts = [plan.judge({"head": most, "rpn": 0.01}, lambda: {"head": rate, "rpn": 0.01}) for _ in range(steps)]
    return verdicts[-1] is not None


@pytest.mark.parametrize(
    ("planned", "rate", "most", "refused"),
    [
        (0.01, 3.0, 2.0, True),
        (0.01, 0.05, 2.0, False),  # five times the plan's: a schedule of one's own
        (0.01, 3.0, 0.3, False),  # far from the plan, and moves little
        (0.01, 0.2, 4.0, False),  # the plan's own update would be as wild: another alarm's business
        (0.0, 3.0, 2.0, False),  # the plan says nothing of it
    ],
)
def test_refused_where_the_plan_s_update_would_be_calm(planned: float, rate: float, most: float, refused: bool) -> None:
    assert judged(planned, rate, most) is refused


def test_the_first_steps_may_lay_a_warm_up_aside() -> None:
    assert not judged(1e-5, 0.01, 2.0, steps=FEWEST) and judged(1e-5, 0.01, 2.0, steps=FEWEST + 1)


def test_the_worst_is_named_first_with_all_that_are_beside_the_plan() -> None:
    plan = PlannedRates()
    plan.rates = dict.fromkeys(("backbone", "rpn", "head"), 0.01)
    for _ in range(FEWEST + 1):
        found = plan.judge(
            {"backbone": 0.2, "rpn": 0.0, "head": 3.0}, lambda: {"backbone": 1.0, "rpn": 0.01, "head": 1.0}
        )
    assert found is not None and list(found.measured["foreign"]) == ["head", "backbone"]
    assert found.measured["component"] == "head"


def test_without_a_plan_nothing_is_judged() -> None:
    plan = PlannedRates()
    assert all(plan.judge({"head": 9.0}, lambda: {"head": 9.0}) is None for _ in range(FEWEST + 2))
