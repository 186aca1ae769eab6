"""The guard of a run of several processes: all take the same branch, and the one that is bad is named.

What each process measured by itself (its inputs, its losses, its gradients before averaging) is exchanged before the
average hides it. From there on all see the same numbers, so their verdicts agree without another word.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.guard import step as steps
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord


class TeamGuard(Guard):
    """A `Guard` that agrees with those of the other processes; construct it like a `Guard`, then set ``ranks``."""

    ranks: Ranks
    _shared: Verdict | None = None

    def _before(self, batches: list[Any]) -> Verdict | None:
        return self._worst(super()._before(batches))

    def _run(self, forward: steps.Forward, batches: list[Any], *, catch: bool) -> steps.Pass:
        done = super()._run(forward, batches, catch=catch)
        self._shared = self._worst(self._own_fault(done))
        if self._shared is None:
            self.ranks.average_gradients(self.layout.params)
            done.losses = self._mean(done.losses)
        return done

    def _verdict(self, done: steps.Pass, record: StepRecord, groups: list[float]) -> Verdict | None:
        shared, self._shared = self._shared, None
        if shared is None:
            return super()._verdict(done, record, groups)
        if shared.measured["rank"] == self.ranks.rank:
            own = super()._verdict(done, record, groups)  # the full account; the others know the sentence
            if own is not None:
                own.measured |= {k: shared.measured[k] for k in ("rank", "per_rank_flags")}
                return own
        return shared

    def _plain(self, forward: steps.Forward, batches: list[Any], record: StepRecord) -> StepRecord:
        done = steps.run(forward, batches, self.scale.scaler, self.layout, catch=False)
        self.ranks.average_gradients(self.layout.params)
        self.scale.unscale(self.optimizer, self.layout)
        gradients, where = self.layout.gradients()
        record.losses = self._mean(done.losses)
        record.loss = sum(record.losses.values())
        self._measure(gradients, where, record)
        steps.apply(self.optimizer, gradients, steps.clip_coefficient(record.grad_norm, self.max_grad_norm))
        self.scale.applied(bool(gradients))
        self.layout.zero_grad()
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
