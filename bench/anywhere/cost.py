"""What `attach` costs: guarded ÷ plain, step by step in pairs in one process, by this thread's CPU time.

    OMP_NUM_THREADS=1 python bench/anywhere/cost.py [--pairs 60]

Two copies of a model take the same batches in turn, one with the guard behind its optimizer. Medians of the ratio of
each pair, so that what the machine does besides falls on both. Other loops than these cost other shares: the guard's
part is a few reads of the gradients, whatever the forward pass takes.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from maskrcnn_coco import attach


def mlp(width: int, layers: int) -> nn.Module:
    """A plain network of about ``layers`` × width² parameters."""
    torch.manual_seed(0)
    return nn.Sequential(*[m for _ in range(layers) for m in (nn.Linear(width, width), nn.ReLU())], nn.Linear(width, 4))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "0.1 M": lambda: mlp(180, 3),
    "1 M": lambda: mlp(500, 4),
    "20 M": lambda: mlp(1580, 8),
}
OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=1e-3, momentum=0.9),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-4),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, guard: object, batch: torch.Tensor) -> float:
    """One step; seconds of this thread."""
    began = time.thread_time()
    optimizer.zero_grad()
    loss = model(batch).square().mean()
    if guard is not None:
        guard.see(loss)  # type: ignore[attr-defined]
    loss.backward()
    optimizer.step()
    return time.thread_time() - began


def ratio(make: Callable[[], nn.Module], optimizer: Callable[..., torch.optim.Optimizer], pairs: int) -> float:
    """The median of guarded ÷ plain over ``pairs`` of steps."""
    plain = make()
    guarded = copy.deepcopy(plain)
    first, second = optimizer(plain.parameters()), optimizer(guarded.parameters())
    guard = attach(guarded, second, say=False)
    width = next(plain.parameters()).shape[1]
    found = []
    for n in range(pairs + 10):
        batch = torch.randn(32, width, generator=torch.Generator().manual_seed(n))
        a = step(plain, first, None, batch)
        b = step(guarded, second, guard, batch)
        if n >= 10:
            found.append(b / a)
    return statistics.median(found)


def main() -> None:
    """One line for each size and optimizer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    pairs = parser.parse_args().pairs
    torch.set_num_threads(1)
    print("| parameters | optimizer | attach ÷ plain, CPU time |\n|---|---|---|")
    for size, make in MODELS.items():
        for name, optimizer in OPTIMIZERS.items():
            print(f"| {size} | {name} | {ratio(make, optimizer, pairs):.3f} |", flush=True)


if __name__ == "__main__":
    main()
