"""Every curated hostile input ends in one clear error or finding: no signal, no hang, nothing unusable passed on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hostile_corpus import REFUSED, cases

CASES = cases()
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What each case led to; all run in one process of their own, so that a crash is a missing line."""
    folder = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-W", "error", str(HERE / "hostile_run.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=HERE)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, f"died after {lines[-1]['name'] if lines else 'nothing'}: {done.stderr[-3000:]}"
    return {line["name"]: line for line in lines}


def test_there_are_200_cases_with_different_names():
    assert len(CASES) >= 200
    assert len({c.name for c in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_hostile_input_is_named(case, outcomes):
    outcome = outcomes[case.name]
    found = outcome["found"]
    assert isinstance(found, list), f"{case.name} raised {found}"
    if case.expect.startswith(REFUSED):
        assert len(found) == 1 and found[0].startswith("DataError"), found
        assert case.expect.removeprefix(REFUSED) in found[0]
    elif case.expect:
        assert set(case.expect.split()) & set(found), found
    else:
        assert not [f for f in found if f.startswith(("DataError", "BOX", "LABEL", "ANN", "IMAGE_"))], found
    assert outcome["seconds"] < 5


def test_memory_stays_below_512_mib(outcomes):
    assert max(o["peak"] for o in outcomes.values()) <= 512
