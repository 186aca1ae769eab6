"""The three acts of a step that is read at once: begin, judge, apply.

Begin looks at inputs and state, and copies what a forward pass may change; judge measures after the backward pass;
apply takes the optimizer's step or puts everything back.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn

from maskrcnn_coco.guard import forward_backward, inputs, optimizer_step
from maskrcnn_coco.guard.forward_backward import Forward, Pass
from maskrcnn_coco.guard.judgement import Instruments, Measured
from maskrcnn_coco.guard.norms import nonfinite_at
from maskrcnn_coco.guard.team import Team
from maskrcnn_coco.guard.undo import Undo
from maskrcnn_coco.guard.updates import update_ratio
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord

Mode = Literal["recover", "stop", "observe", "off"]


WITHOUT_GRAPH = 3
"""Steps in a row whose losses have no gradient, and are not 0, after which that is a fault."""


class Act:
    """One step on its way through the acts."""

    def __init__(self, record: StepRecord, before: Verdict | None) -> None:
        self.record = record
        self.before = before
        self.suspicion: Verdict | None = None
        self.verdict: Verdict | None = None
        self.done: Pass | None = None
        self.gradients: list[torch.Tensor] = []
        self.groups: list[float] = []
        self.norms: list[float] = []
        self.where: list[int] = []
        self.foreign: list[nn.Parameter] = []
        self.shared: Verdict | None = None
        self.seen: list[torch.Tensor] = []
        self.certain = False
        """Whether the loop showed the loss."""
        self.came: torch.Tensor | None = None
        """The gradient that a backward pass brought to the loss that the model gave: below 0 the loop climbs it."""
        self.own_loss = 0.0
        self.copies: list[torch.Tensor] = []
        self.due = self.watched = False
        self.over = self.overflow = False
        self.foreign_state = False
        """Somebody changed the optimizer's state since the last step, here or in another process."""

    def through(self, gradient: torch.Tensor) -> None:
        """A backward pass came through the model's loss, which is what it trains on, or a part of that."""
        self.came = gradient


def undo_pass(parts: Instruments) -> None:
    """What a forward and backward pass that was broken off has changed: gradients, and the buffers saved before it."""
    parts.layout.zero_grad()
    parts.buffers.restore()


