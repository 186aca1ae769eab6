"""torch.compile of the network's parts on a CPU: what a step gains, and what compiling costs.

    python bench/speed/compiled.py [--threads 2] [--models resnet50 shapes] [--rounds 8]

The guarded step of this project with and without its parts compiled in place (``module.compile``, so names and state
stay), in turns. Shapes are static, as they are where all images have one size, or symbolic, as multi-scale needs.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
import time
from collections.abc import Callable

import common
import torch
from step import MODELS, make_batch, make_model, only, own_step
from torch import nn

from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.system.precision import bf16_is_native

HEADS = ("rpn.head", "roi_heads.box_head", "roi_heads.mask_head", "roi_heads.mask_predictor")


def compiled(net: nn.Module, *, heads: bool, dynamic: bool) -> nn.Module:
    """``net`` with its backbone, and its heads if asked, compiled in place; the number of objects always varies."""
    net.get_submodule("backbone").compile(dynamic=dynamic)
    for name in HEADS if heads else ():
        net.get_submodule(name).compile(dynamic=True if name.startswith("roi_heads") else dynamic)
    return net


def measure(name: str, precision: str, rounds: int) -> list[str]:
    """Rows of one model in one precision: the plain step first."""
    torch.compiler.reset()
    net = accelerate(make_model(name).train())
    batch = only(make_batch(*MODELS[name]), "outlines")
    nets = {
        "not compiled": copy.deepcopy(net),
        "backbone": compiled(copy.deepcopy(net), heads=False, dynamic=False),
        "backbone and heads": compiled(copy.deepcopy(net), heads=True, dynamic=False),
        "backbone and heads, any image size": compiled(copy.deepcopy(net), heads=True, dynamic=True),
    }
    steps = {key: own_step(value, batch, precision, guarded=True) for key, value in nets.items()}
    first = {key: seconds(step, range(100, 104)) for key, step in steps.items()}
    times = common.take_turns(steps, rounds, warm=1)
    plain = times["not compiled"]
    rows = []
    for key, t in times.items():
        wall = common.ratio(t.wall, plain.wall)
        usual = 4 * statistics.median(t.wall)
        gain = statistics.median(plain.wall) * (1 - wall.median)
        extra = first[key] - usual
        paid = "" if key == "not compiled" else f"{math.ceil(extra / gain)}" if gain > 0 else "never"
        cost = "" if key == "not compiled" else f"{extra:.0f}"
        rows.append(f"| {key} | {statistics.median(t.wall):.3f} | {wall} | {cost} | {paid} |")
        print(rows[-1], flush=True)
    return rows


def seconds(step: Callable[[int], None], rounds: range) -> float:
    """Wall time of the first steps: compiling, and compiling again where a shape changed."""
    began = time.perf_counter()
    for n in rounds:
        step(n)
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--precisions", nargs="+", choices=("fp32", "bf16"), default=["fp32", "bf16"])
    parser.add_argument("--rounds", type=int, default=8)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    parts = [
        f"`python bench/speed/compiled.py`, {args.threads} threads: guarded steps, clipped, variants in turn within "
        f"each of {args.rounds} rounds, after five first steps each; ratios are medians over rounds, quartiles in "
        "brackets. Compiling: what the first four steps took more than four later ones; parts that an earlier row, or "
        "an earlier run with the same cache folder, compiled are not compiled again. Paid back: compiling over the "
        "seconds that a step gains.",
    ]
    for name in args.models:
        size, images, objects = MODELS[name]
        for precision in args.precisions:
            if precision == "bf16" and not bf16_is_native("cpu"):
                continue
            head = (
                "| compiled | step s | ratio (quartiles) | compiling s | paid back after steps |\n|---|---|---|---|---|"
            )
            rows = measure(name, precision, args.rounds)
            title = f"## {name}, {size} px, batch {images}, {objects} objects an image, {precision}"
            parts.append("\n".join([title, "", head, *rows]))
    print(common.write("compiled", "torch.compile on a CPU", parts))


if __name__ == "__main__":
    main()
