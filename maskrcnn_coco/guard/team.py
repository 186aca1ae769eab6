"""A guard of several processes: all take the same branch, and the one that is bad is named.

What each process measured by itself (its inputs, its losses, its gradients before averaging, its buffers) is exchanged
before the average hides it, and before anyone applies: two processes that part ways in silence are the worst of all.
"""

from __future__ import annotations

import contextlib
import math
import zlib
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from maskrcnn_coco.distributed.averaging import Turn
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.guard import forward_backward
from maskrcnn_coco.guard.judgement import Instruments
from maskrcnn_coco.guard.norms import Layout
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

    def run(
        self, forward: forward_backward.Forward, batches: Sequence[Any], parts: Instruments, *, catch: bool
    ) -> tuple[forward_backward.Pass, Verdict | None]:
        """This process's own forward and backward pass, and the verdict that all share on them.

        Where that is None, gradients and losses are averaged, if the team averages.
        """
        scaler, layout = parts.scale.scaler, parts.layout
        if not self.averages:
            first = parts.taken == 0
            done = forward_backward.run(forward, batches, scaler, layout, catch=catch, first=first)
            done.own_loss = done.loss
            return done, self.worst(own_fault(done, scaler is not None or _finite(layout)), done.loss)
        turn = self.ranks.averaging.turn(layout.in_model_order, measure=scaler is None)
        done = self._watched(turn, forward, batches, parts, catch=catch)
        turn.send_rest()
        mine, done.own_loss = own_fault(done, turn.finite()), done.loss
        rows = turn.finish(_blame(mine, done.loss) | _terms(done.losses))
        shared = self._blamed(mine, rows)
        if shared is None:
            turn.put_back()
            done.losses = self._mean(done.losses, rows)
        return done, shared

    def run_plain(
        self, forward: forward_backward.Forward, batches: Sequence[Any], parts: Instruments
    ) -> forward_backward.Pass:
        """The same without a verdict: the `Pass` with losses (and gradients, if the team averages) averaged."""
        if not self.averages or isinstance(parts.model, DistributedDataParallel):  # which averages itself
            done = forward_backward.run(forward, batches, parts.scale.scaler, parts.layout, catch=False)
            done.losses = self.mean(done.losses)
            return done
        turn = self.ranks.averaging.turn(parts.layout.in_model_order)
        done = self._watched(turn, forward, batches, parts, catch=False)
        turn.send_rest()
        rows = turn.finish(_terms(done.losses))
        turn.put_back()
        done.losses = self._mean(done.losses, rows)
        return done

    def _watched(
        self, turn: Turn, forward: forward_backward.Forward, batches: Sequence[Any], parts: Instruments, *, catch: bool
    ) -> forward_backward.Pass:
        """A pass whose gradients leave as they are made, and stay this process's own all the same."""
        ddp = parts.model.no_sync() if isinstance(parts.model, DistributedDataParallel) else contextlib.nullcontext()
        try:
            with ddp:
                return forward_backward.run(
                    forward,
                    batches,
                    parts.scale.scaler,
                    parts.layout,
                    catch=catch,
                    before_last=turn.watch,
                    first=parts.taken == 0,
                )
        finally:
            turn.unwatch()

    def worst_of(self, mine: Verdict | None, loss: float, *, foreign: bool) -> tuple[Verdict | None, bool]:
        """As `worst`; and whether the optimizer's state was changed from outside on any process (``foreign``: here).

        All then look at the coming step, and all of them undo it where one has to.
        """
        rows = self.ranks.all_flags(_blame(mine, loss) | {"foreign": float(foreign)})
        return self._blamed(mine, rows), any(r["foreign"] for r in rows)

    def worst(self, mine: Verdict | None, loss: float = 0.0) -> Verdict | None:
        """The verdict of the process that is to blame, on every process; None if none has one.

        What only one process can have (a crash, an input, its own loss) is blamed before what the average of gradients
        spreads to all; of several alike the one with the largest ``loss``, NaN above all, then the first.
        The process that is blamed keeps its full account; the others know the sentence and who it is.
        """
        return self._blamed(mine, self.ranks.all_flags(_blame(mine, loss)))

    def _blamed(self, mine: Verdict | None, rows: list[dict[str, float]]) -> Verdict | None:
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

    def _mean(self, losses: dict[str, float], rows: list[dict[str, float]]) -> dict[str, float]:
        """The same from rows that carried them: no further exchange, unless they have different names or are many."""
        if len(losses) > _TERMS or len({row["names"] for row in rows}) > 1:
            return self.mean(losses)
        return {name: math.fsum(r[f"term {i}"] for r in rows) / len(rows) for i, name in enumerate(losses)}


_TERMS = 16
"""Loss terms that travel with the verdict. A row has the same length on a process that crashed before it had any."""


def _terms(losses: dict[str, float]) -> dict[str, float]:
    values = [*losses.values(), *[0.0] * _TERMS][:_TERMS]
    return {"names": float(zlib.crc32("\n".join(losses).encode()))} | {f"term {i}": v for i, v in enumerate(values)}


def _blame(mine: Verdict | None, loss: float) -> dict[str, float]:
    blame = 0.0 if mine is None else 1.0 + float(mine.symptom in OWN)
    return {"blame": blame, "loss": abs(loss) if math.isfinite(loss) else math.inf}


def own_fault(done: forward_backward.Pass, finite: bool) -> Verdict | None:
    """What this process alone knows to be wrong. ``finite``: its gradients, before they are averaged."""
    if done.error is not None:
        return Verdict("crash", done.error)
    if done.micro_batch is not None:
        bad = [n for n, v in done.losses.items() if not math.isfinite(v)]
        return Verdict("loss_nonfinite", f"{', '.join(bad)} is not finite")
    return None if finite else Verdict("grad_nonfinite", "a gradient is not finite, with finite losses")


def _finite(layout: Layout) -> bool:
    gradients, _ = layout.gradients()
    return not gradients or bool(torch.isfinite(torch.nn.utils.get_total_norm(gradients)))
