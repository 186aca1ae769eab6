"""The examples for SLURM and Ray Train, run as they stand with two processes of this machine."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SRUN = """#!/bin/bash
# As srun: the command once for each task, each with its numbers; one that fails is the exit code.
while [[ $1 == -* ]]; do echo "$1" >> "$SRUN_FLAGS"; shift; done
for n in $(seq 0 $((SLURM_NTASKS - 1))); do SLURM_PROCID=$n SLURM_LOCALID=$n "$@" & pids+=($!); done
code=0
for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
exit $code
"""
SCONTROL = """#!/bin/bash
[[ "$*" == "show hostnames node[1-2]" ]] && printf 'localhost\\nnode2\\n'
"""
COMMAND = f'#!/bin/bash\nexec {sys.executable} -W ignore -m maskrcnn_coco "$@"\n'


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_the_slurm_script_trains_with_a_process_for_each_task(tmp_path: Path):
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL, "maskrcnn-coco": COMMAND}.items():
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "41", "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NTASKS": "2",
        "MASTER_PORT": str(free_port()), "SRUN_FLAGS": str(tmp_path / "flags"),
    }  # fmt: skip
    env = {**os.environ, **slurm, "PATH": f"{tools}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = ["bash", str(ROOT / "examples" / "slurm.sbatch"), str(tmp_path / "run"), "--demo", "--device", "cpu"]
    command += ["--max-steps", "1", "--batch-size", "1", "--workers", "0", "--box-detections-per-image", "5"]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "--kill-on-bad-exit=1" in (tmp_path / "flags").read_text()
    logs = tmp_path / "run" / "logs"
    result = json.loads((logs / "result.json").read_text())
    assert (result["status"], result["steps"], result["finite"]) == ("finished", 1, True)
    assert json.loads((logs / "run.json").read_text())["environment"]["world"] == 2
    assert (tmp_path / "run" / "checkpoints" / "last.pth").is_file()


def test_the_slurm_script_says_what_it_needs(tmp_path: Path):
    done = subprocess.run(
        ["bash", str(ROOT / "examples" / "slurm.sbatch")], cwd=tmp_path, capture_output=True, text=True, timeout=30
    )
    assert done.returncode != 0
    assert "RUN_FOLDER" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_the_ray_train_job_runs_on_two_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token into the user's home
    monkeypatch.setenv("RAY_worker_niceness", "0")  # 15 by default: on a busy machine its workers do not get to run
    monkeypatch.setenv("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "300")  # on few cores
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.train.torch")
    spec = importlib.util.spec_from_file_location("ray_train_example", ROOT / "examples" / "ray_train.py")
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "ray_train_example", example)
    spec.loader.exec_module(example)
    ray.init(num_cpus=3, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}})
    try:
        ray.cloudpickle.register_pickle_by_value(example)
        settings = {"demo": True, "max_steps": 2, "batch_size": 1, "workers": 0}
        done = example.job(settings, tmp_path, workers=2, gpu=False, restarts=0).fit()
    finally:
        ray.shutdown()
    assert done.error is None
    assert (example.outcome(done)["steps"], example.outcome(done)["finite"]) == (2, True)
    assert json.loads((tmp_path / "logs" / "result.json").read_text())["status"] == "finished"
    assert json.loads((tmp_path / "logs" / "run.json").read_text())["environment"]["world"] == 2
