"""Files made to run code, to fill memory, or to look like checkpoints: all refused, with a sentence, and fast."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
SAYS = {
    "runs os.system": "os.system",
    "stride 0, 10^12 elements": "claims elements",
    "storage says more than it has": "has not the size",
    "reaches outside its storage": "outside its storage",
    "one storage, a million views": "twice the bytes",
    "memo index of 2^31": "huge table",
    "list in lists, 2^60": "in itself",
    "nested 100000 deep": "too deep",
    "compressed bomb": "expand",
    "pickle of 17 MiB": "larger than",
    "png": "does not end in a digest",
    "torch.save without digest": "does not end in a digest",
    "newer format": "update maskrcnn-coco",
    "no model": "lacks model",
    "no step": "loop.step",
    "NaN weight": "non-finite values: model.w",
    "infinite learning rate": "lr = inf",
    "NaN loss scale": "scaler.scale",
    "a pipe": "not a file",
    "no file": "No such file",
}


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("payloads")
    path = f"{HERE.parents[1]}:{HERE}"
    done = subprocess.run(
        [sys.executable, HERE / "payloads.py", folder],
        env={"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_all_are_refused_with_a_sentence(report: dict):
    assert len(report["results"]) >= 100
    wrong = {n: r for n, r in report["results"].items() if r["outcome"] != "refused"}
    assert wrong == {}
    assert all(".pth" in r["message"] or n == "a folder" for n, r in report["results"].items())


def test_nothing_was_run(report: dict):
    assert report["executed"] is False


def test_memory_and_time_stay_bounded(report: dict):
    assert report["grown"] <= 64 << 20
    assert max(r["seconds"] for r in report["results"].values()) < 5


@pytest.mark.parametrize("name", SAYS)
def test_the_reason_is_the_right_one(report: dict, name: str):
    assert SAYS[name] in report["results"][name]["message"]


def test_a_sound_file_is_taken(report: dict):
    assert report["good"]["outcome"] == "taken"
