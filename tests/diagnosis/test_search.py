"""The searches: at most ⌈log2 n⌉ + 1 tests name one image; a component is named only if it is needed and enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from maskrcnn_coco.diagnosis.comparisons import climbing
from maskrcnn_coco.diagnosis.endurance import Endurance
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.lr_experiments import LrExperiments
from maskrcnn_coco.diagnosis.lr_verdict import LrVerdict
from maskrcnn_coco.diagnosis.search import FACTORS, factors_for, lr_search, smallest_culprits, smallest_cure
from maskrcnn_coco.replay.outcome import Outcome

ORDER = ["backbone", "rpn", "box_head", "mask_head"]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 7, 8, 16, 33])
def test_one_image_is_named_within_the_bound(count: int):
    for guilty in range(count):
        asked: list[str] = []

        def bad(group: Sequence[int], name: str, guilty: int = guilty, asked: list[str] = asked) -> bool:
            asked.append(name)
            return guilty in group

        assert smallest_culprits(range(count), bad) == [guilty]
        naming = [a for a in asked if a != "others"]
        assert len(naming) <= math.ceil(math.log2(count)) + 1


def test_two_guilty_images_are_both_named():
    found = smallest_culprits(range(8), lambda group, name: bool({2, 5} & set(group)))
    assert found == [2, 5]


def test_no_image_is_named_where_only_all_together_fail():
    assert smallest_culprits(range(4), lambda group, name: len(group) == 4) == []


@pytest.mark.parametrize("count", [3, 4, 7, 16, 33])
def test_what_is_bad_in_company_only_is_found_by_leaving_it_out(count: int):
    for guilty in range(count):
        asked: list[str] = []

        def cured(left_out: Sequence[int], name: str, guilty: int = guilty, asked: list[str] = asked) -> bool:
            asked.append(name)
            return guilty in left_out

        assert smallest_cure(range(count), cured) == [guilty]
        assert len(asked) == len(set(asked)) <= 2 * math.ceil(math.log2(count))


def test_two_that_are_bad_in_company_and_pairs_name_nobody():
    assert smallest_cure(range(8), lambda left_out, name: {2, 5} <= set(left_out)) == []
    assert smallest_cure(range(2), lambda left_out, name: True) == []


def walker(rule):
    def walk(lowered: Sequence[str], factor: float):
        return rule(set(lowered), factor), Outcome("walk", True)

    return walk


@pytest.mark.parametrize("guilty", ORDER)
def test_a_single_component_is_proved_whatever_the_prior(guilty: str):
    verdict = lr_search(walker(lambda lowered, _: guilty in lowered), ORDER, 7)
    assert (verdict.components, verdict.sufficient, verdict.necessary) == ([guilty], True, True)
    assert verdict.from_step == 7 and len(verdict.trials) <= 6


def test_both_needed():
    both = {"box_head", "mask_head"}
    verdict = lr_search(walker(lambda lowered, _: both <= lowered), ORDER, 0)
    assert set(verdict.components) == both and verdict.necessary
    heads_first = ["mask_head", "box_head", "backbone", "rpn"]
    quicker = lr_search(walker(lambda lowered, _: both <= lowered), heads_first, 0, beside=["box_head"])
    assert set(quicker.components) == both and quicker.necessary
    assert len(quicker.trials) == 4 < len(verdict.trials)


@pytest.mark.parametrize("guilty", ORDER)
def test_the_one_beside_the_first_is_no_shortcut_to_a_wrong_name(guilty: str):
    verdict = lr_search(walker(lambda lowered, _: guilty in lowered), ORDER, 0, beside=["rpn"])
    assert (verdict.components, verdict.sufficient, verdict.necessary) == ([guilty], True, True)
    asked = [(t.factor, frozenset(t.lowered)) for t in verdict.trials]
    assert len(asked) == len(set(asked)), "no walk is taken twice"


def test_any_of_them_helps_goes_by_the_prior_with_less_confidence():
    verdict = lr_search(walker(lambda lowered, _: len(lowered) > 0), ORDER, 0)
    assert verdict.components == ["backbone"] and verdict.sufficient and not verdict.necessary


def test_the_needed_one_is_preferred_over_one_that_merely_helps():
    """Lowering the backbone damps it, but the box head alone is what cannot stay as it is."""
    rule = walker(lambda lowered, _: "box_head" in lowered or lowered == {"backbone"})
    verdict = lr_search(rule, ORDER, 0)
    assert verdict.components == ["box_head"] and verdict.necessary


def test_a_far_too_high_rate_needs_the_second_factor():
    verdict = lr_search(walker(lambda lowered, factor: "rpn" in lowered and factor <= 0.01), ORDER, 0)
    assert verdict.components == ["rpn"] and verdict.factor == 0.01


def test_not_a_learning_rate():
    verdict = lr_search(walker(lambda lowered, factor: False), ORDER, 0)
    assert not verdict.sufficient and verdict.components == []


@pytest.mark.parametrize(("helps", "named"), [("rpn", "rpn"), ("everything", "backbone"), ("nothing", "backbone")])
def test_what_moved_most_is_lowered_further_before_what_hardly_moved_is_named(helps: str, named: str):
    walks = LrExperiments.__new__(LrExperiments)
    outcome = Outcome("", True)
    walks._walker = lambda start, *_: lambda lowered, factor: (helps == "everything" or helps in lowered, outcome)
    doubtful = LrVerdict(["backbone"], 0, 0.1, True, True, doubtful=True)
    found = walks._expected(SimpleNamespace(step=0), ["rpn", "backbone"], doubtful)
    assert found.components == [named] and found.factor == (0.01 if named == "rpn" else 0.1)
    assert all(t.factor == 0.01 for t in found.trials)


def test_a_walk_that_ends_far_above_its_own_last_steps_diverges_more_slowly():
    steady = Outcome("", True, path=[(s, 7.0 - s / 4, 20.0) for s in range(14)])
    slow = Outcome(
        "", True, path=[*steady.path[:10], (10, 3.0, 20.0), (11, 3.5, 20.0), (12, 5.0, 30.0), (13, 12.0, 60.0)]
    )
    assert not climbing(steady, 8) and climbing(slow, 8)


@pytest.mark.parametrize(
    ("losses", "also", "holds"),
    [
        ({(0, 0.3): 2.0, (1, 0.3): 2.1, (0, 0.1): 1.95}, [], 0.3),
        ({(0, 0.3): 2.0, (1, 0.3): 1.5, (1, 0.1): 1.45}, ["mask_head"], 0.3),
        ({(0, 0.3): 2.0, (0, 0.1): 1.5, (0, 0.033): 1.2, (0, 0.011): 1.3}, [], 0.033),
        # Those beside hold only where the rate is lower still; then they come along.
        ({(0, 0.3): 2.0, (0, 0.1): 1.8, (1, 0.1): 1.5, (1, 0.033): 1.6}, ["mask_head"], 0.1),
    ],
)
def test_of_what_holds_the_rates_are_taken_at_which_most_is_learned(losses: dict, also: list[str], holds: float):
    verdict = LrVerdict(["box_head"], 0, 0.1, True, True, holds=0.3)

    def reached(lowered: list[str], factor: float) -> float:
        return losses.get((len(lowered), float(f"{factor:.2g}")), math.inf)

    settle(verdict, ["mask_head"], losses[(0, 0.3)], reached)
    assert verdict.also == also and verdict.holds == pytest.approx(holds, rel=0.02)


@pytest.mark.parametrize(
    ("still", "holds"),
    [
        (1.0, 0.03),  # 0.07, 0.11, 0.145 and then 0.14 were learned
        (math.nan, 0.3),
        (0.7, 0.3),  # it learns nothing at any of them
        (0.81, 0.3),  # or next to nothing
    ],
)
def test_what_is_learned_is_measured_from_weights_that_stand_still(still: float, holds: float):
    """A loss of 3 of which a run takes 1 in all does not come down by a twentieth in eight steps."""
    losses = {0.3: 0.93, 0.1: 0.89, 0.033: 0.855, 0.011: 0.86} if still == 1.0 else dict.fromkeys([0.3, 0.1], 0.8)
    verdict = LrVerdict(["box_head"], 0, 0.1, True, True, holds=0.3)
    settle(verdict, [], losses[0.3], lambda _, factor: losses.get(float(f"{factor:.2g}"), math.inf), still)
    assert verdict.holds == pytest.approx(holds, rel=0.12)


def settle(verdict: LrVerdict, beside: list[str], best: float, reached: Any, still: float = math.nan) -> None:
    """`Endurance._settle`, with all the steps that it likes."""
    walker: Any = None
    Endurance(Facts("diverged", 0, 0, 0), walker, lambda named: beside, lambda: False)._settle(
        verdict, beside, best, reached, lambda: still
    )


@pytest.mark.parametrize(("holds", "also"), [(0.3, []), (0.003, ["mask_head"])])
def test_what_was_given_a_mistyped_rate_too_comes_down_with_it(holds: float, also: list[str]):
    """A thousandth is no plan's: a component with the same rate is lowered along where that loses nothing."""
    verdict = LrVerdict(["box_head"], 0, holds, True, True, holds=holds)
    settle(verdict, ["mask_head"], 2.0, lambda lowered, factor: 1.99 if lowered and factor == holds else 2.5)
    assert verdict.also == also and verdict.holds == holds


