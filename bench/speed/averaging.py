"""Gradients averaged during the backward pass, after it, and by DistributedDataParallel: two processes over gloo.

    python bench/speed/averaging.py [--models shapes resnet50] [--links none 1gbit] [--rounds 12]

Writes bench/results/averaging.md. Both processes hold every variant and take their steps in turn, in an order that
rotates, with the same batch and random numbers: each round is the same work. A link of a given rate is the loopback of
a network namespace of its own, slowed by the kernel (Linux, with the right to make one); "none": as it is.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import torch
from step import LR, MODELS, make_batch, make_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.optim import apply_lr, build_optimizer

DDP = "DistributedDataParallel, a plain loop"
DURING, AFTER = "guarded, averaged during the backward pass", "guarded, averaged after it"
PLAIN_DURING, PLAIN_AFTER = "guard off, averaged during the backward pass", "guard off, averaged after it"
PAIRS = ((DURING, AFTER), (DURING, DDP), (AFTER, DDP), (PLAIN_DURING, PLAIN_AFTER), (PLAIN_DURING, DDP))
"""Compared: the first over the second."""

Step = Callable[[int], None]


def plain(net: nn.Module, batch: Any) -> Step:
    """The tutorial's loop around DistributedDataParallel."""
    ddp, optimizer = DistributedDataParallel(net), build_optimizer(net)
    apply_lr(optimizer, {"backbone": LR})

    def step(number: int) -> None:
        optimizer.zero_grad()
        loss = sum(ddp(*batch).values())
        if not math.isfinite(loss.item()):
            raise RuntimeError(f"loss {loss} in step {number}")
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()

    return step


def ours(net: nn.Module, batch: Any, ranks: Ranks, *, early: bool, mode: Any = "recover") -> Step:
    """A step of this project's guard, or with mode "off" of its loop without one."""
    optimizer = build_optimizer(net)
    apply_lr(optimizer, {"backbone": LR})
    guard = Guard(net, optimizer, ranks=ranks, mode=mode, say=False)

    def step(number: int) -> None:
        ranks.averaging.early = early
        if not guard.step(lambda pair: net(*pair), batch, step=number).applied:
            raise RuntimeError(f"step {number} was refused: {guard.alarm}")

    return step


def serve(name: str, rounds: int, out: str) -> None:
    """One of the two processes; the first writes the seconds of its steps."""
    torch.set_num_threads(1)
    ranks = Ranks.start("cpu", timeout=300.0)
    batch = make_batch(MODELS[name][0], *MODELS[name][1:])
    net = accelerate(make_model(name).train(), channels_last=True)
    made: dict[str, Callable[[nn.Module], Step]] = {
        DDP: lambda n: plain(n, batch),
        DURING: lambda n: ours(n, batch, ranks, early=True),
        AFTER: lambda n: ours(n, batch, ranks, early=False),
        PLAIN_DURING: lambda n: ours(n, batch, ranks, early=True, mode="off"),
        PLAIN_AFTER: lambda n: ours(n, batch, ranks, early=False, mode="off"),
    }
    steps = {variant: make(copy.deepcopy(net)) for variant, make in made.items()}

    def turn(step: Step) -> Callable[[int], None]:
        def take(round_: int) -> None:
            torch.manual_seed(1000 + 2 * round_ + ranks.rank)
            step(round_ + 2)
            ranks.barrier("the end of a turn")

        return take

    times = common.take_turns({variant: turn(step) for variant, step in steps.items()}, rounds)
    if ranks.is_main:
        Path(out).write_text(json.dumps({v: [t.wall, t.cpu] for v, t in times.items()}))
    ranks.barrier("the end")
    os._exit(0)


def inside(link: str, name: str, rounds: int, out: str) -> None:
    """Both processes, in the network that this process is in."""
    if link != "none":
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        shape = ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", link, "burst", "256kb", "latency", "400ms"]
        subprocess.run(shape, check=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    env = {**os.environ, "OMP_NUM_THREADS": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [sys.executable, __file__, "--serve", json.dumps([name, rounds, out])]
    both = [
        subprocess.Popen(command, env={**env, "GLOO_SOCKET_IFNAME": "lo", "RANK": str(r), "LOCAL_RANK": str(r)})
        for r in range(2)
    ]
    codes = [process.wait() for process in both]
    if any(codes):
        raise RuntimeError("a process of the benchmark failed")


def measure(link: str, name: str, rounds: int) -> dict[str, common.Times]:
    """Seconds of a step by variant."""
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "times.json")
        apart = [] if link == "none" else ["unshare", "-rn"]
        command = [*apart, sys.executable, __file__, "--inside", json.dumps([link, name, rounds, out])]
        subprocess.run(command, check=True)
        return {v: common.Times(wall, cpu) for v, (wall, cpu) in json.loads(Path(out).read_text()).items()}


def tables(times: dict[str, common.Times]) -> str:
    """Medians, and the paired ratios of `PAIRS`."""
    lines = ["| variant | wall s a step | CPU s of one process |", "|---|---:|---:|"]
    lines += [f"| {v} | {statistics.median(t.wall):.3f} | {statistics.median(t.cpu):.3f} |" for v, t in times.items()]
    lines += ["", "| time of | over | wall ratio (quartiles) | CPU ratio (quartiles) |", "|---|---|---|---|"]
    for a, b in PAIRS:
        wall, cpu = common.ratio(times[a].wall, times[b].wall), common.ratio(times[a].cpu, times[b].cpu)
        lines.append(f"| {a} | {b} | {wall} | {cpu} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=["shapes", "resnet50"])
    parser.add_argument("--links", nargs="+", default=["none", "1gbit"], help="rates as tc takes them, or none")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--no-file", action="store_true", help="print only")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve or args.inside:
        (serve if args.serve else inside)(*json.loads(args.serve or args.inside))
        return
    parts = [
        "`python bench/speed/averaging.py`: two processes of one thread each over gloo on this machine, each with "
        f"its own batch; steps in turn within each of {args.rounds} rounds, medians over them, quartiles in brackets. "
        'A step of each variant is the same work with the same numbers. "Link" is the loopback of a network '
        "namespace, slowed to that rate by the kernel."
    ]
    for name in args.models:
        for link in args.links:
            text = tables(measure(link, name, args.rounds))
            rate = "loopback as it is" if link == "none" else f"a link of {link}"
            size, images, _ = MODELS[name]
            parts.append(f"## {name}, {size} px, {images} images a process, {rate}\n\n{text}")
            print(parts[-1], flush=True)
    if not args.no_file:
        print(common.write("averaging", "Averaging gradients during and after the backward pass", parts))


if __name__ == "__main__":
    main()
