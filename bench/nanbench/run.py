"""NaN-Bench: ``python bench/nanbench/run.py [--systems ours,skip] [--seeds 0,1,2] [--arc-python PATH] …``.

Writes bench/results/nanbench.md and nanbench.jsonl. Lightning and ARC need an interpreter that has them beside torch
and torchvision: ``--lightning-python`` and ``--arc-python``; without one that peer is left out. ARC's licence is the
AGPL: it is only ever imported by that other process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE.parent))

from nanbench.report import write  # noqa: E402
from nanbench.scenarios import SCENARIOS, setups  # noqa: E402
from nanbench.scoring import score_all  # noqa: E402

OWN = ("ours", "reference", "skip", "scaler")
CLEAN_SEEDS = 5
Job = dict[str, Any]


def jobs_of(systems: list[str], seeds: list[int], only: list[str]) -> list[Job]:
    """Clean runs first, then every scenario."""
    chosen = tuple(s for s in SCENARIOS if not only or any(o in s.id or o == s.cause for o in only))
    jobs: list[Job] = []
    for system in systems:
        for setup in setups(chosen):
            if setup.ranks == 1 or system == "ours":
                jobs += [job(system, "clean", setup, seed) for seed in range(CLEAN_SEEDS)]
        jobs += [job(system, s.id, s.setup, seed) for seed in seeds for s in chosen]
    return jobs


def job(system: str, scenario: str, setup: Any, seed: int) -> Job:
    """One run, as plain data."""
    return {"system": system, "scenario": scenario, "setup": vars(setup), "seed": seed}


def key_of(job: Job) -> str:
    """The same for the same run."""
    return json.dumps(job, sort_keys=True)


def run_jobs(python: str, jobs: list[Job], raw: Path, processes: int) -> None:
    """Have ``python`` work them off; outcomes are appended to ``raw``."""
    if not jobs:
        return
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(jobs, file)
        file.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [python, str(HERE / "worker.py"), file.name, str(raw), "--processes", str(processes)]
        subprocess.run(command, env=environment, check=True)


def read(raw: Path) -> list[dict[str, Any]]:
    """Outcomes so far."""
    return [json.loads(line) for line in raw.read_text().splitlines()] if raw.exists() else []


def main() -> int:
    """Run what is missing, score everything, write the results. Exit code 1 where this project misses a target."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--systems", default="ours,reference,skip,scaler,lightning,arc")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--only", default="", help="parts of scenario ids, or cause codes, separated by commas")
    parser.add_argument("--arc-python", help="interpreter with torch, torchvision and arc-training")
    parser.add_argument("--lightning-python", help="interpreter with torch, torchvision and lightning")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--raw", type=Path, help="append outcomes here, and skip the runs that are there already")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results")
    args = parser.parse_args()
    pythons = {"arc": args.arc_python, "lightning": args.lightning_python, **dict.fromkeys(OWN, sys.executable)}
    systems = [s for s in args.systems.split(",") if pythons[s]]
    raw = args.raw or Path(tempfile.mkdtemp(prefix="nanbench_")) / "raw.jsonl"
    done = {key_of(entry["job"]) for entry in read(raw)}
    jobs = jobs_of(systems, [int(s) for s in args.seeds.split(",")], [o for o in args.only.split(",") if o])
    jobs = [j for j in jobs if key_of(j) not in done]
    for python in dict.fromkeys(pythons[s] for s in systems):
        run_jobs(python, [j for j in jobs if pythons[j["system"]] == python], raw, args.processes)
    lines = score_all(read(raw))
    return write(lines, args.out)


if __name__ == "__main__":
    sys.exit(main())