@pytest.mark.parametrize("moves", [0.05, 5.0])
def test_a_walk_that_stays_bounded_and_throws_weights_about_is_lowered_further(moves: float):
    """At a rate a thousand times too high the few batches of a walk may be fitted all the same."""
    facts = Facts("diverged", 4, 0, 0)
    verdict = LrVerdict(["rpn"], 0, 0.1, True, True)

    def walk(lowered: Sequence[str], factor: float) -> tuple[bool, Outcome]:
        path = [(s, 2.0, 1.0) for s in range(8)]
        return True, Outcome("", True, path=path, moved_last={"rpn": moves * factor / 0.1, "backbone": 9.0})

    state: Any = None
    Endurance(facts, lambda *_: (walk, 8), lambda named: [], lambda: False).endure(verdict, state)
    assert verdict.holds == pytest.approx(0.3 if moves == 0.05 else 0.1 / 27)


@pytest.mark.parametrize("times", [3e3, 1e5, 3e8])
def test_rates_that_leapt_are_tried_where_they_came_from(times: float):
    """A tenth does not help: the next try is the rate of the steps before, not all that lies between."""
    verdict = lr_search(
        walker(lambda lowered, f: "rpn" in lowered and f <= 2 / times), ORDER, 0, factors=factors_for(times)
    )
    assert verdict.components == ["rpn"] and verdict.factor == 1 / times
    assert len(verdict.trials) <= 7


