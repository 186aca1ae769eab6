"""Two processes for test_buckets.py: a guarded training of channels-last weights, told as numbers.

Arguments: a folder, and precisions: "fp32" or "fp16" (a loss scaler). ``PRECISION.pt`` gets weights and momentum.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from forked import team
from torch import Tensor, nn

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.optim import build_optimizer
from maskrcnn_coco.replay import snapshot
from maskrcnn_coco.replay.optimizer import restore_optimizer

STEPS, WORLD, CLIP, LR = 8, 2, 0.7, 0.05


class Net(nn.Module):
    """``branch`` is used where a batch has objects only, ``late`` from step 4 on, ``never`` not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Conv2d(3, 8, 3)
        self.branch = nn.Conv2d(8, 6, 3)
        self.late = nn.Conv2d(8, 4, (1, 3))
        self.never = nn.Conv2d(8, 2, 3)

    def forward(self, batch: tuple[Tensor, bool, bool]) -> dict[str, Tensor]:
        images, objects, late = batch
        x = self.stem(images)
        count = max(1, len(images))
        losses = {"loss_stem": (x - 1).square().sum() / count / 100}
        if objects:
            losses["loss_branch"] = self.branch(x.sin()).square().sum() / count / 50
        if late:
            losses["loss_late"] = self.late(x.cos()).square().sum() / count / 50
        losses.setdefault("loss_branch", x.sum() * 0)
        losses.setdefault("loss_late", x.sum() * 0)
        return losses


def batch(step: int, rank: int) -> tuple[Tensor, bool, bool]:
    """At step 2 process 0 has no image, at step 5 nobody has an object; else one of the two has objects."""
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(10 * step + rank))
    empty = step == 2 and rank == 0
    return images[: 0 if empty else 2], step != 5 and rank == step % 2 and not empty, step >= 4 and rank == 1


def straight(momentum: float = 0.9) -> tuple[list[Tensor], list[Tensor]]:
    """The same training by one process, the tutorial's way: weights and momentum as they should be."""
    model = Net()
    params = list(model.parameters())
    moving = [torch.zeros_like(p) for p in params]
    for step in range(STEPS):
        total: list[Any] = [None] * len(params)
        for rank in range(WORLD):
            model.zero_grad(set_to_none=True)
            sum(model(batch(step, rank)).values()).backward()  # type: ignore[union-attr]
            total = [
                t if p.grad is None else p.grad + (0 if t is None else t) for t, p in zip(total, params, strict=True)
            ]
        grads = [None if t is None else t / WORLD for t in total]
        norm = torch.nn.utils.get_total_norm([g for g in grads if g is not None])
        share = min(1.0, float(CLIP / (norm + 1e-6)))
        with torch.no_grad():
            for p, m, g in zip(params, moving, grads, strict=True):
                if g is not None:
                    m.mul_(momentum).add_(g * share)
                    p.sub_(LR * m)
    return [p.detach() for p in params], moving


def main(precision: str, out: Path) -> None:
    torch.set_num_threads(1)
    ranks = Ranks.start("cpu", timeout=30.0)
    model = Net().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = build_optimizer(model, weight_decay=0.0)
    assert optimizer.defaults["fused"]
    for group in optimizer.param_groups:
        group["lr"] = LR
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0) if precision == "fp16" else None
    guard = Guard(model, optimizer, scaler=scaler, max_grad_norm=CLIP, ranks=ranks)

    def walk(first: int, last: int) -> None:
        for step in range(first, last):
            record = guard.step(model, batch(step, ranks.rank), step=step)
            assert record.applied, guard.alarm

    walk(0, 3)
    kept = snapshot.take(model, optimizer, scaler, step=3, epoch=0, guard=guard)
    walk(3, 5)
    snapshot.restore(kept, model, optimizer, scaler, guard)
    walk(3, 6)
    # As a checkpoint gives it back, row-major, to an optimizer that has taken no step.
    saved = optimizer.state_dict()
    saved["state"] = {
        i: {k: v.detach().contiguous().clone() for k, v in entry.items()} for i, entry in saved["state"].items()
    }
    optimizer.state.clear()
    restore_optimizer(optimizer, saved)
    walk(6, STEPS)
    if ranks.is_main:
        params = list(model.parameters())
        torch.save(([p.detach() for p in params], [optimizer.state[p]["momentum_buffer"] for p in params]), out)
    ranks.barrier("the end")


if __name__ == "__main__":
    for precision in sys.argv[2:]:
        team(WORLD, partial(main, precision, Path(sys.argv[1], f"{precision}.pt")))
