"""Loops of the tutorials from the bench, each with what was missed of it once, and honest ones."""

from __future__ import annotations

import pytest
from anywhere.mainstream.cases import CASES, FAULTS
from anywhere.mainstream.fourth.cases import FOURTH_CASES
from anywhere.mainstream.fourth.tasks import FOURTH
from anywhere.mainstream.honest import HONEST
from anywhere.mainstream.honest_more import HONEST_MORE
from anywhere.mainstream.judge import judged
from anywhere.mainstream.run import one, sieved, twins
from anywhere.mainstream.second.cases import SECOND_CASES
from anywhere.mainstream.second.tasks import SECOND
from anywhere.mainstream.tasks import FIRST, TASKS, set_of
from anywhere.mainstream.third.cases import THIRD_CASES
from anywhere.mainstream.third.tasks import THIRD


def line(name: str, seed: int = 0) -> dict:
    """What the bench says of one run."""
    got, plain = one(name, seed, "diagnose"), one(name, seed, "plain")
    return judged(CASES[name], got, plain, twins(CASES[name].task, seed), sieved(name, seed))


@pytest.mark.parametrize(
    "name",
    [
        "gpt/word 20 of 20",  # the model gives logits and its loss: which of them is trained on?
        "forecast/error over 0",  # the op is the loss's own, whatever gradient comes first behind it
        "gan/penalty at black",  # its replays call the rival's network, whose guard is not to listen
        "houses/rate x100000",  # statistics that were put back are at their first update again
        "cnn/maximize",  # up as it is told to: no rate is too high
        "policy/entropy by hand",  # a lower rate leads to log(0) later
        "graphs/NaN node",  # a batch that cannot be cut into samples
        "detector/NaN box",  # a target without an image id
        "vit/pixels x1e6",  # likely again and again, of the same sample: no reason to stop
        "houses/keeps gradients",  # it learns something all the same
        "houses/file: NaN moment",  # an optimizer's memory can begin anew
        "skipgram/words as floats",  # a table that begins at 0 is not what raised
        "lora/-1e9 in half",  # nor is a thin matrix
        "nerf/rate x300",  # a step that the replay gives again is no transient
        "experts/feature 1e38",  # no rate makes garbage sound
        "cnn/momentum 1.2",  # behind norms it grows for long, and no walk holds from there
        "flow/wrong sign",  # replays go down the loss that the loop goes up
        "byol/rate x10000",  # a loss of cosines stays small wherever the weights are thrown
        "simclr/rate x1000",  # all vectors alike after one step: the loss near its start, gradients near nothing
    ],
)
def test_what_was_missed_once(name: str):
    found = line(name)
    assert found["cause"] and not found["sure"], found
    assert found["culprit"] in (None, True) and found.get("survived") in (None, True), found


@pytest.mark.parametrize(
    "name",
    [
        *("cnn/as it is", "gpt/as it is", "gan/as it is"),
        "houses/begun again from its file",  # statistics of incomes, which no step of the guard's has made
        "policy/first rewards are rare, plain SGD",  # loud, and so on older weights; its step is one like others
        "houses/claims",  # nearly all targets are 0, and a few are not
        "bags/as it is",  # two optimizers; the first step is long, and the loss falls slowly
        "wgan/as it is",  # a loss of either sign, and a critic that no recorded step knows as it was
    ],
)
def test_an_honest_run_ends_in_the_bits_of_the_run_without_a_guard(name: str):
    found = line(name)
    assert not found["acted"] and found["same"], found


def test_no_two_cases_or_tasks_share_a_name():
    sets = (*FAULTS, *HONEST, *HONEST_MORE), SECOND_CASES, THIRD_CASES, FOURTH_CASES
    assert len(CASES) == sum(map(len, sets)) and len(TASKS) == len(FIRST) + len(SECOND) + len(THIRD) + len(FOURTH)
    for number, cases in enumerate(sets, 1):
        assert {set_of(c.name) for c in cases} == {number}


@pytest.mark.parametrize("name", ["gan/rate x1000", "gan/NaN weight"])
def test_what_a_rival_does_is_never_called_something_else_surely(name: str):
    assert not line(name)["sure"]


@pytest.mark.parametrize("name", ["clip/a caption of no known word", "graphs/mean of no node"])
def test_kept_is_what_leaving_the_bad_steps_out_by_hand_keeps(name: str):
    # the loss that divides is another than the clean twin's: no run with it ends as good as that
    found = line(name)
    assert found["kept"] and found["by hand"] == pytest.approx(found["score"][0]), found
    assert not judged(CASES[name], one(name, 0, "diagnose"), one(name, 0, "plain"), twins(CASES[name].task, 0))["kept"]
