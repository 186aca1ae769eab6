"""Several processes that are killed, stopped and resumed; see teams.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TEAMS = Path(__file__).with_name("teams.py")
pytestmark = pytest.mark.slow


def run(folder: Path, environment: dict[str, str], world: int, *parts: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, TEAMS, folder, str(world), *parts],
        env=environment,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("world", [2, 4])
def test_a_killed_and_interrupted_run_ends_in_the_same_bits(world: int, fast_folder: Path, child_environment):
    found = run(fast_folder, child_environment, world, "resume")["resume"]
    assert found["codes"] == [[0] * world, [-9] * world, [143] * world, [-9] * world, [0] * world]
    assert found["wrong"] == []
    images = found["images"]
    for step in range(found["steps"]):
        here = [i for rank in images for i in rank[step]]
        assert len(set(here)) == len(here), "the processes share out each step's images"


def test_an_image_that_one_process_alone_cannot_read_is_left_out_by_all(fast_folder: Path, child_environment):
    found = run(fast_folder, child_environment, 2, "bad data")["bad data"]
    assert found["codes"] == [[0, 0], [-9, -9], [143, 143], [-9, -9], [0, 0]]
    assert found["wrong"] == []
    unreadable = [i for i in found["incidents"] if i["cause"] == "DATA_PIXEL"]
    assert [(i["culprit"]["image_ids"], i["culprit"]["rank"]) for i in unreadable] == [([7], 1)]
    spoiled = [i for i in found["incidents"] if i["culprit"]["image_ids"] == [12]]
    assert len(spoiled) == 1 and len(found["incidents"]) == 2
    for rank in found["images"]:
        assert 7 not in [i for step in rank[found["steps"] // 2 :] for i in step]


def test_a_process_that_is_lost_alone_ends_the_others_with_its_name(fast_folder: Path, child_environment):
    found = run(fast_folder, child_environment, 3, "lost")["lost"]
    for how, most in (("SIGKILL", 40), ("SIGSTOP", 60)):
        assert found[how]["codes"] == [1, 1, -9]
        for words in found[how]["words"]:
            assert words[0].startswith("error: process 2 of 3 did not answer in ")
            assert "--max-restarts" in words[-1]
        assert found[how]["seconds"] < most
        assert found[how]["after"] == [0, 0, 0], "what was saved until then is gone on from"
