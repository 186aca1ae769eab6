"""The guard without a host read: the device refuses the bad update itself, the numbers are read when they arrive.

For CUDA, where reading one number makes the host wait for everything before it. Losses, norms and one flag stay on the
device; the fused optimizer takes the flag as ``found_inf`` and the clipping as ``grad_scale``, as GradScaler uses them.
All of it also runs on the CPU, where the tests compare it with the immediate guard.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard import forward_backward, optimizer_step
from maskrcnn_coco.guard.aside import put_back
from maskrcnn_coco.guard.health import LEAP
from maskrcnn_coco.guard.immediate import undo_pass
from maskrcnn_coco.guard.inputs import verdict_on
from maskrcnn_coco.guard.judgement import Instruments, Measured
from maskrcnn_coco.guard.norms import SMALLEST_RMS, float_states, stacked_norms
from maskrcnn_coco.guard.undo import may_fault
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord

DEPTH = 2
"""Steps that may be under way; the step after them waits for the oldest, which is long done."""


@dataclass
class Pending:
    """A step whose numbers are on their way.

    [refused, optimizer state, buffers, scale, total norm, losses…, norms…, bounds…, and, where measured, update
    ratios…], the last three for each component.
    """

    record: StepRecord
    names: list[str]
    numbers: Tensor
    arrived: Any
    suspicion: Verdict | None
    aside: list[Any] = field(default_factory=list)
    """What modules kept before it that is no tensor."""


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
            problem = parts.health.check_lr() or parts.health.check_fit()
        if problem is not None:
            parts.completed.append(self._refuse(record, problem, began, ran=False))
            return record
        parts.layout.zero_grad()
        parts.buffers.save()
        aside = parts.buffers.aside.plain()
        parts.seconds += time.perf_counter() - began
        try:
            names, losses = _run(forward, batches, parts.scale.scaler)
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
        numbers = self._update(losses, record)
        self.applying = False
        self.pending.append(Pending(record, names, *_send(numbers), suspicion, aside))
        parts.seconds += time.perf_counter() - began
        return record

    def _refuse(self, record: StepRecord, verdict: Verdict, began: float, *, ran: bool) -> StepRecord:
        self.parts.layout.zero_grad()
        return self.parts.refuse(record, verdict, began, ran=ran)

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

    def _update(self, losses: Tensor, record: StepRecord) -> Tensor:
        """Unscale, measure, and let the device decide; returns the numbers, still on the device."""
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
        buffers = self._sum(parts.buffers.active_floats(), losses.device)
        with parts.lowered_rates():  # the step will be taken at these
            bound = self._bound(groups, total, kept, record)
        sound = total.isfinite() & losses.isfinite().all() & states.isfinite() & buffers.isfinite()
        # A NaN among the bounds is one of the faults above; of finite ones none may leap.
        sound = sound & ~(bound > LEAP).any()
        watching = parts.stall.watching or parts.haste.watching or parts.health.brisk
        due = parts.measures(record.step) or watching
        copies = [p.detach().clone() for p in parts.layout.params] if due else []
        if gradients:
            with parts.lowered_rates():
                self._step(~sound, total)
            parts.health.note_marks()
            self._scale(~losses.isfinite().all())
        parts.buffers.restore_where(~sound)
        head = torch.stack([(~sound).float(), states.float(), buffers.float(), scale, total.float()])
        return torch.cat([head, losses, groups, bound, *([self._ratios(copies)] if due else [])])

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
        if only is not None:
            if not only:
                return sums
            if len(only) < len(where):
                norms, where = norms[self._on(norms.device, only)], [where[i] for i in only]
        components = [layout.component[i] for i in where]
        return sums.index_add(0, self._on(norms.device, components), norms.square()).sqrt()

    def _on(self, device: torch.device, values: list[int] | list[float]) -> Tensor:
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
        groups = rest[:count]
        bound = parts.layout.by_component(rest[count : 2 * count])
        record.group_grad_norm = parts.layout.by_component(groups)
        record.loss_scale = scale if parts.scale.scaler is not None else None
        record.applied = not bad
        if bad:
            put_back(item.aside)
        if record.applied and rest[2 * count :]:
            record.update_ratio = parts.layout.by_component(rest[2 * count :])
        nothing = [n for n, v in record.losses.items() if math.isnan(v)] if bad and math.isfinite(total) else []
        record.loss = sum(record.losses.values())  # NaN where a term is
        verdict = self._verdict(
            record,
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
        if verdict is not None and parts.alarm is None:
            parts.raise_alarm(record, verdict)  # of several the first: what follows stands on it
        elif record.applied:
            parts.divergence.accept(
                record.loss, record.grad_norm, record.group_grad_norm, parts.health.moved, rates=record.lr
            )
        parts.completed.append(record)

    def _verdict(self, record: StepRecord, seen: Measured) -> Verdict | None:
        parts = self.parts
        found = parts.judge(seen)
        if record.applied:
            parts.scale.streak, parts.scale.found = 0, True
            if record.update_ratio:
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


def _run(forward: forward_backward.Forward, batches: Sequence[Any], scaler: Any) -> tuple[list[str], Tensor]:
    """Forward and backward of every micro-batch; loss names, and their means float32 (n,) on the device."""
    sums: dict[str, Tensor] = {}
    for batch in batches:
        terms: Mapping[str, Tensor] = forward_backward.as_terms(forward(batch))
        for name, term in terms.items():
            value = term.detach().reshape(()).float() / len(batches)
            sums[name] = sums[name] + value if name in sums else value
        forward_backward.backward(list(terms.values()), len(batches), scaler)
    return list(sums), torch.stack(list(sums.values()))


def _send(numbers: Tensor) -> tuple[Tensor, Any]:
    """One non-blocking copy to the host, and the event that says it has arrived (None: it is there)."""
    if numbers.device.type != "cuda":
        return numbers.cpu(), None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(numbers.device))  # not of whichever device is current
    return host, event
