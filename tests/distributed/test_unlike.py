"""Real teams of two processes: one that differs is named before the first step, or at the next comparison; a team that
is asked to end, ends, with a checkpoint that goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).parents[1] / "helpers" / "unlike_teams.py"
AT_THE_START = {
    "seed": "--seed",
    "box": "annotations",
    "classes": "the list of classes",
    "weight at the start": "weights at the start",
}
LATER = ("same data elsewhere", "weight", "Ctrl-C", "Ctrl-C, again", "SIGTERM twice", "SIGTERM twice, again")


@pytest.fixture(scope="module")
def teams(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("unlike")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *AT_THE_START, *LATER], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("case", AT_THE_START)
def test_a_process_that_differs_is_named_on_both_before_anything_is_written(teams, case):
    found = teams[case]
    assert found["codes"] == [2, 2], found["said"]
    for said in found["said"]:
        (error,) = [line for line in said.splitlines() if line.startswith("error:")]
        assert AT_THE_START[case] in error and "process 1 differs from process 0" in error
        assert "Traceback" not in said
    assert found["saved"] == []


def test_one_finite_value_that_changes_in_one_process_stops_both(teams):
    found = teams["weight"]
    assert found["codes"] == [4, 4], found["said"]
    assert "the 2 processes have different weights" in found["said"][0]
    assert "last.pth" in found["saved"]


def test_ctrl_c_while_one_of_a_team_looks_for_a_cause_saves_and_ends_both(teams):
    found = teams["Ctrl-C"]
    assert found["codes"] == [130, 130], found["said"]
    assert "last.pth" in found["saved"]
    assert "--resume auto goes on from" in found["said"][0]
    assert teams["Ctrl-C, again"]["codes"] == [0, 0]


def test_a_second_sigterm_ends_a_team_at_once_and_the_last_checkpoint_goes_on(teams):
    found = teams["SIGTERM twice"]
    assert found["codes"] == [-15, -15], found["said"]
    assert all("once more stops at once" in said for said in found["said"])
    assert teams["SIGTERM twice, again"]["codes"] == [0, 0]
    assert "going on from" in teams["SIGTERM twice, again"]["said"][0]


def test_the_same_data_in_another_place_is_no_difference(teams):
    found = teams["same data elsewhere"]
    assert found["codes"] == [0, 0], found["said"]