class Immediate:
    """Takes steps with the instruments of one guard. ``team``: the other processes, where there are any."""

    def __init__(self, parts: Instruments, mode: Mode) -> None:
        self.parts = parts
        self.mode: Mode = mode
        self.undo = Undo(parts)
        self.team: Team | None = None
        self.agree_at_once = True
        self._without_graph = 0
        self.applying = False
        """See `Guard.applying`."""
        self.evaluates = False
        """The optimizer is handed a closure, and evaluates the loss within its step as often as it likes."""
        self.grad_scale: torch.Tensor | None = None

    def begin(self, batches: list[Any], record: StepRecord, *, save: bool = True) -> Act:
        """Act one, for these micro-batches (none: nothing is known of what goes into the model).

        ``save``: copy the buffers now; not where the forward pass has changed them already.
        """
        began, self.applying = time.perf_counter(), False
        act, found = Act(record, None), self._before(batches)
        if found is not None and found.suspicion:
            act.suspicion, found = (None if self.parts.holes else found), None
        act.before = self.team.worst(found) if self.team is not None and self.agree_at_once else found
        # What cannot be used is not even run: native code might take the interpreter down.
        act.over = act.before is not None and (self.mode != "observe" or act.before.fatal)
        if not act.over and save:
            self.parts.buffers.save()
        act.foreign = [p for p in self.parts.layout.outside if p.grad is None]
        self.parts.seconds += time.perf_counter() - began
        return act

    def run_and_judge(self, forward: Forward, batches: list[Any], act: Act) -> None:
        """Forward, backward and act two; where anything is raised on the way, all is as it was before."""
        self.parts.layout.zero_grad()
        try:
            self.judge(act, self.run(forward, batches, act))
        except BaseException:
            undo_pass(self.parts)
            raise

    def run(self, forward: Forward, batches: list[Any], act: Act) -> Pass:
        """Forward and backward; in a team each process learns of a fault in another before gradients are averaged."""
        parts, team, catch = self.parts, self.team, self.mode != "observe"
        if team is None:
            scaler, first = parts.scale.scaler, parts.taken == 0
            done = forward_backward.run(forward, batches, scaler, parts.layout, catch=catch, first=first)
            return self._trained(done) if catch else done
        done, act.shared = team.run(forward, batches, parts, catch=catch)
        act.own_loss = done.own_loss
        return done

    def _trained(self, done: Pass) -> Pass:
        """``done``, as a fault where losses go on coming without any gradient: nothing is trained any more.

        A batch of nothing has a loss of 0 without one, now and then or often; a number that is none is another thing.
        """
        none = done.error is None and not done.graph and any(done.losses.values())
        none = none and all(p.grad is None for p in self.parts.layout.params)
        self._without_graph = self._without_graph + 1 if none else 0
        if self._without_graph >= WITHOUT_GRAPH:
            done.error, done.micro_batch = forward_backward.DETACHED.format(self._without_graph), 0
        return done

    def _before(self, batches: list[Any]) -> Verdict | None:
        """What must be known before native code sees the batch: certain faults first, then the mere suspicion."""
        parts = self.parts
        batch = inputs.verdict_on(batches, parts.expected)
        if batch is not None and not batch.suspicion:
            return batch
        found = parts.scale.check() or parts.health.check()
        return found or parts.buffers.verdict(whole=parts.taken % parts.check_every == 0) or batch

    def judge(self, act: Act, done: Pass) -> None:
        """Act two: measure, and find the verdict. Sets ``act.over`` where the step is not to be taken."""
        parts, record, observing = self.parts, act.record, self.mode == "observe"
        began = time.perf_counter()
        act.done = done
        act.own_loss = done.loss if not self.agree_at_once else act.own_loss
        parts.scale.unscale(parts.optimizer, parts.layout)
        act.gradients, where = parts.layout.gradients()
        record.losses, record.loss = done.losses, done.loss
        act.groups = self.measure(act, where)
        if done.micro_batch is not None and math.isfinite(record.grad_norm):
            # No gradient knows of it: a loss that nobody trains on, or of a pass that the loop itself has dropped.
            if math.isfinite(done.later):
                record.losses, record.loss, done.micro_batch = {"loss": done.later}, done.later, None
            elif not done.certain or record.grad_norm == 0.0 or (parts.looks and parts.looks.of_nothing(record)):
                # Of nothing at all, too (a text of padding alone), be it one of several micro-batches.
                record.losses, record.loss, done.micro_batch = {}, math.nan, None
        act.verdict = act.before or parts.health.spares() or parts.health.written_during() or self._verdict(act)
        if self.team is not None and not (self.agree_at_once and act.before is not None):
            act.verdict = self._agreed(act)
        scaled = parts.scale.scaler is not None and not math.isfinite(record.grad_norm)
        # An overflow of scaled gradients at a sound loss: no fault, but no step either, not even when only observing.
        act.overflow = scaled and (act.verdict is None or observing)
        nothing = bool(done.without_gradient) and math.isnan(record.loss)
        act.over = act.overflow or nothing or (act.verdict is not None and not observing)
        parts.seconds += time.perf_counter() - began

    def measure(self, act: Act, where: list[int]) -> list[float]:
        """Fill in the norms of ``act.gradients``, which are of the parameters at ``where``; those of the components."""
        parts, record = self.parts, act.record
        stacked = parts.layout.gradient_norms(act.gradients, where)
        if self.grad_scale is not None:
            stacked = stacked / self.grad_scale.to(stacked.device)
        if parts.max_grad_norm is None:
            act.norms = stacked.tolist()
            # Not hypot: it gives infinity for (infinity, NaN), and squares of float32 do not overflow here.
            record.grad_norm = math.sqrt(sum(map(operator.mul, act.norms, act.norms)))
        else:
            # The total as torch's clip_grad_norm_ has it, to the last bit, so that both clip alike.
            *act.norms, record.grad_norm = torch.cat([stacked, stacked.norm().reshape(1)]).tolist()
        act.where = where
        groups = parts.layout.totals(act.norms, where)
        record.group_grad_norm = parts.layout.by_component(groups)
        return groups

    def _verdict(self, act: Act) -> Verdict | None:
        parts, record, done = self.parts, act.record, act.done
        assert done is not None
        coefficient = optimizer_step.clip_coefficient(record.grad_norm, parts.max_grad_norm)

        def parameters() -> tuple[list[str], int]:
            return [parts.layout.names[act.where[i]] for i in nonfinite_at(act.norms)], len(act.where)

        def buffers() -> list[str]:
            parts.buffers.changed()
            return parts.buffers.wrong()

        with parts.lowered_rates():  # the step will be taken at these
            bound = parts.health.update_bound(act.groups, coefficient)
        return parts.judge(
            Measured(
                record,
                act.groups,
                bound,
                coefficient < 1.0,
                done.without_gradient,
                done.micro_batch,
                done.error,
                act.suspicion,
                where=act.where,
                norms=act.norms,
                gradients=act.gradients,
                buffers=buffers,
                parameters=parameters,
            )
        )

    def _agreed(self, act: Act) -> Verdict | None:
        """One verdict for all processes, before any of them applies."""
        assert self.team is not None
        if act.shared is None:
            # Gradients are averaged by now, each process's own loss may still tell who brought what is too large.
            health = self.parts.health
            health.look_again()
            verdict, act.foreign_state = self.team.worst_of(
                act.verdict, act.own_loss, foreign=health.foreign is not None
            )
            return verdict
        if act.verdict is not None and act.shared.measured["rank"] == self.team.ranks.rank:
            act.verdict.measured |= {k: act.shared.measured[k] for k in ("rank", "per_rank_flags")}
            return act.verdict  # the full account; the others know the sentence
        return act.shared

    def apply(self, act: Act, step: Callable[[], Any] | None) -> StepRecord:
        """Act three: clip and step (or the caller's own ``step``), or everything put back."""
        parts, record, began = self.parts, act.record, time.perf_counter()
        if act.overflow:
            self._overflow(act, began)
        elif act.over:
            parts.refuse(record, act.before or act.verdict, began, ran=act.done is not None)
        else:
            self._take(act, step, began)
        for p in act.foreign:
            p.grad = None  # made by this step's backward pass; the optimizer does not have these parameters
        return record

    def _overflow(self, act: Act, began: float) -> None:
        """fp16 gradients beyond range: part of the search for a scale, until the scale says otherwise."""
        parts, record = self.parts, act.record
        verdict = parts.scale.overflowed(record.step) or act.verdict
        parts.buffers.restore()
        if verdict is not None:
            verdict.measured |= {"losses": record.losses, "group_grad_norm": record.group_grad_norm}
        parts.refuse(record, verdict, began, ran=False)

    def _take(self, act: Act, step: Callable[[], Any] | None, began: float) -> None:
        parts = self.parts
        self.before_step(act)
        parts.seconds += time.perf_counter() - began
        self.applying = True
        with parts.lowered_rates():
            if step is None:
                coefficient = optimizer_step.clip_coefficient(act.record.grad_norm, parts.max_grad_norm)
                optimizer_step.apply(parts.optimizer, act.gradients, coefficient)
            else:
                step()
        self.after_step(act)
        self.applying = False

    def before_step(self, act: Act) -> None:
        """Copy what is compared with afterwards, or put back."""
        parts = self.parts
        brisk = parts.stall.watching or parts.haste.watching or parts.health.brisk
        # Processes that hold shares measure together or not at all, and each has a loss of its own.
        creeping = parts.loss_weight.under_way and parts.shares is None
        act.due = parts.measures(parts.taken) or brisk or creeping
        act.copies = [p.detach().clone() for p in parts.layout.params] if act.due else []
        if self.team is None:  # of several processes all have to look: they have agreed on it
            parts.health.look_again()
            act.foreign_state = parts.health.foreign is not None
        act.watched = self.mode != "observe" and (act.foreign_state or self.undo.wanted())
        if act.watched:
            self.undo.take()

    def after_step(self, act: Act) -> None:
        """Look at what the optimizer did, undo it if it must not stand, and learn from it."""
        parts, record, began = self.parts, act.record, time.perf_counter()
        fault = self._undone(act) if act.watched else None
        if act.watched and self.team is not None and (parts.shares is not None or act.foreign_state):
            fault = self.team.worst(fault)  # each has seen its own share, or its own optimizer's state, only
        if fault is not None:
            self.undo.put_back()
            parts.refuse(record, fault, began)
            return
        clipped = parts.scale.applied(bool(act.gradients), record.grad_norm, record.loss_scale)
        act.verdict, record.applied = act.verdict or clipped, True
        parts.holes = parts.holes or act.suspicion is not None
        parts.taken += 1
        parts.health.finished(due=act.due)
        if act.due:
            record.update_ratio = update_ratio(act.copies, parts.layout, parts.health.weight_norms())
            parts.loss_weight.back, act.copies = act.copies, []
            stalled = parts.updated(record)
            act.verdict = act.verdict or stalled
        parts.loss_weight.moved = self.undo.moved if act.watched else None
        parts.learn(record, record.grad_norm, act.where, act.norms, parts.health.moved)
        parts.loss_weight.back = parts.loss_weight.back if act.due and parts.shares is None else []
        if act.verdict is not None:
            parts.raise_alarm(record, act.verdict)
        parts.seconds += time.perf_counter() - began

    def _undone(self, act: Act) -> Verdict | None:
        """What must not stand of what the optimizer did; more strictly where its state is not what a step left."""
        health = self.parts.health
        if not act.foreign_state:
            return self.undo.fault()
        coefficient = optimizer_step.clip_coefficient(act.record.grad_norm, self.parts.max_grad_norm)
        found = self.undo.fault(health.most(act.groups, coefficient))
        return None if found is None else health.by_state(found)

    def plain(self, forward: Forward, batches: list[Any], record: StepRecord) -> StepRecord:
        """The step of a plain loop, for mode "off"."""
        if self.team is not None:
            return self._plain_team(self.team, forward, batches, record)
        parts = self.parts
        parameters = list(parts.model.parameters())
        record.losses, record.grad_norm = optimizer_step.plain(
            forward, batches, parts.optimizer, parts.scale.scaler, parameters, parts.max_grad_norm
        )
        record.loss, record.applied = sum(record.losses.values()), True
        return record

    def _plain_team(self, team: Team, forward: Forward, batches: list[Any], record: StepRecord) -> StepRecord:
        parts = self.parts
        parts.layout.zero_grad()
        done = team.run_plain(forward, batches, parts)
        parts.scale.unscale(parts.optimizer, parts.layout)
        act = Act(record, None)
        act.gradients, where = parts.layout.gradients()
        record.losses = done.losses
        record.loss = sum(record.losses.values())
        self.measure(act, where)
        coefficient = optimizer_step.clip_coefficient(record.grad_norm, parts.max_grad_norm)
        optimizer_step.apply(parts.optimizer, act.gradients, coefficient)
        parts.scale.applied(bool(act.gradients), record.grad_norm, record.loss_scale)
        parts.layout.zero_grad()
        record.applied = True
        return record
