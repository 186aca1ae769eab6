"""Runs jobs (system, scenario or clean, seed), each in a forked process of its own: a crash ends only that one.

python worker.py JOBS.json OUT.jsonl --processes 2      (run by run.py, once for each interpreter)
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

TIMEOUT = 180.0
"""Seconds for one run: a hundred times the usual."""
SYSTEMS = {
    "ours": ("nanbench.ours", "run"),
    "reference": ("nanbench.peers", "reference"),
    "skip": ("nanbench.peers", "skip"),
    "scaler": ("nanbench.peers", "scaler"),
    "lightning": ("nanbench.peer_lightning", "run"),
    "arc": ("nanbench.peer_arc", "run"),
}


def run_job(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """One run, to its outcome as plain data."""
    import torch

    from nanbench.scenario import NotApplicable
    from nanbench.scenarios import BY_ID
    from nanbench.scene import clean_scene, setup_from
    from nanbench.tiny import evaluation_loss

    torch.set_num_threads(1)
    system = getattr(import_module(SYSTEMS[job["system"]][0]), SYSTEMS[job["system"]][1])
    scenario = BY_ID.get(job["scenario"])
    scene = clean_scene(setup_from(job["setup"]) if scenario is None else scenario.setup, job["seed"])
    if scenario is not None:
        scenario.fault(scene)
    try:
        outcome = system(scene, folder)
    except NotApplicable as e:
        return {"not_applicable": str(e)}
    scene.active = False
    if outcome.finite and outcome.finished:  # a model that was wrong from the start cannot be evaluated either
        outcome.evaluation = evaluation_loss(scene.model, scene.held_out)
    return {**vars(outcome), "bad_id": scene.bad_id, "bad_ids": scene.bad_ids}


def child(job: dict[str, Any], answer: str) -> None:
    """In the forked process: output to a file, answer to a file."""
    folder = Path(tempfile.mkdtemp(prefix="nanbench_"))
    log = os.open(folder / "output", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        found = run_job(job, folder)
    except BaseException as e:  # whatever ends a run, SystemExit of the reference loop too, is its outcome
        last = f"{type(e).__name__}: {e}"[:300]
        found = {"finished": False, "stopped": last, "trace": traceback.format_exc()[-1500:]}
    Path(answer).write_text(json.dumps(found, default=str))
    if not job.get("keep"):
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def main() -> None:
    """Keep ``--processes`` children busy until all jobs are done."""
    parser = argparse.ArgumentParser()
    parser.add_argument("jobs")
    parser.add_argument("out")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    jobs = json.loads(Path(args.jobs).read_text())
    for name in {SYSTEMS[j["system"]][0] for j in jobs}:
        import_module(name)  # once, before the forks
    import nanbench.scenarios  # noqa: F401

    context = multiprocessing.get_context("fork")
    running: list[tuple[Any, dict[str, Any], str, float]] = []
    with open(args.out, "a", encoding="utf-8") as out, tempfile.TemporaryDirectory() as answers:
        while jobs or running:
            while jobs and len(running) < args.processes:
                job = jobs.pop(0)
                answer = f"{answers}/{time.monotonic_ns()}"
                process = context.Process(target=child, args=(job, answer))
                process.start()
                running.append((process, job, answer, time.monotonic()))
            time.sleep(0.02)
            for entry in list(running):
                process, job, answer, began = entry
                late = time.monotonic() - began > TIMEOUT
                if process.is_alive() and not late:
                    continue
                if process.is_alive():
                    process.kill()
                process.join()
                running.remove(entry)
                if Path(answer).exists():
                    found = json.loads(Path(answer).read_text())
                else:
                    found = {"finished": False, "stopped": "timeout" if late else f"crash, exit {process.exitcode}"}
                found["wall"] = time.monotonic() - began
                out.write(json.dumps({"job": job, "outcome": found}) + "\n")
                out.flush()


if __name__ == "__main__":
    main()
