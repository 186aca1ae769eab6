"""How often a training step on CUDA makes the host wait, against torchvision's reference loop.

    python bench/speed/syncs.py [--images 1 2 4 8]

Counted, not timed. Without a GPU the device is a pretended one (`tests/pretend_cuda.py`): tensors say that they are on
CUDA, so that the code takes its CUDA branches, compute on the CPU, and every operation that would wait is counted. With
a GPU the same steps are also counted there by `torch.cuda.set_sync_debug_mode`.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import common
import step
import torch
from engine import LR, reference_optimizer, reference_update
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "helpers"))

from pretend_cuda import CUDA, Counts, pretend_cuda, to_device

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.fast.accelerate import accelerate
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import apply_lr, build_optimizer

SIDE = 128
WARM = 2
"""Steps before the one that is counted: constants are sent once, momentum is made."""
Step = Callable[[Batch, int], None]


def reference(net: nn.Module) -> Step:
    """torchvision's references/detection/engine.py, one iteration, without logging."""
    optimizer = reference_optimizer(net)

    def run(batch: Batch, seed: int) -> None:
        torch.manual_seed(seed)
        images = [i.to(CUDA) for i in batch.images]
        reference_update(optimizer, net(images, [{k: v.to(CUDA) for k, v in t.items()} for t in batch.targets]))

    return run


def bare(net: nn.Module) -> Step:
    """The same loop around our detector and batch, with a fused optimizer."""
    optimizer, forward = _own(net)
    return lambda batch, seed: reference_update(optimizer, forward.begin(seed)(batch))


def guarded(net: nn.Module, *, deferred: bool) -> Step:
    """What `train` does; with ``deferred`` as it does on CUDA."""
    optimizer, forward = _own(net)
    guard = Guard(net, optimizer, deferred=deferred)

    def run(batch: Batch, seed: int) -> None:
        guard.step(forward.begin(seed), batch, step=seed)
        if guard.alarm is not None:
            raise SystemExit(guard.alarm.message)

    return run


def _own(net: nn.Module) -> tuple[torch.optim.Optimizer, Forward]:
    optimizer = build_optimizer(net)
    apply_lr(optimizer, {"backbone": LR})
    return optimizer, Forward(net, device=CUDA, precision="fp32", seed=0)


VARIANTS: dict[str, tuple[bool, Callable[[nn.Module], Step]]] = {
    "torchvision's reference loop": (False, reference),
    "ours, the same loop without a guard": (True, bare),
    "ours, guarded, read at once": (True, lambda net: guarded(net, deferred=False)),
    "**ours, guarded, as `train` does on CUDA**": (True, lambda net: guarded(net, deferred=True)),
}
"""Name → whether the detector is accelerated, and its step."""


def make_batch(images: int) -> Batch:
    """Ellipses on noise as our loop's batch; masks in full size, as both sides take them on CUDA."""
    pictures, targets = step.only(step.make_batch(SIDE, images, 4), "masks")
    return Batch(pictures, targets, [SampleKey(0, i, i) for i in range(images)], resized=True)


def pinned(batch: Batch) -> Batch:
    """As the loader hands it over."""
    return batch.pin_memory() if torch.cuda.is_available() else batch


def count(net: nn.Module, make: Callable[[nn.Module], Step], sizes: list[int]) -> list[Counts]:
    """What one step counts on the pretended device, for each batch size."""
    found = []
    with pretend_cuda():
        run = make(to_device(net))
        for images in sizes:
            for n in range(WARM):
                run(make_batch(images), n)
            with pretend_cuda() as counts:
                run(make_batch(images), WARM)
            found.append(counts)
    return found


def count_real(net: nn.Module, make: Callable[[nn.Module], Step], sizes: list[int]) -> list[int]:
    """Waits of one step on the GPU, by torch's own debug mode: reads and sends together."""
    run, found = make(net.to(CUDA)), []
    for images in sizes:
        for n in range(WARM):
            run(pinned(make_batch(images)), n)
        batch = pinned(make_batch(images))
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                run(batch, WARM)
            finally:
                torch.cuda.set_sync_debug_mode("default")
        found.append(sum("synchronizing" in str(w.message) for w in seen))
    return found


def table(sizes: list[int], rows: dict[str, list[Any]]) -> str:
    """Markdown: a row a variant, a column a batch size."""
    head = ["| | " + " | ".join(f"batch {n}" for n in sizes) + " |", "|---" * (len(sizes) + 1) + "|"]
    return "\n".join([*head, *(f"| {name} | " + " | ".join(map(str, row)) + " |" for name, row in rows.items())])


def main() -> None:
    """Count every variant, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[1, 2, 4, 8])
    sizes = parser.parse_args().images
    net = step.small_model(SIDE).train()
    nets = {fast: accelerate(copy.deepcopy(net)) if fast else net for fast in (False, True)}
    found = {name: count(copy.deepcopy(nets[fast]), make, sizes) for name, (fast, make) in VARIANTS.items()}
    last = list(found.values())[-1][-1]
    parts = [
        "`python bench/speed/syncs.py`: one training step (copy of the batch, forward, backward, update), counted on a "
        "**pretended** CUDA device, operator by operator, not timed on a real one. The network is the built-in set's "
        f"(ResNet-18 FPN) at {SIDE} px with 4 objects an image; a count depends on the code, not on the size.",
        "## Host reads\n\nDevice to host: the host waits for everything before it.\n\n"
        + table(sizes, {k: [c.reads.total() for c in v] for k, v in found.items()}),
        "In the last row:\n\n" + "\n".join(f"- {n} × `{line}`" for line, n in last.reads.items()),
        "## Blocking copies to the device\n\nConstants that the code makes, and the reference's copies of the batch "
        "(4 tensors an image); ours copies the batch from pinned memory without waiting.\n\n"
        + table(sizes, {k: [c.sends.total() for c in v] for k, v in found.items()}),
        "## Operators\n\nRun on the device, views left out: about the number of kernels, each launched by the host. "
        "The reference's plain SGD has four for every parameter here (on a real GPU torch takes lists of them).\n\n"
        + table(sizes, {k: [c.operators for c in v] for k, v in found.items()}),
    ]
    if torch.cuda.is_available():
        real = {name: count_real(copy.deepcopy(nets[fast]), make, sizes) for name, (fast, make) in VARIANTS.items()}
        title = f"## On {torch.cuda.get_device_name()}\n\nBy torch's own debug mode, both directions together."
        parts.append(f"{title}\n\n{table(sizes, real)}")
    print("\n\n".join(parts))
    print(common.write("syncs", "How often a training step on CUDA makes the host wait", parts))


if __name__ == "__main__":
    main()
