"""Whole runs under random faults: a slice; the whole is ``make soak``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SOAK = Path(__file__).resolve().parents[2] / "bench" / "faults" / "soak.py"


def soak(shim: Path, environment: dict[str, str], *options: str) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, SOAK, "--json", *options],
        env={**environment, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.stdout, done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_a_run_that_is_hit_again_and_again_ends_in_the_same_bits(shim: Path, child_environment: dict[str, str]):
    code, found = soak(shim, child_environment, "--faults", "8", "--seed", "2", "--only", "bad data, 2", "--no-each")
    assert found["failures"] == []
    assert code == 0
    assert sum(found["happened"].values()) >= 8
    assert len(found["happened"]) >= 4


@pytest.mark.slow
def test_a_run_that_is_killed_after_every_step_ends_in_the_same_bits(shim: Path, child_environment: dict[str, str]):
    code, found = soak(shim, child_environment, "--faults", "18", "--seed", "1", "--only", "every step")
    assert (code, found["failures"]) == (0, [])
    assert found["happened"]["killed after a step"] >= 18
