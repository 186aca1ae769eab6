"""Two processes of somebody else's training take the same branch at every step, and the one that is bad is named."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from peers_run import ACCUMULATED, CASES

SCRIPT = Path(__file__).parents[1] / "helpers" / "peers_run.py"


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("peers")
    done = subprocess.run([sys.executable, str(SCRIPT), str(out)], capture_output=True, text=True, timeout=200)
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
    bad = [5, 6] if fault == "momentum" else [5]  # a state stays as it is until somebody mends it
    assert a["applied"] == [i not in bad for i in range(7)]
    assert a["digests"][4] == a["digests"][5]
    symptoms = {"far": "diverged", "crash": "crash", "buffer": "buffer_nonfinite", "momentum": "optimizer_nonfinite"}
    assert b["alarms"][5][0] == symptoms.get(fault, "loss_nonfinite")
    if way == "step" or fault in ("far", "buffer", "momentum"):
        assert a["alarms"][5][1] == b["alarms"][5][1] == 1, "process 1 is named on both"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["none", "nan", "far", "state", "scaled"])
def test_processes_that_hold_shares_of_the_weights_take_the_same_branch(both: list[dict[str, Any]], fault: str) -> None:
    a, b = (found[f"fsdp-{fault}"] for found in both)
    assert a["digests"] == b["digests"]
    assert a["applied"] == b["applied"]
    assert max(a["norms"]) < 1e-5, "the norm of the whole gradient"
    if fault == "none":
        assert a["applied"] == [True] * 7
        return
    bad = [5, 6] if fault in ("state", "scaled") else [5]  # a state stays as it is until somebody mends it
    assert a["applied"] == [i not in bad for i in range(7)]
    assert a["digests"][4] == a["digests"][5]
    symptom = {
        "nan": "loss_nonfinite",
        "far": "diverged",
        "state": "optimizer_nonfinite",
        "scaled": "optimizer_nonfinite",
    }[fault]
    assert a["alarms"][5] == b["alarms"][5] == [symptom, 1]


@pytest.mark.slow
def test_shards_that_are_not_understood_are_refused(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert all("shards" in said for said in found["shards"].values()), found["shards"]


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["sample", "state"])
def test_a_diagnosis_is_everybodys(both: list[dict[str, Any]], fault: str) -> None:
    a, b = (found[f"diagnosed-{fault}"] for found in both)
    assert a["digests"] == b["digests"]
    assert a["incidents"] == b["incidents"]
    assert a["finite"]
    step, cause, ids, rank, action, to_step = a["incidents"][0]
    assert step == 12
    if fault == "sample":
        assert (cause, ids, rank, action) == ("DATA_PIXEL", [12 * 100 + 50 + 3], 1, "skip")
    else:
        assert (cause, action) == ("POISONED_STATE", "rollback")
        assert to_step is not None


@pytest.mark.slow
@pytest.mark.parametrize(("fault", "diagnose"), ACCUMULATED)
def test_gradients_that_add_up_without_being_synchronised(
    both: list[dict[str, Any]], fault: str, diagnose: bool
) -> None:
    a, b = (found[f"accumulated-{fault}-{diagnose}"] for found in both)
    assert a["digests"] == b["digests"] and a["refused"] == b["refused"]
    assert a["refused"] == ([12] if fault == "sample" else []), a
    if diagnose:
        assert a["incidents"] == b["incidents"] == [[12, "DATA_PIXEL", [12 * 100 + 50 + 16 + 3], 1, "skip"]]
    if fault == "weight":
        assert a["regimes"] and b["regimes"], "taken for a new weight on both"
