"""How a step's cost grows with batch, image size and instances, ours beside torchvision's reference.

    python bench/speed/scaling.py [--threads 2] [--rounds 5]

The small network of the built-in shapes; the reference and this project's default (accelerated, targets from outlines,
bfloat16 where native, guard and clipping) take turns on the same batch. Memory: peak resident set of a fresh process
that takes three steps.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import common
import torch
from step import make_batch, only, own_step, reference_step, small_model

from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.system.precision import bf16_is_native

Setting = tuple[int, int, int]
"""Side of the images in pixels, images a batch, objects an image."""
TABLES: dict[str, tuple[int, Sequence[Setting]]] = {
    "batch size (128 px, 4 objects an image)": (1, [(128, b, 4) for b in (1, 2, 4, 8)]),
    "image size, px (batch 2, 4 objects an image)": (0, [(s, 2, 4) for s in (128, 256, 512)]),
    "objects an image (256 px, batch 2)": (2, [(256, 2, n) for n in (1, 10, 100, 300)]),
}
MEMORY: Sequence[Setting] = ((128, 4, 4), (256, 2, 100), (512, 2, 4), (512, 2, 300))
SIDES = ("torchvision's reference", "this project")


def steps(setting: Setting, sides: Sequence[str] = SIDES) -> dict[str, Callable[[int], None]]:
    """A step function of each side, on the same weights and batch."""
    size, images, objects = setting
    net, batch = small_model(size).train(), make_batch(size, images, objects)
    made: dict[str, Callable[[int], None]] = {}
    if SIDES[0] in sides:
        made[SIDES[0]] = reference_step(copy.deepcopy(net), only(batch, "masks"))
    if SIDES[1] in sides:
        precision = "bf16" if bf16_is_native("cpu") else "fp32"
        own = accelerate(copy.deepcopy(net))
        made[SIDES[1]] = own_step(own, only(batch, "outlines"), precision, guarded=True)
    return made


def row(setting: Setting, axis: int, rounds: int) -> str:
    """One line of a table: the setting, milliseconds of both, and the paired ratio."""
    times = common.take_turns(steps(setting), rounds, warm=1)
    base, own = times[SIDES[0]], times[SIDES[1]]
    cells = [f"{statistics.median(t.wall) * 1e3:.0f}" for t in (base, own)]
    line = f"| {setting[axis]} | {' | '.join(cells)} | {common.ratio(own.wall, base.wall)} |"
    print(line, file=sys.stderr, flush=True)
    return line


def peak(setting: Setting, side: str) -> float:
    """Peak resident MiB of a process that takes three steps of ``side``."""
    command = [sys.executable, __file__, "--peak", json.dumps([*setting, side])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def own_peak() -> float:
    """Peak resident MiB of this process. Not ``ru_maxrss``: on Linux that starts at the parent's."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


def memory_table() -> str:
    """Markdown: peak memory of both sides in each setting."""
    lines = ["| px, batch, objects | reference MiB | this project MiB | ratio |", "|---|---|---|---|"]
    for setting in MEMORY:
        base, own = (peak(setting, side) for side in SIDES)
        lines.append(f"| {', '.join(map(str, setting))} | {base:.0f} | {own:.0f} | {own / base:.2f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        *setting, side = json.loads(args.peak)
        (step,) = steps((setting[0], setting[1], setting[2]), (side,)).values()
        for seed in range(3):
            step(seed)
        print(own_peak())
        return 0
    parts = [
        f"`python bench/speed/scaling.py`: one training step of the small network, {args.threads} threads, wall clock. "
        f"Reference and this project (its defaults, with guard and clipping) take turns in each of {args.rounds} "
        "rounds; ratios are medians over rounds, quartiles in brackets."
    ]
    for name, (axis, settings) in TABLES.items():
        head = f"| {name.split(' (')[0]} | reference ms | this project ms | ratio |\n|---|---|---|---|"
        parts.append(f"## By {name}\n\n" + "\n".join([head, *(row(s, axis, args.rounds) for s in settings)]))
    parts.append(f"## Peak memory of a fresh process after three steps\n\n{memory_table()}")
    print("\n\n".join(parts))
    print(common.write("scaling", "How the cost of a step grows", parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
