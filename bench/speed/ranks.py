"""Images a second of one process and of two, on one machine. Writes bench/results/ranks.md.

    python bench/speed/ranks.py [--models shapes resnet50] [--rounds 5]

Every variant is a group of processes that stays alive and is told when to take its steps; the others wait meanwhile, so
that variants take turns within a round. Each process has its own batch, as ``--batch-size`` is per process: a step of
two processes has twice the images. Steps are guarded; two processes exchange verdicts and average gradients over gloo.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time

import common
import torch
from step import LR, MODELS, make_batch, make_model

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.optim import apply_lr, build_optimizer

VARIANTS = {
    "1 process × 1 thread": (1, 1, 1),
    "1 process × 2 threads": (1, 2, 1),
    "1 process × 4 threads": (1, 4, 1),
    "1 process × 4 threads, twice the batch": (1, 4, 2),
    "2 processes × 1 thread": (2, 1, 1),
    "2 processes × 2 threads": (2, 2, 1),
}
"""Processes, threads of each, and how many times the batch."""
FEWER = ("1 process × 2 threads", "1 process × 4 threads", "2 processes × 2 threads")
PAIRS = (
    ("2 processes × 1 thread", "1 process × 1 thread"),
    ("2 processes × 1 thread", "1 process × 2 threads"),
    ("2 processes × 2 threads", "1 process × 2 threads"),
    ("2 processes × 2 threads", "1 process × 4 threads"),
    ("2 processes × 2 threads", "1 process × 4 threads, twice the batch"),
)
"""Compared: the first over the second."""


def serve(name: str, threads: int, times_batch: int) -> None:
    """One process of a variant: takes as many steps as each line of its input says, and says it has."""
    torch.set_num_threads(threads)
    ranks = Ranks.start("cpu", timeout=600.0)
    size, images, objects = MODELS[name]
    net = accelerate(make_model(name).train(), channels_last=True)
    batch = make_batch(size, images * times_batch, objects)
    optimizer = build_optimizer(net)
    apply_lr(optimizer, {"backbone": LR})
    guard = Guard(net, optimizer, ranks=ranks)
    step = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            torch.manual_seed(step * ranks.world + ranks.rank)
            assert guard.step(lambda pair: net(*pair), batch, step=step).applied
            step += 1
        ranks.barrier("the end of a turn")
        print("done", flush=True)


class Group:
    """The processes of one variant."""

    def __init__(self, name: str, world: int, threads: int, times_batch: int) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        common_part = {**os.environ, "OMP_NUM_THREADS": str(threads), "WORLD_SIZE": str(world)}
        common_part |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        self.images = MODELS[name][1] * times_batch * world
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, "--serve", json.dumps([name, threads, times_batch])],
                env={**common_part, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(world)
        ]

    def take(self, steps: int) -> float:
        """Take ``steps`` steps; images a second."""
        began = time.perf_counter()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        for process in self.processes:
            assert process.stdout is not None
            if process.stdout.readline() != "done\n":
                raise RuntimeError("a process of the benchmark ended")
        return steps * self.images / (time.perf_counter() - began)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            process.communicate(timeout=60)


def measure(name: str, rounds: int, steps: int) -> dict[str, list[float]]:
    """Images a second by variant, one entry a round; the order rotates and reverses."""
    # The groups stay in memory side by side, and a ResNet-50 takes some gigabytes in each process.
    chosen = VARIANTS if name == "shapes" else {v: VARIANTS[v] for v in FEWER}
    groups = {v: Group(name, *settings) for v, settings in chosen.items()}
    speeds: dict[str, list[float]] = {v: [] for v in groups}
    names = list(groups)
    for v in names:
        groups[v].take(1)
    for round_ in range(rounds):
        turn = names[round_ % len(names) :] + names[: round_ % len(names)]
        for v in turn if round_ % 2 == 0 else reversed(turn):
            speeds[v].append(groups[v].take(steps))
    for group in groups.values():
        group.close()
    return speeds


def tables(speeds: dict[str, list[float]]) -> str:
    """Medians, and the paired ratios of `PAIRS`."""
    lines = ["| variant | images of a step | images/s |", "|---|---:|---:|"]
    lines += [f"| {v} | {{{v}}} | {statistics.median(s):.2f} |" for v, s in speeds.items()]
    lines += ["", "| speed of | over | ratio (quartiles) |", "|---|---|---|"]
    lines += [f"| {a} | {b} | {common.ratio(speeds[a], speeds[b])} |" for a, b in PAIRS if a in speeds and b in speeds]
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["shapes", "resnet50"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-file", action="store_true", help="print only")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(*json.loads(args.serve))
        return
    parts = [
        "`python bench/speed/ranks.py`: guarded steps without data loading, variants in turn within each of "
        f"{args.rounds} rounds. Ratios are of images a second, median over rounds, quartiles in brackets. Each process "
        "has its own batch (`--batch-size` is per process), so a step of two processes has twice the images; gradients "
        "are averaged over gloo on this machine."
    ]
    for name in args.models:
        size, images, objects = MODELS[name]
        speeds = measure(name, args.rounds, steps=1 if name == "resnet50" else 6)
        text = tables(speeds)
        for v, (world, _, times_batch) in VARIANTS.items():
            text = text.replace(f"{{{v}}}", f"{world} × {images * times_batch}")
        parts.append(f"## {name}, {size} px, {images} images a process, {objects} objects an image\n\n{text}")
        print(parts[-1], flush=True)
    if not args.no_file:
        print(common.write("ranks", "One process and two on one machine", parts))


if __name__ == "__main__":
    main()
