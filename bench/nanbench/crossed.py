"""Known faults where they were never tried: ``python bench/nanbench/crossed.py [--count 300] [--seed 1] [--loops]``.

Each scenario was tuned to in one set-up. Here one or two parts of it (norms, batch, accumulation, precision, warm-up,
model, way in, optimizer) are drawn anew. A fault may be harmless there, and an honest run may be none: what was silent,
and which honest runs were acted upon, is listed to be looked at. Without clean twins, so that "kept" is not measured.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from nanbench.run import job, read, run_jobs
from nanbench.scenario import Scenario
from nanbench.scenarios import BY_ID, SCENARIOS
from nanbench.scene import Setup
from nanbench.scoring import Clean, Line, score

DETECTORS = ("mask", "faster", "retina", "fcos", "keypoint")
LOOPS = ("guard", "attach")
TOLD = ("survived", "stopped_right", "cause_ok", "culprit_ok")


def changes(scenario: Scenario, *, loops: bool) -> dict[str, tuple[Any, ...]]:
    """Part of the set-up → what it may be drawn from, where the fault is still the same fault."""
    parts: dict[str, tuple[Any, ...]] = {"batch": (1, 2, 4), "warmup": (0, 3, 8)}
    if not loops:
        parts |= {"norm": ("frozen", "group", "batch"), "model": DETECTORS, "way": ("train", *LOOPS)}
    elif scenario.setup.way in LOOPS:
        parts["way"] = LOOPS
    if scenario.cause != "ACCUMULATION":
        parts["accumulate"] = (1, 2, 4)
    if scenario.cause not in ("FP16_OVERFLOW", "SCALE_COLLAPSE", "LR_TOO_HIGH"):
        parts["precision"] = ("fp32", "bf16", "fp16")
    if scenario.cause != "LR_TOO_HIGH":
        parts["optimizer"] = ("sgd", "adamw", "adam", "rmsprop")
    return parts


def drawn(count: int, seed: int, *, loops: bool) -> list[dict[str, Any]]:
    """``count`` jobs: detectors (and their loops), or with ``loops`` the tasks that are none."""
    chance, jobs = random.Random(seed), []
    pool = [s for s in SCENARIOS if s.setup.ranks == 1 and (s.setup.model not in DETECTORS) == loops]
    pool = [s for s in pool if loops or s.setup.way in ("train", *LOOPS)]
    while len(jobs) < count:
        scenario = chance.choice(pool)
        parts = changes(scenario, loops=loops)
        new = {p: chance.choice(parts[p]) for p in chance.sample(sorted(parts), chance.choice((1, 2)))}
        setup = Setup(**(vars(scenario.setup) | new))
        # One value a channel has no variance: that is a fault of its own.
        if setup != scenario.setup and not (setup.norm == "batch" and setup.batch == 1):
            jobs.append(job("ours", scenario.id, setup, chance.choice((0, 1, 2))))
    return jobs


def told(entry: dict[str, Any], line: Line) -> str:
    """One run that did not end as it should, in a line; "" where it did."""
    scenario, setup = BY_ID[line["scenario"]], entry["job"]["setup"]
    where = ", ".join(f"{k} {v}" for k, v in setup.items() if v != getattr(scenario.setup, k))
    name = f"{scenario.id} ({where}; seed {line['seed']})"
    if scenario.decoy:
        return f"acted upon: {name}: {', '.join(line['causes'])}" if line["false_actions"] else ""
    wrong = [k for k in TOLD if line.get(k) is False]
    if wrong and not line["causes"] and line["stopped"] is None:
        return f"silent: {name}"
    sure = ", sure" if line["wrong_and_sure"] else ""
    return f"not {' '.join(wrong)}{sure}: {name}: {', '.join(map(str, line['causes']))}" if wrong else ""


def main() -> int:
    """Draw, run, and say what did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--loops", action="store_true", help="the tasks that are no detection")
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.jsonl"
        run_jobs(sys.executable, drawn(args.count, args.seed, loops=args.loops), raw, args.processes)
        entries = [e for e in read(raw) if "not_applicable" not in e["outcome"]]
    lines = [told(e, score(e, Clean([]))) for e in entries]
    print(*filter(None, lines), sep="\n")
    honest = sum(BY_ID[e["job"]["scenario"]].decoy for e in entries)
    print(f"{len(entries)} runs, {honest} of them honest: {lines.count('')} ended as they should")
    return 0


if __name__ == "__main__":
    sys.exit(main())
