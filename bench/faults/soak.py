"""Real small training runs under random faults: ``python bench/faults/soak.py [--faults N] [--seed S]``.

Each run is hit several times and started again with ``--resume auto`` until it ends. Then its weights, optimizer,
guard, records, incidents and quarantine must be those of the undisturbed run, bit for bit, and so must the state after
every step on the way. Without options: at least 600 faults, written to bench/results/soak.md. Exit code 1 if any run
differs. The runs are made by tests/faults/soaking.py and chains.py, of which `make test` runs a slice.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS = ROOT / "tests" / "faults"
sys.path[:0] = [str(ROOT), str(TESTS)]
PER_RUN = 8
"""Faults that one run has to take."""
NOTES = """\
In the runs with bad data an image file is deleted the moment that epoch 1 wants it (and put back before each start),
and a box of another image is NaN: both are quarantined with an incident, in the undisturbed run too. A damaged newest
checkpoint costs an incident of its own, which is left out of the comparison. SIGKILL and SIGTERM come at any moment:
while the run starts, within a step or a save, during evaluation and at the end. The clock jumps by up to ten years
either way. The disk is full from a random I/O call on, for one to three steps. Stopped and continued: the whole process
group, for up to half a second. Killed after a step: one run of each kind, after each of its 18 steps."""


def under_shim() -> None:
    """Start this program again with the library that can make the disk full, unless it is there already."""
    if "LD_PRELOAD" in os.environ:
        return
    library = Path(tempfile.mkdtemp()) / "shim.so"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", library, TESTS / "shim.c", "-ldl"], check=True)
    environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)


def sweep(folder: Path, faults: int, seed: int, only: str, *, each: bool) -> list:
    """Outcomes of all runs: for each scenario one that is killed after every step, then random ones in turn."""
    import torch
    from chains import Chain
    from soaking import SCENARIOS

    from maskrcnn_coco.data.builtin_shapes import write_shapes

    torch.set_num_threads(1)
    os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
    data = folder / "data" / "set"
    write_shapes(data, train=24, val=4, size=64)
    chosen = [s for s in SCENARIOS.values() if only in s.name]
    clean, outcomes = {}, []
    for scenario in chosen:
        clean[scenario.name] = Chain(folder / "clean", data, scenario, random.Random(0)).clean()
        shutil.rmtree(folder / "clean")
        if each:
            chain = Chain(folder / "each", data, scenario, random.Random(seed))
            outcomes.append(chain.kill_after_each_step(clean[scenario.name]))
            keep(folder / "each", outcomes[-1])
    number = 0
    while sum(sum(o.happened.values()) for o in outcomes) < faults and sum(bool(o.failures) for o in outcomes) < 20:
        scenario = chosen[number % len(chosen)]
        number += 1
        chain = Chain(folder / "run", data, scenario, random.Random(f"{seed}:{number}"))
        outcomes.append(chain.hit(clean[scenario.name], PER_RUN))
        keep(folder / "run", outcomes[-1])
    return outcomes


def keep(folder: Path, outcome) -> None:
    """Say what went wrong, and clear the run's folder."""
    for failure in outcome.failures:
        print(f"{outcome.scenario}: {failure}\n  after {dict(outcome.happened)}", file=sys.stderr, flush=True)
    shutil.rmtree(folder)


def table(head: list[str], rows: list[list]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def render(outcomes: list, seconds: float, command: str) -> str:
    import torch

    happened, equal, survived = Counter(), Counter(), Counter()
    for o in outcomes:
        happened += o.happened
        survived += o.happened if not any(f.startswith(("hangs", "exit code")) for f in o.failures) else Counter()
        equal += o.happened if not o.failures else Counter()
    wrong = [o for o in outcomes if o.failures]
    scenarios = list(dict.fromkeys(o.scenario for o in outcomes))
    by_scenario = [
        [name, len(mine), sum(o.attempts for o in mine), sum(sum(o.happened.values()) for o in mine),
         sum(not o.failures for o in mine)]
        for name in scenarios
        for mine in [[o for o in outcomes if o.scenario == name]]
    ]  # fmt: skip
    starts = [s for o in outcomes for s in o.restarts]
    total, all_starts = sum(happened.values()), sum(o.attempts for o in outcomes)
    return "\n\n".join(
        [
            "# Soak: whole runs under random faults",
            f"`{command}`: **{total} faults in {len(outcomes)} runs of {all_starts} starts; "
            f"{len(outcomes) - len(wrong)} of {len(outcomes)} runs ended in the bits of the undisturbed run.** "
            f"{seconds:.0f} s on one core of {platform.machine()}, torch {torch.__version__}, Python "
            f"{platform.python_version()}.",
            "A run: the real loop on 24 images of 64 × 64 pixels, a Mask R-CNN of 100,000 parameters, 3 epochs of 6 "
            "steps, evaluation after each; forked from a process that has imported everything, so that a start costs "
            f"little (median {statistics.median(starts):.2f} s to the first step). After each fault that ends it, "
            "`--resume auto`. Equal: the SHA-256 of weights, buffers, optimizer and guard after every step of every "
            "start; at the end that of every checkpoint file (but previous.pth), every line of `metrics.jsonl` without "
            "clock readings, "
            "incidents, quarantine and `result.json`.",
            table(
                ["fault", "injected", "survived", "same bits at the end"],
                [[k, happened[k], survived[k], equal[k]] for k in sorted(happened, key=lambda k: -happened[k])],
            ),
            NOTES,
            table(["run", "runs", "starts", "faults", "same bits"], by_scenario),
            *(f"- {o.scenario}: {f[:300]}" for o in wrong for f in o.failures),
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, help="stop after so many; prints, writes no file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="runs whose name holds this")
    parser.add_argument("--no-each", action="store_true", help="leave out the runs killed after every step")
    parser.add_argument("--json", action="store_true", help="print counts as JSON")
    args = parser.parse_args()
    under_shim()
    began = time.monotonic()
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        outcomes = sweep(Path(name), args.faults or 600, args.seed, args.only, each=not args.no_each)
    failures = [f for o in outcomes for f in o.failures]
    if args.json:
        total = sum((o.happened for o in outcomes), Counter())
        print(json.dumps({"happened": total, "runs": len(outcomes), "failures": failures}))
    else:
        command = "python bench/faults/soak.py" + (f" --seed {args.seed}" if args.seed else "")
        text = render(outcomes, time.monotonic() - began, command)
        if args.faults or args.only:
            print(text)
        else:
            (ROOT / "bench" / "results" / "soak.md").write_text(text + "\n", encoding="utf-8")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
