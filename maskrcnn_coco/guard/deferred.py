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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard import step as steps
from maskrcnn_coco.guard.inputs import verdict_on
from maskrcnn_coco.guard.norms import float_states, stacked_norms
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord

if TYPE_CHECKING:
    from maskrcnn_coco.guard.guard import Guard

DEPTH = 2
"""Steps that may be under way; the step after them waits for the oldest, which is long done."""


@dataclass
class Pending:
    """A step whose numbers are on their way.

    [refused, optimizer state, buffers, scale, total norm, losses…, norms…, and, where measured, update ratios…].
    """

    record: StepRecord
    names: list[str]
    numbers: Tensor
    arrived: Any


class Deferred:
    """The step of a guard with ``deferred=True``."""

    def __init__(self, guard: Guard) -> None:
        if not steps.scales_itself(guard.optimizer):
            raise ConfigError(
                f"{type(guard.optimizer).__name__} cannot refuse a step on the device",
                expected="SGD, Adam or AdamW with fused=True",
                fix="build the optimizer with fused=True, or the guard with deferred=False",
            )
        self.guard = guard
        self.pending: deque[Pending] = deque()
        self._components: tuple[list[int], Tensor] = ([], torch.zeros(0, dtype=torch.long))
        self._zero_momentum()

    def step(self, forward: steps.Forward, batches: Sequence[Any], record: StepRecord) -> StepRecord:
        """Take the step; its record is filled in when the numbers arrive (see ``guard.completed``)."""
        guard, began = self.guard, time.perf_counter()
        guard.completed = []
        guard.health.reset()  # what it knows of the weights is of a step that was read at once
        self.collect(wait=len(self.pending) >= DEPTH)
        problem = verdict_on(batches, guard.limits) or guard.health.check_lr()
        if problem is not None:
            guard.completed.append(guard.refuse(record, problem, began, ran=False))
            return record
        guard.layout.zero_grad()
        guard.buffers.save()
        guard.seconds += time.perf_counter() - began
        try:
            names, losses = _run(forward, batches, guard.scale.scaler)
        except steps.FAULTS as error:
            if steps.is_fatal(error):
                raise
            self.collect(wait=True, everything=True)
            verdict = guard.crash(f"{type(error).__name__}: {str(error).strip()[:2000]}", {})
            guard.completed.append(guard.refuse(record, verdict, time.perf_counter()))
            return record
        began = time.perf_counter()
        numbers = self._update(losses, record)
        self.pending.append(Pending(record, names, *_send(numbers)))
        guard.seconds += time.perf_counter() - began
        return record

    def flush(self) -> None:
        """Wait for every step under way; before a snapshot, a checkpoint or the end of the run."""
        self.guard.completed, self.guard.alarm = [], None
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
        guard, optimizer, scaler = self.guard, self.guard.optimizer, self.guard.scale.scaler
        gradients, where = guard.layout.gradients()
        scale = torch.ones((), device=losses.device)
        if scaler is not None and gradients:
            scale = scaler._scale.clone()
            scaler.unscale_(optimizer)
        norms = stacked_norms(gradients).to(losses.device)
        groups = self._totals(norms.float(), where)
        total = norms.norm() if gradients else groups.sum()
        states = self._sum(float_states(optimizer, guard.layout)[0], losses.device)
        guard.buffers.changed()
        buffers = self._sum(guard.buffers.active_floats(), losses.device)
        sound = total.isfinite() & losses.isfinite().all() & states.isfinite() & buffers.isfinite()
        due = record.step % guard.measure_every == 0 or guard.stall.watching
        copies = [p.detach().clone() for p in guard.layout.params] if due else []
        if gradients:
            self._step(~sound, total)
            self._scale(~losses.isfinite().all())
        guard.buffers.restore_where(~sound)
        head = torch.stack([(~sound).float(), states.float(), buffers.float(), scale, total.float()])
        return torch.cat([head, losses, groups, self._ratios(copies)] if due else [head, losses, groups])

    def _ratios(self, copies: list[Tensor]) -> Tensor:
        """‖update‖ / ‖weights‖ per component, from the weights before the step (which it uses up)."""
        params = [p.detach() for p in self.guard.layout.params]
        with torch.no_grad():
            torch._foreach_sub_(copies, params)  # pyright: ignore[reportPrivateImportUsage]
        return self._by_component(copies) / self._by_component(params).clamp(min=1e-30)

    def _by_component(self, tensors: list[Tensor]) -> Tensor:
        """2-norms float32 (components,) of one tensor per parameter, on the device."""
        return self._totals(stacked_norms(tensors).float(), list(range(len(tensors))))

    def _totals(self, norms: Tensor, where: list[int]) -> Tensor:
        """2-norms (components,) from one of each tensor; ``where`` are the tensors' places in the layout."""
        layout = self.guard.layout
        components = [layout.component[i] for i in where]
        if components != self._components[0] or self._components[1].device != norms.device:
            sent = torch.tensor(components, dtype=torch.long).to(norms.device, non_blocking=True)
            self._components = (components, sent)
        sums = torch.zeros(len(layout.components), device=norms.device)
        return sums.index_add(0, self._components[1], norms.square()).sqrt()

    def _step(self, bad: Tensor, total: Tensor) -> None:
        optimizer: Any = self.guard.optimizer
        optimizer.found_inf = bad.float()
        if self.guard.max_grad_norm:
            # To the last bit what `step.clip_coefficient` gives. Where the norm is not finite nothing is applied.
            limit = self.guard.max_grad_norm
            scale = (limit / (total.float() + 1e-6)).double().reciprocal().float()
            optimizer.grad_scale = torch.where(total <= limit, torch.ones_like(scale), scale)
        try:
            optimizer.step()
        finally:
            del optimizer.found_inf
            if self.guard.max_grad_norm:
                del optimizer.grad_scale

    def _scale(self, loss_bad: Tensor) -> None:
        """Halve or grow as GradScaler does, unless the loss itself was bad: that is no fault of the scale."""
        scaler = self.guard.scale.scaler
        if scaler is None:
            return
        scale, growth = scaler._scale.clone(), scaler._growth_tracker.clone()
        scaler.update()
        scaler._scale.copy_(torch.where(loss_bad, scale, scaler._scale.clamp(min=self.guard.scale.floor)))
        scaler._growth_tracker.copy_(torch.where(loss_bad, growth, scaler._growth_tracker))

    def _complete(self, item: Pending) -> None:
        """Fill in the record, and judge what the host has to judge: one step late, the state is already safe."""
        guard, record = self.guard, item.record
        bad, states, buffers, scale, total, *rest = item.numbers.tolist()
        record.losses = dict(zip(item.names, rest[: len(item.names)], strict=True))
        record.loss = sum(record.losses.values())
        record.grad_norm = total
        end = len(item.names) + len(guard.layout.components)
        record.group_grad_norm = guard.layout.by_component(rest[len(item.names) : end])
        record.loss_scale = scale if guard.scale.scaler is not None else None
        record.applied = not bad
        if record.applied and rest[end:]:
            record.update_ratio = guard.layout.by_component(rest[end:])
        verdict = self._verdict(record, states, buffers)
        if verdict is not None and guard.alarm is None:
            guard.sound(record, verdict)  # of several the first: what follows stands on it
        elif record.applied:
            guard.divergence.accept(record.loss, record.grad_norm, record.group_grad_norm)
        guard.completed.append(record)

    def _verdict(self, record: StepRecord, states: float, buffers: float) -> Verdict | None:
        guard = self.guard
        measured = {"losses": record.losses, "group_grad_norm": record.group_grad_norm}
        if record.applied:
            guard.scale.streak, guard.scale.found = 0, True
            found = guard.divergence.judge(record.step, record.loss, record.grad_norm, record.group_grad_norm)
            if found is None and record.update_ratio:
                found = guard.stall.judge(record.step, record.update_ratio, record.lr, record.group_grad_norm)
            return found
        bad = [n for n, v in record.losses.items() if not math.isfinite(v)]
        if bad and math.isfinite(record.grad_norm) and all(math.isnan(record.losses[n]) for n in bad):
            # A mean over nothing: it reached no gradient. The device skipped the step, which costs nothing.
            return None
        if bad:
            return Verdict("loss_nonfinite", f"{', '.join(bad)} is not finite", measured)
        if not math.isfinite(states):
            return Verdict("optimizer_nonfinite", "optimizer state is not finite", measured)
        if not math.isfinite(record.grad_norm):
            if guard.scale.scaler is not None:
                return guard.scale.judge(record.step, record.loss_scale or 1.0)
            return Verdict("grad_nonfinite", "gradients are not finite, with finite losses", measured)
        return Verdict("buffer_nonfinite", "the forward pass made buffers non-finite", measured)

    @staticmethod
    def _sum(tensors: list[Tensor], device: torch.device) -> Tensor:
        return stacked_norms(tensors).to(device).sum() if tensors else torch.zeros((), device=device)

    def _zero_momentum(self) -> None:
        """Fused SGD makes its buffers with `empty_like`: skipped on the device at first, they would stay garbage."""
        optimizer = self.guard.optimizer
        for group in optimizer.param_groups:
            if not isinstance(optimizer, torch.optim.SGD) or not group["momentum"]:
                continue
            if group["dampening"]:
                raise ConfigError("a deferred guard needs SGD without dampening", got=group["dampening"], expected="0")
            for p in group["params"]:
                optimizer.state[p].setdefault("momentum_buffer", torch.zeros_like(p, requires_grad=False))


def late_reads(device: torch.device, optimizer: torch.optim.Optimizer) -> bool:
    """Whether the guard reads nothing within a step: where a read makes the host wait, and the device can refuse."""
    return device.type == "cuda" and steps.scales_itself(optimizer)


def _run(forward: steps.Forward, batches: Sequence[Any], scaler: Any) -> tuple[list[str], Tensor]:
    """Forward and backward of every micro-batch; loss names, and their means float32 (n,) on the device."""
    sums: dict[str, Tensor] = {}
    for batch in batches:
        terms: Mapping[str, Tensor] = steps.as_terms(forward(batch))
        for name, term in terms.items():
            value = term.detach().reshape(()).float() / len(batches)
            sums[name] = sums[name] + value if name in sums else value
        steps._backward(list(terms.values()), len(batches), scaler)
    return list(sums), torch.stack(list(sums.values()))


def _send(numbers: Tensor) -> tuple[Tensor, Any]:
    """One non-blocking copy to the host, and the event that says it has arrived (None: it is there)."""
    if numbers.device.type != "cuda":
        return numbers.cpu(), None
    host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
    host.copy_(numbers, non_blocking=True)
    event = torch.cuda.Event()
    event.record()
    return host, event
