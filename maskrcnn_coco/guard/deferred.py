"""The guard without a host read: the device refuses the bad update itself, the numbers are read when they arrive.

For CUDA, where reading one number makes the host wait for everything before it. Losses, norms and one flag stay on the
device; the fused optimizer takes the flag as ``found_inf`` and the clipping as ``grad_scale``, as GradScaler uses them.
All of it also runs on the CPU, where the tests compare it with the immediate guard.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard import forward_backward, optimizer_step
from maskrcnn_coco.guard.aside import put_back
from maskrcnn_coco.guard.health import LEAP
from maskrcnn_coco.guard.immediate import WITHOUT_GRAPH, undo_pass
from maskrcnn_coco.guard.inputs import verdict_on
from maskrcnn_coco.guard.judgement import Instruments, Measured
from maskrcnn_coco.guard.late_buffers import LateBuffers
from maskrcnn_coco.guard.norms import SMALLEST_RMS, float_states, stacked_norms
from maskrcnn_coco.guard.pending import Pending, run_unread, send
from maskrcnn_coco.guard.undo import may_fault
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord

BY_STATE = ("loss_nonfinite", "grad_nonfinite", "buffer_nonfinite", "input_nonfinite")
"""What weights, state or buffers that are not finite bring about."""
LOOKS = 20
"""Steps that are read at once after one that could not be judged late; twice as many each time that one comes."""
FIRST_STEPS, RISES = 5, 1.5
"""Updates are measured in so many first steps, and where a rate is so many times that of the step before."""
DEPTH = 2
"""Steps that may be under way; the step after them waits for the oldest, which is long done."""


class Deferred:
    """The step of a guard with ``deferred=True``."""

    def __init__(self, instruments: Instruments) -> None:
        optimizer = instruments.optimizer
        if not optimizer_step.scales_itself(optimizer):
            raise ConfigError(
                f"{type(optimizer).__name__} cannot refuse a step on the device",
                expected="SGD, Adam or AdamW with fused=True",
                fix="build the optimizer with fused=True, or the guard with deferred=False",
            )
        if may_fault(optimizer):
            raise ConfigError(
                f"a step of this {type(optimizer).__name__} may be non-finite though its gradients are finite, "
                "which only a guard that reads at once can undo",
                expected="weights in single precision (or bfloat16) and an eps above 1e-30",
                fix="build the guard with deferred=False",
            )
        self.parts = instruments
        self.pending: deque[Pending] = deque()
        self.applying = False
        """See `Guard.applying`."""
        self._sent: dict[tuple[Any, ...], Tensor] = {}
        self._weights: tuple[int, Tensor] = (-1, torch.zeros(0))
        self._buffers = LateBuffers(instruments.buffers)
        self._rates: list[float] = []
        self._early = 0
        self._without_graph = 0
        self.doubted: int | None = None
        """A step that the device refused for a loss that may be of nothing: only taken again at once it can be told."""
        self.looks = self._doubts = 0
        """Steps to come that are better read at once."""
        self._zero_momentum()

    def step(self, forward: forward_backward.Forward, batches: Sequence[Any], record: StepRecord) -> StepRecord:
        """Take the step; its record is filled in when the numbers arrive (see ``guard.completed``)."""
        parts, began = self.parts, time.perf_counter()
        parts.completed, self.applying = [], False
        parts.health.forget_weights()  # what it knows of them is of a step that was read at once
        self.collect(wait=len(self.pending) >= DEPTH)
        problem = verdict_on(batches, parts.expected)
        suspicion = problem if problem is not None and problem.suspicion else None
        if problem is None or suspicion is not None:
            problem = parts.health.check_lr() or parts.health.check_fit() or (None if self._early else parts.inspect())
        if problem is not None:
            parts.completed.append(self._refuse(record, problem, began, ran=False))
            return record
        parts.layout.zero_grad()
        parts.buffers.save()
        aside = parts.buffers.aside.plain()
        parts.seconds += time.perf_counter() - began
        try:
            names, without, losses = self._run(forward, batches)
        except BaseException as error:
            if not isinstance(error, forward_backward.FAULTS) or forward_backward.is_fatal(error):
                undo_pass(parts)
                raise
            self.collect(wait=True, everything=True)
            verdict = parts.crash(forward_backward.in_words(error), {})
            parts.completed.append(self._refuse(record, verdict, time.perf_counter(), ran=True))
            return record
        began = time.perf_counter()
        self.applying = True
        slots, numbers = self._update(losses, [n in without for n in names], record)
        self.applying = False
        self.pending.append(Pending(record, names, without, slots, *send(numbers), suspicion, aside))
        parts.seconds += time.perf_counter() - began
        return record

    def _refuse(self, record: StepRecord, verdict: Verdict, began: float, *, ran: bool) -> StepRecord:
        first = self.parts.alarm  # of an earlier step, whose numbers have just arrived: it comes before this one
        self.parts.layout.zero_grad()
        self.parts.refuse(record, verdict, began, ran=ran)
        self.parts.alarm = first or self.parts.alarm
        return record

    def flush(self) -> None:
        """Wait for every step under way; before a snapshot, a checkpoint or the end of the run."""
        self.parts.completed, self.parts.alarm = [], None
        self.collect(wait=True, everything=True)

    def collect(self, *, wait: bool, everything: bool = False) -> None:
        """Read what has arrived, in order; with ``wait`` at least the oldest."""
        while self.pending:
            first = self.pending[0]
            if first.arrived is not None and not first.arrived.query():
                if not wait:
                    return
                first.arrived.synchronize()
            wait = wait and everything
            self.pending.popleft()
            self._complete(first)

    def _run(self, forward: forward_backward.Forward, batches: Sequence[Any]) -> tuple[list[str], list[str], Tensor]:
        """Forward and backward of every micro-batch: loss names, those without a graph, and their means, float32 (n,).

        Where none has one, nothing is trained, and a read delays nothing: as the guard that reads at once has it.
        """
        names, without, losses = run_unread(forward, batches, self.parts.scale.scaler)
        if len(without) < len(names):
            self._without_graph = 0
            return names, without, losses
        frozen = self.parts.layout.frozen
        if frozen or not torch.is_grad_enabled():
            raise RuntimeError(forward_backward.FROZEN if frozen else forward_backward.SWITCHED_OFF)
        self._without_graph = self._without_graph + 1 if bool((losses != 0).any()) else 0
        if self._without_graph >= WITHOUT_GRAPH:
            raise RuntimeError(forward_backward.DETACHED.format(self._without_graph))
        return names, without, losses

    def _update(self, losses: Tensor, without: list[bool], record: StepRecord) -> tuple[list[int], Tensor]:
        """Unscale, measure, and let the device decide; which buffers were, and the numbers, still on the device."""
        parts, optimizer, scaler = self.parts, self.parts.optimizer, self.parts.scale.scaler
        gradients, where = parts.layout.gradients()
        scale = torch.ones((), device=losses.device)
        if scaler is not None and gradients:
            scale = scaler._scale.clone()
            scaler.unscale_(optimizer)
        norms = stacked_norms(gradients).to(losses.device)
        groups = self._totals(norms.float(), where)
        total = norms.norm() if gradients else groups.sum()
        tensors, owners, keys = float_states(optimizer, parts.layout)
        moments = stacked_norms(tensors).to(losses.device).float()
        states = moments.sum() if tensors else torch.zeros((), device=losses.device)
        momentum = [i for i, key in enumerate(keys) if key == "momentum_buffer"]
        kept = self._totals(moments, owners, only=momentum)
        parts.buffers.changed()
        slots, sizes, wrong = self._buffers.measure(losses.device)
        buffers = torch.where(wrong, math.inf, sizes.sum())
        counted = losses
        if any(without):  # of those a NaN says nothing: no gradient knows of it
            counted = torch.where(losses.isnan() & self._on(losses.device, without), 0.0, losses)
        with parts.lowered_rates():  # the step will be taken at these
            bound = self._bound(groups, total, kept, record)
        sound = total.isfinite() & counted.isfinite().all() & states.isfinite() & buffers.isfinite()
        # A NaN among the bounds is one of the faults above; of finite ones none may leap.
        sound = sound & ~(bound > LEAP).any()
        due = self._is_due(record)
        copies = [p.detach().clone() for p in parts.layout.params] if due else []
        if gradients:
            with parts.lowered_rates():
                self._step(~sound, total)
            parts.health.note_marks()
            # Only what overflows at a sound loss and state is the scale's fault.
            self._scale(~counted.isfinite().all() | ~states.isfinite() | (~sound & total.isfinite()))
        parts.buffers.restore_where(~sound)
        head = torch.stack([(~sound).float(), states.float(), buffers.float(), scale, total.float()])
        return slots, torch.cat([head, losses, groups, bound, sizes, *([self._ratios(copies)] if due else [])])

    def _is_due(self, record: StepRecord) -> bool:
        """Whether the update is measured: what its size is like is not known yet, so also where it may be others."""
        rates = list(record.lr.values())
        rises = any(now > RISES * then for now, then in zip(rates, self._rates, strict=False))
        self._rates, self._early = rates, self._early + 1
        return self._watches(record) or rises or self._early <= FIRST_STEPS

    def _watches(self, record: StepRecord) -> bool:
        """Whether the size of this step's update is wanted, as far as is known of it."""
        parts = self.parts
        brisk = parts.stall.watching or parts.haste.watching or parts.health.brisk
        return parts.measures(record.step) or brisk

    def _bound(self, groups: Tensor, total: Tensor, momentum: Tensor, record: StepRecord) -> Tensor:
        """What `Health.update_bound` gives, float32 (components,), without asking the host."""
        parts, optimizer = self.parts, self.parts.optimizer
        layout = parts.layout
        counts = self._on(groups.device, layout.sizes).sqrt()
        rates = self._on(groups.device, layout.largest(parts.health.lr()))
        if isinstance(optimizer, torch.optim.SGD):
            limit = parts.max_grad_norm
            clip = (limit / (total.float() + 1e-6)).clamp(max=1.0) if limit else torch.ones_like(total.float())
            heavy = max(float(g["momentum"]) for g in optimizer.param_groups)
            sizes = heavy * momentum + 2 * clip * groups
        else:
            sizes = counts
        return rates * sizes / torch.maximum(self._weight_norms(record.step), SMALLEST_RMS * counts)

    def _weight_norms(self, step: int) -> Tensor:
        """Component norms of the weights, as of a few steps ago: a bound needs no more."""
        known, norms = self._weights
        count = len(self.parts.layout.components)
        if not known <= step < known + self.parts.check_every or known < 0 or len(norms) != count:
            norms = self._by_component([p.detach() for p in self.parts.layout.params])
            self._weights = (step, norms)
        return norms

    def _ratios(self, copies: list[Tensor]) -> Tensor:
        """‖update‖ / ‖weights‖ per component, from the weights before the step (which it uses up)."""
        params = [p.detach() for p in self.parts.layout.params]
        with torch.no_grad():
            torch._foreach_sub_(copies, params)  # pyright: ignore[reportPrivateImportUsage]
        return self._by_component(copies) / self._by_component(params).clamp(min=1e-30)

    def _by_component(self, tensors: list[Tensor]) -> Tensor:
        """2-norms float32 (components,) of one tensor per parameter, on the device."""
        return self._totals(stacked_norms(tensors).float(), list(range(len(tensors))))

    def _totals(self, norms: Tensor, where: list[int], *, only: list[int] | None = None) -> Tensor:
        """2-norms (components,) from one of each tensor; ``where`` are the tensors' places in the layout.

        Args:
            only: positions in ``norms`` that count; by default all.
        """
        layout = self.parts.layout
        sums = torch.zeros(len(layout.components), device=norms.device)
        if not where:
            return sums
        if only is not None:
            if not only:
                return sums
            if len(only) < len(where):
                norms, where = norms[self._on(norms.device, only)], [where[i] for i in only]
        components = [layout.component[i] for i in where]
        return sums.index_add(0, self._on(norms.device, components), norms.square()).sqrt()

    def _on(self, device: torch.device, values: list[bool] | list[int] | list[float]) -> Tensor:
        """``values`` on the device: sent once, as they hardly ever change (learning rates do, now and then)."""
        key = (device, type(values[0]), *values)
        if key not in self._sent:
            if len(self._sent) > 64:
                self._sent.clear()
            self._sent[key] = torch.tensor(values).to(device, non_blocking=True)
        return self._sent[key]

    def _step(self, bad: Tensor, total: Tensor) -> None:
        optimizer: Any = self.parts.optimizer
        optimizer.found_inf = bad.float()
        if self.parts.max_grad_norm:
            # To the last bit what `clip_coefficient` gives. Where the norm is not finite nothing is applied.
            limit = self.parts.max_grad_norm
            scale = (limit / (total.float() + 1e-6)).double().reciprocal().float()
            optimizer.grad_scale = torch.where(total <= limit, torch.ones_like(scale), scale)
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
            if self.parts.max_grad_norm:
                del optimizer.grad_scale

    def _scale(self, loss_bad: Tensor) -> None:
        """Halve or grow as GradScaler does, unless the loss itself was bad: that is no fault of the scale."""
        scaler = self.parts.scale.scaler
        if scaler is None:
            return
        scale, growth = scaler._scale.clone(), scaler._growth_tracker.clone()
        scaler.update()
        scaler._scale.copy_(torch.where(loss_bad, scale, scaler._scale.clamp(min=self.parts.scale.floor)))
        scaler._growth_tracker.copy_(torch.where(loss_bad, growth, scaler._growth_tracker))

    def _complete(self, item: Pending) -> None:
        """Fill in the record, and judge what the host has to judge: one step late, the state is already safe."""
        parts, record = self.parts, item.record
        bad, states, buffers, scale, total, *rest = item.numbers.tolist()
        record.losses = dict(zip(item.names, rest[: len(item.names)], strict=True))
        record.grad_norm = total
        count, rest = len(parts.layout.components), rest[len(item.names) :]
        groups, bound, rest = rest[:count], parts.layout.by_component(rest[count : 2 * count]), rest[2 * count :]
        sizes, ratios = rest[: len(item.slots)], rest[len(item.slots) :]
        record.group_grad_norm = parts.layout.by_component(groups)
        record.loss_scale = scale if parts.scale.scaler is not None else None
        record.applied = not bad
        if bad:
            put_back(item.aside)
        nans = [n for n, v in record.losses.items() if math.isnan(v)]
        without = [n for n in nans if n in item.without]
        nothing = nans if bad and math.isfinite(total) else without
        record.loss = sum(v for n, v in record.losses.items() if n not in without)  # NaN where another term is
        verdict = self._verdict(
            record,
            ratios,
            Measured(
                record,
                groups,
                bound,
                bool(parts.max_grad_norm) and total > (parts.max_grad_norm or 0),
                nothing,
                suspicion=item.suspicion,
                states=not math.isfinite(states),
                buffers=lambda: [] if math.isfinite(buffers) else ["a buffer"],
            ),
        )
        if bad and verdict is None and len(nothing) > len(without):
            self.doubted = record.step if self.doubted is None else self.doubted
            self._doubts += self.looks == 0
            self.looks = LOOKS * 2 ** min(self._doubts, 10)
        if verdict is not None and parts.alarm is None:
            parts.raise_alarm(record, verdict)  # of several the first: what follows stands on it
        elif record.applied:
            self._buffers.learn(item.slots, sizes)
            parts.learn(record, record.grad_norm, [], [], parts.health.moved)
        parts.completed.append(record)

    def better_at_once(self) -> bool:
        """Whether the coming step is better read at once; counts it."""
        self.looks -= self.looks > 0
        return self.doubted is not None and self.looks > 0

    def reset(self) -> None:
        """The state is another one: what was under way is of none any more."""
        self.pending.clear()
        self.doubted, self.looks, self._early = None, 0, 0

    def _verdict(self, record: StepRecord, ratios: list[float], seen: Measured) -> Verdict | None:
        parts = self.parts
        found = parts.judge(seen)
        if found is not None and not record.applied and found.symptom in BY_STATE:
            # What follows was refused too, so the state is what this step met: was it bad before the step began?
            # Settings may be those of the next step by now; this one's were looked at before it began.
            state = None if parts.health.check_lr() else parts.inspect()
            found = parts.health.spares() or state or found
        if record.applied:
            parts.scale.streak, parts.scale.found = 0, True
            if ratios and self._watches(record):
                record.update_ratio = parts.layout.by_component(ratios)
                stalled = parts.updated(record)
                found = found or stalled
            return found
        if found is None and parts.scale.scaler is not None and not math.isfinite(record.grad_norm):
            return parts.scale.judge(record.step, record.loss_scale or 1.0)
        # None: a mean over nothing that reached no gradient. The device skipped the step, which costs nothing.
        return found

    @staticmethod
    def _sum(tensors: list[Tensor], device: torch.device) -> Tensor:
        return stacked_norms(tensors).to(device).sum() if tensors else torch.zeros((), device=device)

    def _zero_momentum(self) -> None:
        """Fused SGD makes its buffers with `empty_like`: skipped on the device at first, they would stay garbage."""
        optimizer = self.parts.optimizer
        for group in optimizer.param_groups:
            if not isinstance(optimizer, torch.optim.SGD) or not group["momentum"]:
                continue
            if group["dampening"]:
                raise ConfigError("a deferred guard needs SGD without dampening", got=group["dampening"], expected="0")
            for p in group["params"]:
                optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p, requires_grad=False))


def late_reads(device: torch.device, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the guard reads nothing within a step: where a read makes the host wait, and the device can refuse."""
    return device.type == "cuda" and optimizer_step.scales_itself(optimizer) and not may_fault(optimizer)
