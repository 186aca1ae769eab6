"""Three processes for test_averaging.py: averaging during and after the backward pass. Argument: a folder."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from forked import team
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maskrcnn_coco.distributed import averaging, buckets
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import MaskRCNNError
from maskrcnn_coco.guard.guard import Guard

WORLD, STEPS, BAD = 3, 6, 3
FAULTS = ("none", "crash_forward", "crash_backward", "nan_loss", "nan_gradient", "no_loss")
"""What happens to process 1 in step `BAD`."""
SENT: list[int] = []
"""How many buckets had left when the backward pass was over, one entry a step."""


class Spoilt(torch.autograd.Function):
    """Gradients that are NaN, or a backward pass that raises, in the middle of the network."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, raises: bool) -> Tensor:
        ctx.raises = raises
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        if ctx.raises:
            raise ValueError("backward of Spoilt")
        return gradients[0] * math.nan, None


class Net(nn.Module):
    """Some layers are used by some processes in some steps only, one by none; one weight is used twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.ModuleList(nn.Linear(9, 9) for _ in range(6))
        self.seldom, self.never = nn.Linear(9, 9), nn.Linear(9, 2)
        self.shared = nn.Linear(9, 9)
        self.precise = nn.Linear(9, 3).double()
        self.nested = False

    def forward(self, x: Tensor, seldom: bool, fault: str) -> dict[str, Tensor]:
        for i, layer in enumerate(self.layers):
            x = layer(x).sin()
            if i == 2 and fault in ("nan_gradient", "crash_backward"):
                x = Spoilt.apply(x, fault == "crash_backward")  # type: ignore[assignment]
        x = self.shared(x).tanh()
        x = checkpoint(self.shared, x, use_reentrant=True) if self.nested else self.shared(x)  # type: ignore[assignment]
        if seldom:
            x = self.seldom(x)
        if fault == "crash_forward":
            raise ValueError("forward")
        if fault == "no_loss":
            return {"loss_a": x.detach().sum(), "loss_b": x.detach().sum()}
        loss = x.square().mean() * (math.nan if fault == "nan_loss" else 1.0)
        return {"loss_a": loss, "loss_b": self.precise(x.double()).square().mean()}


def inputs(step: int, part: int, rank: int) -> Tensor:
    return torch.randn(5, 9, generator=torch.Generator().manual_seed(100 * step + 10 * part + rank))


def digest(model: nn.Module) -> str:
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()[:12]


def run(ranks: Ranks, fault: str, *, early: bool, parts: int = 1, mode: Any = "recover", nested: bool = False) -> Any:
    ranks.averaging = averaging.Averaging(ranks)
    ranks.averaging.early = early
    model = Net()
    model.nested = nested
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    guard = Guard(model, optimizer, ranks=ranks, mode=mode, max_grad_norm=1.0)
    SENT.clear()
    said: list[Any] = []
    for step in range(STEPS):
        here = fault if step == BAD and ranks.rank == 1 else "none"

        def forward(part: int, step: int = step, here: str = here) -> dict[str, Tensor]:
            return model(inputs(step, part, ranks.rank), (step + ranks.rank + part) % 2 == 0, here)

        record = guard.step(forward, list(range(parts)), step=step, micro_batches=True)
        alarm = None if guard.alarm is None else [guard.alarm.symptom, guard.alarm.measured.get("rank")]
        said.append([record.applied, digest(model), record.losses, record.grad_norm, alarm])
    return {"steps": json.loads(json.dumps(said)), "sent": list(SENT), "early": ranks.averaging.early}


def names_that_differ(ranks: Ranks) -> str:
    model = nn.Linear(3, 1)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.01), ranks=ranks)
    try:
        guard.step(lambda x: {f"loss_{min(ranks.rank, 1)}": model(x).mean()}, torch.ones(2, 3))
    except MaskRCNNError as e:
        return e.what
    return ""


def many_terms(ranks: Ranks) -> list[float]:
    model = nn.Linear(3, 40)
    guard = Guard(model, torch.optim.SGD(model.parameters(), lr=0.01), ranks=ranks)
    x = torch.full((2, 3), float(ranks.rank))
    record = guard.step(
        lambda x: {f"loss_{i}": (t - t.detach() + i + ranks.rank).mean() for i, t in enumerate(model(x).T)}, x
    )
    return [record.losses[f"loss_{i}"] for i in range(40)]


def main(out: str) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ranks = Ranks.start("cpu", timeout=60.0)
    buckets.BUCKET_BYTES, buckets.FIRST_BYTES = 800, 400
    finish: Callable[..., Any] = averaging.Turn.send_rest

    def counted(turn: averaging.Turn) -> None:
        SENT.append(len(turn._works))
        finish(turn)

    averaging.Turn.send_rest = counted  # type: ignore[method-assign]
    found: dict[str, Any] = {}
    for fault in FAULTS:
        for early in (True, False):
            found[f"{fault}-{early}"] = run(ranks, fault, early=early)
    for early in (True, False):
        found[f"parts-{early}"] = run(ranks, "none", early=early, parts=3)
        found[f"off-{early}"] = run(ranks, "none", early=early, mode="off")
        found[f"nested-{early}"] = run(ranks, "none", early=early, nested=True)
    found["names"], found["terms"] = names_that_differ(ranks), many_terms(ranks)
    Path(out, f"{ranks.rank}.json").write_text(json.dumps(found))
    ranks.barrier("the end")


if __name__ == "__main__":
    team(WORLD, lambda: main(sys.argv[1]))
