"""The story, several seeds: heads at ten times the rate, no clipping, no warm-up, against multiplier 3 and the recipe.

python bench/story.py [--seeds 0,1,2] [--epochs 8] [--processes 2] [--out bench/results/story.md]

Every run trains the built-in shapes with the default guard, on one thread, and ends with an evaluation.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = {
    "story": "--lr 5e-3 --head-lr-multiplier 10 --max-grad-norm 0 --warmup-steps 0",
    "multiplier 3 as bare": "--lr 5e-3 --head-lr-multiplier 3 --max-grad-norm 0 --warmup-steps 0",
    "multiplier 3": "--lr 5e-3 --head-lr-multiplier 3",
    "multiplier 5 as bare": "--lr 5e-3 --head-lr-multiplier 5 --max-grad-norm 0 --warmup-steps 0",
    "recipe": "",
}
METRIC = "segm/AP50"


@dataclass(frozen=True)
class Ended:
    """How one run ended: its final metric, its incidents in order, and the last factor of each lowered component."""

    name: str
    seed: int
    status: str
    metric: float
    incidents: list[dict[str, Any]]
    rates: dict[str, float]


def run(name: str, seed: int, epochs: int) -> Ended:
    """One run in a process of its own."""
    with tempfile.TemporaryDirectory(prefix="story_") as folder:
        out = Path(folder)
        command = [sys.executable, str(ROOT / "maskrcnn_coco" / "main_mlops.py"), "--demo", *RUNS[name].split()]
        command += ["--seed", str(seed), "--epochs", str(epochs), "--json"]
        command += ["--logdir", str(out / "run"), "--checkpoint-dir", str(out / "checkpoints")]
        done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{name}, seed {seed}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        result = json.loads(done.stdout)
        records = [json.loads(line) for line in (out / "run" / "metrics.jsonl").read_text().splitlines()]
        last_step = [r for r in records if r["kind"] == "step"][-1]
        last_eval = [r for r in records if r["kind"] == "eval"][-1]
        found = [json.loads(p.read_text()) for p in sorted((out / "run" / "incidents").glob("*.json"))]
        return Ended(name, seed, result["status"], last_eval["metrics"][METRIC], found, last_step["lr"])


def said(incident: dict[str, Any]) -> str:
    """One incident in a few words."""
    detail = incident["action"]["detail"]
    who = ", ".join(detail.get("components") or [])
    return f"step {incident['step']}: {incident['cause']}, {who} × {detail.get('factor', 1):.2g}"


def table(ended: list[Ended]) -> list[str]:
    """Markdown: one row a run, then means and spreads."""
    lines = [f"| run | seed | {METRIC} at the end | incidents |", "|---|---|---|---|"]
    lines += [
        f"| {e.name} | {e.seed} | {e.metric:.3f} | {'; '.join(map(said, e.incidents)) or 'none'} |" for e in ended
    ]
    lines += ["", f"| run | flags | {METRIC}, mean | lowest | highest |", "|---|---|---|---|---|"]
    for name, flags in RUNS.items():
        values = [e.metric for e in ended if e.name == name]
        if values:
            mean = statistics.fmean(values)
            lines.append(f"| {name} | `{flags or 'none'}` | {mean:.3f} | {min(values):.3f} | {max(values):.3f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--only", default=",".join(RUNS), help="names of runs, separated by commas")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    jobs = [(n, int(s)) for s in args.seeds.split(",") for n in RUNS if n in args.only.split(",")]
    with ThreadPoolExecutor(args.processes) as pool:
        ended = list(pool.map(lambda job: run(*job, args.epochs), jobs))
    ended.sort(key=lambda e: (list(RUNS).index(e.name), e.seed))
    lines = table(ended)
    print("\n".join(lines))
    if args.out:
        args.out.write_text(
            "# The story, and what it ends with\n\n"
            f"The built-in shapes, {args.epochs} epochs each, seeds {args.seeds}, default guard, one thread a run.\n"
            "Without the guard the first run is NaN within ten steps.\n\n"
            + "\n".join(lines)
            + f"\n\nRun: `python bench/story.py --seeds {args.seeds} --epochs {args.epochs} "
            f'--only "{args.only}" --out bench/results/story.md`\n'
        )


if __name__ == "__main__":
    main()
