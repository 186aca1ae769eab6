"""Several processes as one run: disjoint shards, one verdict, the bad process and image named, no hang."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from runs import incidents, lines, weights

SCRIPT = Path(__file__).parents[1] / "helpers" / "team_run.py"


def torchrun(world: int, data: Path, out: Path, what: str, *flags: str) -> subprocess.CompletedProcess[str]:
    out.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}", *flags]
    return subprocess.run(
        [*command, str(SCRIPT), str(data), str(out), what], capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def pair(tiny_shapes, tmp_path_factory):
    """An undisturbed run of two processes."""
    out = tmp_path_factory.mktemp("pair")
    done = torchrun(2, tiny_shapes.root, out, "whole")
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.mark.slow
def test_two_processes_see_every_image_once_an_epoch_and_write_once(pair):
    seen = [json.loads((pair / f"seen_{r}.json").read_text()) for r in (0, 1)]
    per_epoch = len(seen[0]) // 2
    first = [{i for ids in s[:per_epoch] for i in ids} for s in seen]
    assert not first[0] & first[1]
    assert len(first[0] | first[1]) == 24
    assert [s["step"] for s in lines(pair)] == list(range(12))
    result = json.loads((pair / "run" / "result.json").read_text())
    assert (result["exit_code"], result["finite"]) == (0, True)


@pytest.mark.slow
def test_one_process_with_a_nan_is_named_and_all_go_on(tiny_shapes, tmp_path):
    done = torchrun(2, tiny_shapes.root, tmp_path, "bad")
    assert done.returncode == 0, done.stderr[-3000:]
    found = incidents(tmp_path)
    assert len(found) == 1
    assert found[0]["culprit"]["image_ids"] == [105]
    assert found[0]["detail"]["measured"]["rank"] in (0, 1)
    assert sum(found[0]["detail"]["measured"]["per_rank_flags"]) == 1
    assert all(s["applied"] for s in lines(tmp_path))


@pytest.mark.slow
def test_torchrun_starts_a_run_again_whose_process_was_killed_and_it_ends_in_the_same_bits(pair, tiny_shapes, tmp_path):
    done = torchrun(2, tiny_shapes.root, tmp_path, "killed", "--max-restarts=1", "--monitor-interval=0.1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "killed").exists()
    assert "did not answer in" in done.stderr
    assert [s["step"] for s in lines(tmp_path)] == list(range(12))
    a, b = (weights(out / "checkpoints" / "epoch_002.pth") for out in (pair, tmp_path))
    assert all((a[name] == b[name]).all() for name in a)
