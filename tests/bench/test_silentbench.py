"""A slice of Silent-Bench: told before the first step through each way in, cured by its fix; decoys left alone."""

from __future__ import annotations

import pytest
from silent.decoys import decoys
from silent.page import page
from silent.run import try_decoy, try_scenario
from silent.scenarios import scenarios

NAMES = (
    "own data: masks not flipped",
    "COCO: half crowd",
    "train_one_epoch: head replaced after the optimizer",
    "validation: classes in another order",
)


def test_there_are_enough_of_both():
    names = [i.name for i in (*scenarios(), *decoys())]
    assert len(names) == len(set(names))
    assert len(scenarios()) >= 45 and len(decoys()) >= 25


@pytest.mark.parametrize("name", NAMES)
def test_a_scenario_is_told_and_cured(name: str):
    row = try_scenario(next(s for s in scenarios() if s.name == name))
    assert row["code_right"] and row["fix_right"] and row["cured"], row["said"]


@pytest.mark.parametrize("name", ["COCO: real crowds beside objects", "Guard: warm-up from 0"])
def test_a_decoy_is_left_alone(name: str):
    row = try_decoy(next(d for d in decoys() if d.name == name))
    assert row["said"] == []
    assert "0 of 1" in page([row])