@pytest.mark.parametrize("times", [1.0, 50.0, math.inf, math.nan])
def test_rates_that_did_not_leap_are_lowered_by_tens(times: float):
    assert factors_for(times) == FACTORS


def test_an_update_out_of_all_proportion_is_brought_down_to_a_sound_share():
    assert factors_for(1.0, leap=50.0) == FACTORS
    assert factors_for(1.0, leap=1e5) == (*FACTORS, 1e-7)
    found = lr_search(walker(lambda lowered, f: f <= 2e-7), ["all"], 0, factors=factors_for(1.0, leap=1e5))
    assert found.sufficient and found.components == ["all"] and found.factor == 1e-7


@pytest.mark.parametrize(
    ("losses", "back_to"),
    [({10: 3.6, 8: 1.9, 4: 1.8}, 8), ({10: 2.1, 8: 1.9, 4: 1.8}, None), ({10: 9.0, 8: 4.0, 4: 1.8, 0: 0.1}, 4)],
)
def test_a_state_that_lies_well_into_the_way_up_gives_way_to_an_older_one(losses: dict[int, float], back_to: int):
    states: list[Any] = [SimpleNamespace(step=s) for s in losses]
    rates: list[dict[str, float]] = []

    def walker(state: Any, most: dict[str, float], settings: dict[str, float]) -> tuple[Any, int]:
        rates.append(most)
        return lambda *_: (True, Outcome("", True, path=[(s, losses[state.step], 1.0) for s in range(8)])), 8

    facts = Facts("diverged", 11, 0, 10, lr={"rpn": 0.5})
    verdict = LrVerdict(["rpn"], 10, 0.1, True, True)
    Endurance(facts, walker, lambda named: [], lambda: False).sounder(verdict, states)
    assert verdict.back_to == back_to
    assert all(most == {"rpn": 0.0} for most in rates)


@pytest.mark.parametrize(
    ("learned", "back_to"),
    [
        ({10: 0.5, 8: 1.0, 4: 2.0}, None),
        ({10: 0.0, 8: 0.0, 4: 2.0}, 4),
        ({10: 0.0, 8: 0.0}, None),
        ({10: 0.01, 8: 1.0}, 8),
        ({10: 0.0, 8: 0.0}, None),
    ],
)
def test_a_state_that_learns_nothing_any_more_gives_way_to_an_older_one(learned: dict[int, float], back_to: int):
    states: list[Any] = [SimpleNamespace(step=s) for s in learned]

    def walker(state: Any, most: dict[str, float], settings: dict[str, float]) -> tuple[Any, int]:
        loss = 4.6 if most == {"all": 0.0} else 4.6 - learned[state.step]
        return lambda *_: (True, Outcome("", True, path=[(s, loss, 1.0) for s in range(8)])), 8

    facts = Facts("loss_nonfinite", 13, 0, 10, lr={"all": 0.1})
    verdict = LrVerdict(["all"], 10, 1.0, True, True, holds=1.0, settings={"weight_decay": 1e-4})
    Endurance(facts, walker, lambda named: [], lambda: False).livelier(verdict, states)
    assert verdict.back_to == back_to
