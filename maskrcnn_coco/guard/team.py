"""The guard of a run of several processes: all take the same branch, and the one that is bad is named.

What each process measured by itself (its inputs, its losses, its gradients before averaging) is exchanged before the
average hides it. From there on all see the same numbers, so their verdicts agree without another word.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.guard import step as steps
from maskrcnn_coco.guard.guard import Act, Guard
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord


class TeamGuard(Guard):
    """A `Guard` that agrees with those of the other processes.

    Args:
        ranks: the processes of the run. All else is `Guard`'s.
    """

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, *, ranks: Ranks, **settings: Any) -> None:
        super().__init__(model, optimizer, **settings)
        self.ranks = ranks
        self._shared: Verdict | None = None

    def _before(self, batches: list[Any]) -> Verdict | None:
        mine = super()._before(batches)
        if mine is not None and mine.suspicion:
            self._worst(None)  # what is only a suspicion waits for the loss
            return mine
        return self._worst(mine)

    def _run(self, forward: steps.Forward, batches: list[Any], *, catch: bool) -> steps.Pass:
        done = super()._run(forward, batches, catch=catch)
        self._shared = self._worst(self._own_fault(done))
        if self._shared is None:
            self.ranks.average_gradients(self.layout.params)
            done.losses = self._mean(done.losses)
        return done

    def _verdict(self, act: Act) -> Verdict | None:
        shared, self._shared = self._shared, None
        if shared is None:
            return super()._verdict(act)
        if shared.measured["rank"] == self.ranks.rank:
            own = super()._verdict(act)  # the full account; the others know the sentence
            if own is not None:
                own.measured |= {k: shared.measured[k] for k in ("rank", "per_rank_flags")}
                return own
        return shared

    def _plain(self, forward: steps.Forward, batches: list[Any], record: StepRecord) -> StepRecord:
        parts = self.instruments
        parts.layout.zero_grad()
        done = steps.run(forward, batches, parts.scale.scaler, parts.layout, catch=False)
        self.ranks.average_gradients(parts.layout.params)
        parts.scale.unscale(parts.optimizer, parts.layout)
        act = Act(record, None)
        act.gradients, where = parts.layout.gradients()
        record.losses = self._mean(done.losses)
        record.loss = sum(record.losses.values())
        self._measure(act, where)
        steps.apply(parts.optimizer, act.gradients, steps.clip_coefficient(record.grad_norm, parts.max_grad_norm))
        parts.scale.applied(bool(act.gradients))
        parts.layout.zero_grad()
        record.applied = True
        return record

    def _own_fault(self, done: steps.Pass) -> Verdict | None:
        """What this process alone knows to be wrong. fp16 gradients may overflow: that is the scaler's business."""
        if done.error is not None:
            return Verdict("crash", done.error)
        if done.micro_batch is not None:
            bad = [n for n, v in done.losses.items() if not math.isfinite(v)]
            return Verdict("loss_nonfinite", f"{', '.join(bad)} is not finite")
        gradients, _ = self.layout.gradients()
        if self.scale.scaler is None and gradients:
            total = torch.nn.utils.get_total_norm(gradients)
            if not bool(torch.isfinite(total)):
                return Verdict("grad_nonfinite", "a gradient is not finite, with finite losses")
        return None

    def _worst(self, mine: Verdict | None) -> Verdict | None:
        """The verdict of the first process that has one, on every process; None if none has."""
        flags = [bool(f["bad"]) for f in self.ranks.all_flags({"bad": float(mine is not None)})]
        if not any(flags):
            return None
        plain = None if mine is None else {"symptom": mine.symptom, "message": mine.message, "fatal": mine.fatal}
        said = self.ranks.gather_objects(plain)
        first = flags.index(True)
        measured = dict(mine.measured) if mine is not None and first == self.ranks.rank else {}
        measured |= {"rank": first, "per_rank_flags": flags}
        worst = said[first]
        return Verdict(worst["symptom"], f"process {first}: {worst['message']}", measured, fatal=worst["fatal"])

    def _mean(self, losses: dict[str, float]) -> dict[str, float]:
        rows = self.ranks.all_flags(losses)
        return {name: math.fsum(r[name] for r in rows) / len(rows) for name in losses}
