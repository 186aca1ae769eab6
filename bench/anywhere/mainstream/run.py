"""Loops as tutorials have them, with faults and without: what the guard, its diagnosis and recovery make of each.

    OMP_NUM_THREADS=1 python bench/anywhere/mainstream/run.py [--set 1|2|3|4|all] [--only TEXT] [--seeds 0] [--raw FILE]
        [--out PAGE]

There are four sets of tasks; the second was drawn when the guard had been tuned to the first, the third when it had
been tuned to both, the fourth when it had been tuned to all three.

Each run is in a process of its own. ``--raw`` keeps what each gave, and does not run what is there again. Beside each
run stand the same without a guard, the run with nothing wrong (in three orders of its samples), and one that learns
nothing (its rates are 0); where the fault is in some steps only, also the same with those left out by hand.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2]), str(Path(__file__).resolve().parents[3])]

from anywhere.mainstream.cases import CASES  # noqa: E402
from anywhere.mainstream.judge import IN_SOME_STEPS, Twins, judged, page, summary  # noqa: E402
from anywhere.mainstream.loop import taken  # noqa: E402
from anywhere.mainstream.task import Run  # noqa: E402
from anywhere.mainstream.tasks import TASKS, set_of  # noqa: E402

TIMEOUT = 180
"""Seconds for one run: a hundred times the usual."""


def one(name: str, seed: int, system: str) -> dict[str, Any]:
    """One run of a case."""
    case = CASES[name]
    run = Run(TASKS[case.task], seed, system)
    case.fault(run)
    return vars(taken(run))


@cache
def twins(task: str, seed: int) -> Twins:
    """The scores of runs that nothing is wrong with, and of one that learns nothing."""
    clean, blank, *others = (Run(TASKS[task], seed, "plain") for _ in range(4))
    blank.factors[0] = 0.0
    for number, other in enumerate(others, 1):
        other.shuffled_by += 50 * number
    return Twins(taken(clean).score, taken(blank).score, tuple(taken(other).score for other in others))


def sieved(name: str, seed: int) -> float | None:
    """The score of the same run whose broken steps are left out by hand; None: that does not put it right."""
    if CASES[name].cause not in IN_SOME_STEPS:
        return None
    got = apart(name, seed, "by hand")
    return got["score"] if got["finite"] and not got["stopped"] else None


def apart(name: str, seed: int, system: str) -> dict[str, Any]:
    """`one` in a process of its own, whose output nobody reads."""
    return in_a_process(lambda: one(name, seed, system))


def in_a_process(work: Callable[[], dict[str, Any]], seconds: int = TIMEOUT) -> dict[str, Any]:
    """What ``work`` gives in a process of its own, whose output nobody reads; one that ends early has no score."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_child, args=(theirs, work))
    process.start()
    theirs.close()
    try:
        if ours.poll(seconds):
            return ours.recv()
    except EOFError:
        pass
    finally:
        process.kill()
        process.join()
    stopped = f"the process ended, or took more than {seconds} s"
    return {"finite": False, "score": float("inf"), "stopped": stopped, "refused": 0, "incidents": [], "weights": 0.0,
            "ids": []}  # fmt: skip


def _child(answer: Any, work: Callable[[], dict[str, Any]]) -> None:
    torch.set_num_threads(1)
    void = os.open(os.devnull, os.O_WRONLY)
    os.dup2(void, 1)
    os.dup2(void, 2)
    answer.send(work())


def main() -> None:
    """Run what is asked for, print the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="parts of names, separated by commas")
    parser.add_argument("--set", choices=["1", "2", "3", "4", "all"], default="all", help="which set of tasks")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = [json.loads(x) for x in args.raw.read_text().splitlines()] if args.raw and args.raw.exists() else []
    known = {(k["case"], k["seed"]): k for k in kept}
    wanted = [n for n in CASES if any(part in n for part in args.only.split(","))]
    wanted = [n for n in wanted if args.set in ("all", str(set_of(n)))]
    lines = []
    for seed in args.seeds:
        for name in wanted:
            if (name, seed) not in known:
                got, plain = apart(name, seed, "diagnose"), apart(name, seed, "plain")
                known[name, seed] = {
                    "seed": seed,
                    **judged(CASES[name], got, plain, twins(CASES[name].task, seed), sieved(name, seed)),
                    "raw": got["incidents"],
                }
                told(known[name, seed])
                if args.raw:
                    with args.raw.open("a") as file:
                        file.write(json.dumps(known[name, seed]) + "\n")
            lines.append(known[name, seed])
    for what, figure in summary(lines).items():
        print(f"{what}: {figure}")
    if args.out:
        args.out.write_text(page(lines, args.seeds, args.set), encoding="utf-8")


def told(line: dict[str, Any]) -> None:
    """One line on the screen."""
    asked = ("effect", "cause", "sure", "culprit", "survived", "kept", "acted", "same")
    marks = " ".join(f"{k}={'-' if line[k] is None else int(line[k])}" for k in asked if k in line)
    print(line["case"], "|", marks, "|", "; ".join(line["incidents"][:3]), "|", line["stopped"] or "", flush=True)


if __name__ == "__main__":
    main()
