"""A guard of several processes: all take the same branch, and the one that is bad is named.

What each process measured by itself (its inputs, its losses, its gradients before averaging, its buffers) is exchanged
before the average hides it, and before anyone applies: two processes that part ways in silence are the worst of all.
"""

from __future__ import annotations

import contextlib
import math
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.guard import forward_backward
from maskrcnn_coco.guard.judgement import Instruments
from maskrcnn_coco.guard.verdict import Verdict

OWN = ("crash", "input_nonfinite", "loss_nonfinite", "buffer_nonfinite")
"""Symptoms that a process has by itself; gradients are everybody's once they are averaged."""


class Team:
    """This process's guard among those of the others.

    Args:
        ranks: the processes of the run.
        averages: whether the guard averages gradients itself, after everyone is known to be sound. A
            DistributedDataParallel model is then told not to: it would wait for a process that crashed.
    """

    def __init__(self, ranks: Ranks, *, averages: bool) -> None:
        self.ranks, self.averages = ranks, averages

    @classmethod
    def found(cls, model: nn.Module) -> Team | None:
        """The processes that torch.distributed knows; None where there is one only."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return None
        return cls(Ranks.joined(), averages=isinstance(model, DistributedDataParallel))

    def alone(self, model: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """A forward and backward pass whose gradients stay this process's own."""
        ours = self.averages and isinstance(model, DistributedDataParallel)
        return model.no_sync() if ours else contextlib.nullcontext()  # type: ignore[union-attr]

    def ran(self, done: forward_backward.Pass, parts: Instruments) -> Verdict | None:
        """After this process's own pass: the verdict all share, or None with gradients and losses averaged."""
        shared = self.worst(own_fault(done, parts), done.loss)
        if shared is None and self.averages:
            self.ranks.average_gradients(parts.layout.params)
            done.losses = self.mean(done.losses)
        return shared

    def worst(self, mine: Verdict | None, loss: float = 0.0) -> Verdict | None:
        """The verdict of the process that is to blame, on every process; None if none has one.

        What only one process can have (a crash, an input, its own loss) is blamed before what the average of gradients
        spreads to all; of several alike the one with the largest ``loss``, NaN above all, then the first.
        The process that is blamed keeps its full account; the others know the sentence and who it is.
        """
        blame = 0.0 if mine is None else 1.0 + float(mine.symptom in OWN)
        size = abs(loss) if math.isfinite(loss) else math.inf
        rows = self.ranks.all_flags({"blame": blame, "loss": size})
        flags = [bool(r["blame"]) for r in rows]
        if not any(flags):
            return None
        plain = None if mine is None else {"symptom": mine.symptom, "message": mine.message, "fatal": mine.fatal}
        said = self.ranks.gather_objects(plain)
        first = max(range(len(rows)), key=lambda r: (rows[r]["blame"], rows[r]["loss"], -r))
        measured = {"rank": first, "per_rank_flags": flags}
        if mine is not None and first == self.ranks.rank:
            mine.measured |= measured
            return mine
        worst = said[first]
        return Verdict(worst["symptom"], f"process {first}: {worst['message']}", measured, fatal=worst["fatal"])

    def mean(self, losses: dict[str, float]) -> dict[str, float]:
        """Each loss averaged over the processes."""
        rows = self.ranks.all_flags(losses)
        return {name: math.fsum(r[name] for r in rows) / len(rows) for name in losses}


def own_fault(done: forward_backward.Pass, parts: Instruments) -> Verdict | None:
    """What this process alone knows to be wrong. fp16 gradients may overflow: that is the scaler's business."""
    if done.error is not None:
        return Verdict("crash", done.error)
    if done.micro_batch is not None:
        bad = [n for n, v in done.losses.items() if not math.isfinite(v)]
        return Verdict("loss_nonfinite", f"{', '.join(bad)} is not finite")
    gradients, _ = parts.layout.gradients()
    if parts.scale.scaler is None and gradients:
        total = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(total)):
            return Verdict("grad_nonfinite", "a gradient is not finite, with finite losses")
    return None
