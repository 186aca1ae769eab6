"""A slice of NaN-Bench through the real worker: faults survived and named, a decoy left alone, peers honest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
pytestmark = pytest.mark.skipif(not (BENCH / "nanbench").is_dir(), reason="the bench is not part of the package")
sys.path.insert(0, str(BENCH))

if (BENCH / "nanbench").is_dir():
    from nanbench import crossed
    from nanbench.report import write
    from nanbench.run import jobs_of
    from nanbench.scenarios import BY_ID, SCENARIOS
    from nanbench.scene import Setup, clean_scene
    from nanbench.scoring import score_all

SLICE = {
    "ours": [
        *("box-inf-segfault", "pixel-nan-batchnorm", "lr-backbone", "momentum-nan", "bit-flip-fc6"),
        *("pair-unseen", "form-labels-missing-batch-1", "glitch-fc6", "resume-box-head-1e4", "retina-box-inverted"),
        "decoy-crowds",
    ],
    "reference": ["box-inf-segfault", "pixel-nan"],
    "skip": ["pixel-nan"],
}


def job(system: str, scenario: str, setup: Setup, seed: int = 0) -> dict:
    return {"system": system, "scenario": scenario, "setup": vars(setup), "seed": seed}


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """The slice, run once in forked processes as `make nanbench` does."""
    folder = tmp_path_factory.mktemp("nanbench")
    jobs = [job(s, name, BY_ID[name].setup) for s, names in SLICE.items() for name in names]
    jobs += [job("skip", "clean", Setup(), seed) for seed in range(3)]
    (folder / "jobs.json").write_text(json.dumps(jobs))
    command = [sys.executable, BENCH / "nanbench" / "worker.py", folder / "jobs.json", folder / "raw.jsonl"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder)}
    subprocess.run([*command, "--processes", "2"], env=environment, check=True, capture_output=True)
    return [json.loads(line) for line in (folder / "raw.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def lines(raw):
    return {(k["system"], k["scenario"], k["seed"]): k for k in score_all(raw)}


@pytest.mark.parametrize("name", SLICE["ours"][:-1])
def test_a_fault_is_survived_and_its_cause_and_culprit_are_named(lines, name):
    line = lines[("ours", name, 0)]
    assert line["survived"], line
    assert line["cause"] == BY_ID[name].cause
    assert line["cause_ok"]
    assert line["culprit_ok"] is not False


def test_nothing_wrong_is_said_with_confidence(lines):
    assert [k["scenario"] for k in lines.values() if k.get("wrong_and_sure")] == []


def test_a_decoy_is_left_alone(lines):
    assert lines[("ours", "decoy-crowds", 0)]["false_actions"] == 0


def test_peers_are_measured_as_they_behave(lines):
    assert lines[("reference", "box-inf-segfault", 0)]["survived"] is False
    assert "crash" in lines[("reference", "box-inf-segfault", 0)]["stopped"]
    assert lines[("reference", "pixel-nan", 0)]["actions"] == ["stop"]
    skipped = lines[("skip", "pixel-nan", 0)]
    assert skipped["survived"]
    assert set(skipped["actions"]) == {"skip"}
    assert skipped["cause"] is None
    assert skipped["cause_ok"] is False
    assert isinstance(skipped["harm"], float)


def test_the_report_says_what_was_missed(raw, tmp_path):
    lines = score_all(raw)
    assert write(lines, tmp_path) in (0, 1)
    text = (tmp_path / "nanbench.md").read_text()
    assert "maskrcnn_coco" in text
    wrong = [k for k in lines if k["scenario"] == "momentum-nan"]
    wrong[0] |= {"cause": "UNKNOWN", "cause_ok": False}
    assert write(lines, tmp_path) == 1
    assert "`momentum-nan` seed 0: " in (tmp_path / "nanbench.md").read_text()


def test_every_cause_has_three_scenarios_and_there_are_decoys_enough():
    from maskrcnn_coco.records import CAUSES

    counts = Counter(s.cause for s in SCENARIOS if not s.decoy)
    assert {c: counts[c] for c in CAUSES if counts[c] < 3} == {}
    assert set(counts) <= set(CAUSES)
    assert sum(s.decoy for s in SCENARIOS) >= 40
    assert len(SCENARIOS) >= 180
    assert len(BY_ID) == len(SCENARIOS)


def test_scenarios_vary_and_name_their_source():
    faults = [s for s in SCENARIOS if not s.decoy]
    assert {s.setup.precision for s in faults} == {"fp32", "bf16", "fp16"}
    assert {s.setup.accumulate for s in faults} == {1, 2, 4}
    assert {s.setup.norm for s in faults} == {"frozen", "group", "batch", "layer"}
    assert {s.setup.optimizer for s in faults} >= {"sgd", "adam", "adamw", "adagrad", "rmsprop", "nadam"}
    assert {s.setup.batch for s in faults} == {1, 2, 4, 8}
    assert {s.setup.model for s in faults} >= {"mask", "faster", "retina", "fcos", "ssd", "keypoint", "own"}
    assert all(s.source for s in SCENARIOS)


def test_a_fault_changes_only_its_own_scene():
    scene, other = clean_scene(Setup(), 0), clean_scene(Setup(), 0)
    BY_ID["box-nan"].fault(scene)
    assert not scene.samples[scene.culprit][1]["boxes"].isfinite().all()
    assert all(t["boxes"].isfinite().all() for _, t in other.samples)


def test_each_run_is_asked_for_once():
    keys = [json.dumps(j, sort_keys=True) for j in jobs_of(["ours", "skip"], [0, 1, 2], [])]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("loops", [False, True])
def test_known_faults_are_drawn_into_set_ups_that_are_not_their_own(loops: bool) -> None:
    jobs = crossed.drawn(200, 3, loops=loops)
    assert jobs == crossed.drawn(200, 3, loops=loops) and len(jobs) == 200
    for each in jobs:
        scenario, setup = BY_ID[each["scenario"]], Setup(**each["setup"])
        assert setup != scenario.setup
        assert not (setup.norm == "batch" and setup.batch == 1)
        if scenario.cause == "LR_TOO_HIGH":
            assert (setup.optimizer, setup.precision) == (scenario.setup.optimizer, scenario.setup.precision)
