"""What `attach` costs: guarded ÷ plain, step by step in pairs in one process, by this thread's CPU time.

    OMP_NUM_THREADS=1 python bench/anywhere/cost.py [--pairs 60]

Two copies of a model take the same batches in turn, one with the guard behind its optimizer. Medians of the ratio of
each pair, so that what the machine does besides falls on both. Other loops than these cost other shares: the guard's
part is a few reads of the gradients, whatever the forward pass takes.

Beside it, in pairs with a plain copy as well: the same loop with torch's own `clip_grad_norm_(…,
error_if_nonfinite=True)`, and with the least that can refuse a step, one norm of each gradient and a branch. And plain
÷ plain, which says how far to trust a line.

glibc gives a gradient's memory back to the kernel at each `zero_grad`, or does not, as the heap happens to lie: 20 M
parameters then cost 20,000 page faults a step, on one of two equal loops (1.36 plain ÷ plain). Here it keeps it.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
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


Check = Callable[[list[nn.Parameter]], bool]


def clipped(parameters: list[nn.Parameter]) -> bool:
    """torch's own: raises where the norm is not finite."""
    torch.nn.utils.clip_grad_norm_(parameters, 1e6, error_if_nonfinite=True)
    return True


def least(parameters: list[nn.Parameter]) -> bool:
    """One norm of each gradient, read, and a branch."""
    norms = torch._foreach_norm([p.grad for p in parameters], 2)  # pyright: ignore
    return math.isfinite(sum(torch.stack(norms).tolist()))


CHECKS: dict[str, Check | None] = {"attach": None, "clip_grad_norm_": clipped, "least": least, "plain": lambda _: True}


class Loop:
    """One model, its optimizer, and what stands between the gradients and the step."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, kind: str) -> None:
        self.model, self.optimizer, self.check = model, optimizer, CHECKS[kind]
        self.parameters = list(model.parameters())
        self.guard = attach(model, optimizer) if kind == "attach" else None

    def step(self, batch: torch.Tensor) -> float:
        """One step; seconds of this thread."""
        began = time.thread_time()
        self.optimizer.zero_grad()
        loss = self.model(batch).square().mean()
        if self.guard is not None:
            self.guard.see(loss)
        loss.backward()
        if self.check is None or self.check(self.parameters):
            self.optimizer.step()
        return time.thread_time() - began


def ratio(
    make: Callable[[], nn.Module], optimizer: Callable[..., torch.optim.Optimizer], pairs: int, kind: str = "attach"
) -> float:
    """The median of checked ÷ plain over ``pairs`` of steps; each of the two comes first in half of the pairs."""
    model = make()
    other = copy.deepcopy(model)
    plain, checked = (
        Loop(model, optimizer(model.parameters()), "plain"),
        Loop(other, optimizer(other.parameters()), kind),
    )
    width = next(model.parameters()).shape[1]
    found = []
    for n in range(pairs + 10):
        batch = torch.randn(32, width, generator=torch.Generator().manual_seed(n))
        times = {loop: loop.step(batch) for loop in ((plain, checked) if n % 2 else (checked, plain))}
        if n >= 10:
            found.append(times[checked] / times[plain])
    return statistics.median(found)


def keep_memory() -> None:
    """Start anew with a heap that is not given back; see above."""
    if sys.platform == "linux" and "MALLOC_TRIM_THRESHOLD_" not in os.environ:
        os.environ |= {"MALLOC_TRIM_THRESHOLD_": str(2**40), "MALLOC_MMAP_THRESHOLD_": str(2**25)}
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    """One line for each size and optimizer."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    pairs = parser.parse_args().pairs
    keep_memory()
    torch.set_num_threads(1)
    print(f"| parameters | optimizer | {' | '.join(f'{k} ÷ plain' for k in CHECKS)} |\n|{'---|' * (2 + len(CHECKS))}")
    for size, make in MODELS.items():
        for name, optimizer in OPTIMIZERS.items():
            row = [f"{ratio(make, optimizer, pairs, kind):.3f}" for kind in CHECKS]
            print(f"| {size} | {name} | {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
