"""What a replay is compared with."""

from __future__ import annotations

import math

import pytest

from maskrcnn_coco.diagnosis.comparisons import above_still, astray, louder, mean_loss, unlearnt
from maskrcnn_coco.diagnosis.facts import Facts, Reference
from maskrcnn_coco.replay.outcome import Outcome


def walk(*losses: float) -> Outcome:
    return Outcome("walk", True, path=[(i, v, 10.0 * v) for i, v in enumerate(losses)])


@pytest.mark.parametrize(
    ("still", "reached", "wanted"),
    [
        # A batch louder than any the run had there, and a run that went to 1e15 from it, as measured.
        (walk(4.0, 5.5, 2.0), walk(2.0, 1.8, 3.7e15), (8.25, 82.5)),
        (walk(4.0, 5.5, 2.0), Outcome("walk", False, path=[(0, 2.0, 20.0)]), (8.25, 82.5)),
        (walk(4.0, 5.0, 2.0), walk(2.0, 1.8, 3.7e15), (0.0, 0.0)),
        (walk(4.0, 5.5, 2.0), walk(2.0, 1.8, 330.0), (8.25, 82.5)),
        (walk(4.0, 5.5, 2.0), walk(2.0, 1.8, 90.0), (0.0, 0.0)),
        (walk(4.0, 5.5, 2.0), None, (0.0, 0.0)),
        (Outcome("walk", False, path=[(0, math.nan, math.nan)]), walk(2.0, 1e15), (0.0, 0.0)),
    ],
)
def test_bounds_that_weights_at_rest_do_not_keep_are_raised(still: Outcome, reached: Outcome | None, wanted) -> None:
    assert louder(still, (9.0, 53.0), reached) == pytest.approx(wanted)


@pytest.mark.parametrize(("loss", "own"), [(2.0, True), (3.7e15, False)])
def test_a_refused_update_is_the_step_s_own_doing_only_where_its_loss_was_sound(loss: float, own: bool) -> None:
    """A rate that leapt one step before has thrown the weights away already, although no loss before this one rose."""
    facts = Facts("diverged", 15, 2, 15, measured={"update_bound": {"a": 8e13}}, reference=Reference(2.4, 6.5, 15))
    facts.outcomes["same"] = Outcome("same", True, {"a": loss}, loss, 8.0)
    assert facts.leap and facts.own_leap is own


@pytest.mark.parametrize(
    ("off", "named"),
    [
        ({"rpn.a": 900.0, "rpn.b": 0.3, "backbone.a": 2e-4}, "rpn"),
        ({"rpn.a": 900.0, "backbone.a": 0.3}, None),  # what followed has reached all
        ({"rpn.a": 5e-3, "backbone.a": 1e-6}, None),
        ({}, None),
    ],
)
def test_a_component_is_named_where_it_alone_is_not_where_its_steps_lead(off: dict[str, float], named: str | None):
    assert astray([(v, name) for name, v in off.items()]) == named


def test_own_losses_of_a_component_are_held_against_their_start_alone():
    """Behind a sum that falls, or that was higher at the start than it became since."""
    own = {"component": "rpn", "losses": ["loss_objectness", "loss_rpn_box_reg"], "most": 0.77}
    facts = Facts("diverged", 12, 2, 4, measured={"own": own}, reference=Reference(2.4, 6.5, 4))
    losses = {"loss_objectness": 0.6, "loss_rpn_box_reg": 0.01, "loss_classifier": 9.0}
    assert unlearnt(Outcome("a", True, losses, loss=9.6), facts) is False
    assert unlearnt(Outcome("a", True, {**losses, "loss_rpn_box_reg": 0.5}, loss=1.1), facts) is True
    assert unlearnt(Outcome("a", True, losses, loss=9.6), Facts("diverged", 12, 2, 4)) is None


STOOD = walk(0.15, 0.1, 6.3, 0.0, 0.2)


@pytest.mark.parametrize(
    ("still", "reached", "least", "wanted"),
    [
        (STOOD, walk(0.15, 31.0, 42.0, 113.0, 133.0), 3.0, math.sqrt(1.65 * 79.75)),
        (STOOD, walk(0.15, 0.4, 8.0, 0.0, 2.0), 3.0, math.inf),  # what batches differ by
        (walk(2.97, 2.99, 3.08, 2.98), walk(2.97, 3.41, 3.42, 3.41), 1.05, math.sqrt(3.0166667 * 3.4133333)),
        (walk(2.97, 2.99, 3.08, 2.98), walk(2.97, 3.0, 3.1, 2.9), 1.05, math.inf),
        (STOOD, None, 3.0, math.inf),
        (STOOD, Outcome("walk", False, path=[(0, 0.1, 1.0)]), 3.0, math.inf),
        (walk(0.0, 0.0), walk(0.0, 5.0), 3.0, math.inf),
    ],
)
def test_halfway_from_weights_that_stand_still_to_the_steps_as_they_were(
    still: Outcome, reached: Outcome | None, least: float, wanted: float
) -> None:
    assert above_still(still, reached, least=least) == pytest.approx(wanted)


def test_the_loss_of_a_walk_is_that_of_its_last_steps_without_its_start():
    assert mean_loss(walk(9.0, 1.0, 2.0, 3.0), 2) == 2.5 and mean_loss(walk(9.0, 1.0, 2.0, 3.0), 4) == 2.0
    assert mean_loss(Outcome("one step", True, loss=-7.0, path=[(0, -7.0, 1.0)]), 4) == 7.0
