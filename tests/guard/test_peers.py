"""Two processes of somebody else's training take the same branch at every step, and the one that is bad is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peers_run import CASES

SCRIPT = Path(__file__).parents[1] / "helpers" / "peers_run.py"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("peers")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(SCRIPT)]
    done = subprocess.run([*command, str(out)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((out / f"{r}.json").read_text()) for r in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c[0]}-{c[1]}-{'ddp' if c[2] else 'own'}")
def test_both_take_the_same_branch(both: list[dict[str, Any]], case: tuple[str, str, bool]) -> None:
    way, fault, wrapped = case
    a, b = (found[f"{way}-{fault}-{'ddp' if wrapped else 'own'}"] for found in both)
    assert a["digests"] == b["digests"], "their weights part ways"
    assert a["applied"] == b["applied"]
    if fault == "none":
        assert a["applied"] == [True] * 7
        return
    assert a["applied"] == [i != 5 for i in range(7)]
    assert a["digests"][4] == a["digests"][5]
    symptoms = {"far": "diverged", "crash": "crash", "buffer": "buffer_nonfinite"}
    assert b["alarms"][5][0] == symptoms.get(fault, "loss_nonfinite")
    if way == "step" or fault in ("far", "buffer"):
        assert a["alarms"][5][1] == b["alarms"][5][1] == 1, "process 1 is named on both"


@pytest.mark.slow
def test_shards_are_refused(both: list[dict[str, Any]]) -> None:
    assert all("shards" in found["sharded"] for found in both)
