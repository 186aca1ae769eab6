"""How far a step is from what the machine can do: its flops at the measured matmul rate, its bytes at the copy rate.

    python bench/speed/floors.py [--threads 2] [--rounds 5]

Flops and bytes are those of the step's convolutions and matrix products, forward and backward, as PyTorch dispatches
them: a product's inputs and outputs are counted once each. Neither floor can be reached, because proposals, sampling,
normalisation and the update are not counted; the larger of the two is the limit that is left.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import torch
from step import MODELS, make_batch, make_model, own_step, reference_step
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.system.precision import bf16_is_native

Step = Callable[[int], None]


class Traffic(TorchDispatchMode):
    """Counts the bytes that convolutions and matrix products read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            outputs = out if isinstance(out, (tuple, list)) else (out,)
            self.bytes += sum(t.nbytes for t in (*args, *outputs) if isinstance(t, Tensor))
        return out


def counted(step: Step) -> tuple[float, float]:
    """(flops, bytes) of one step."""
    with FlopCounterMode(display=False) as flops:
        step(0)
    with Traffic() as traffic:
        step(0)
    return float(flops.get_total_flops()), float(traffic.bytes)


def best(work: Callable[[], object], rounds: int = 7) -> float:
    """The shortest of ``rounds`` runs, seconds: a floor is what the machine can do, not what it does on average."""
    found = []
    for _ in range(rounds + 2):
        began = time.perf_counter()
        work()
        found.append(time.perf_counter() - began)
    return min(found[2:])


def matmul_rate(dtype: torch.dtype, side: int = 2048) -> float:
    """Flops a second of a square matrix product, the best of a few."""
    a, b = (torch.randn(side, side).to(dtype) for _ in range(2))
    return 2 * side**3 / best(lambda: a @ b)


def copy_rate(megabytes: int = 256) -> float:
    """Bytes a second, read and written, of a copy that fits no cache."""
    a = torch.ones(megabytes << 18)
    b = torch.empty_like(a)
    return 2 * a.nbytes / best(lambda: b.copy_(a))


def sides(name: str) -> dict[str, tuple[Step, torch.dtype]]:
    """The reference and this project's defaults: a step and the type that its products are in."""
    net, batch = make_model(name).train(), make_batch(*MODELS[name])
    rows: dict[str, tuple[Step, torch.dtype]] = {
        "torchvision's reference": (reference_step(copy.deepcopy(net), batch), torch.float32),
        "this project, float32": (own_step(accelerate(copy.deepcopy(net)), batch, "fp32", guarded=True), torch.float32),
    }
    if bf16_is_native("cpu"):
        own = own_step(accelerate(copy.deepcopy(net)), batch, "bf16", guarded=True)
        rows["this project, bfloat16"] = (own, torch.bfloat16)
    return rows


def table(name: str, rounds: int, rates: dict[torch.dtype, float], copied: float) -> str:
    """Markdown: each side's time beside its floors."""
    rows = sides(name)
    times = common.take_turns({n: step for n, (step, _) in rows.items()}, rounds, warm=1)
    lines = [
        "| | step s | GFLOP | at matmul rate s | GB | at copy rate s | step ÷ floor |",
        "|---|---|---|---|---|---|---|",
    ]
    for n, (step, dtype) in rows.items():
        flops, size = counted(step)
        taken, a, b = statistics.median(times[n].wall), flops / rates[dtype], size / copied
        cells = [f"{taken:.3f}", f"{flops / 1e9:.1f}", f"{a:.3f}", f"{size / 1e9:.2f}", f"{b:.3f}"]
        lines.append(f"| {n} | {' | '.join(cells)} | {taken / max(a, b):.1f} |")
    return "\n".join(lines)


def main() -> int:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtypes = [torch.float32, *([torch.bfloat16] if bf16_is_native("cpu") else [])]
    rates, copied = {d: matmul_rate(d) for d in dtypes}, copy_rate()
    shown = ", ".join(f"{str(d).removeprefix('torch.')} {r / 1e9:.0f} GFLOP/s" for d, r in rates.items())
    parts = [
        f"`python bench/speed/floors.py`, {args.threads} threads, {args.rounds} rounds, variants in turn, medians. "
        f"Measured here: matrix products of 2048 × 2048 in {shown}; a copy of 256 MB, {copied / 1e9:.1f} GB/s. "
        "Flops and bytes are of the convolutions and matrix products of one step, forward and backward; the floor is "
        "the larger of the two times."
    ]
    for name, (size, images, objects) in MODELS.items():
        title = f"## {name}, {size} px, batch {images}, {objects} objects an image"
        parts.append(f"{title}\n\n{table(name, args.rounds, rates, copied)}")
        print(parts[-1], flush=True)
    print(common.write("floors", "How far a step is from the machine's limits", parts))
    return 0


if __name__ == "__main__":
    sys.exit(main())
