"""The guard: measures every step and refuses the bad ones; it never decides what to do about them.

Order of a step: inputs and state → forward and backward → unscale → measure → verdict → clip and step, or put
everything back. A refusal is a branch, never a product: `0 * NaN` is NaN.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from maskrcnn_coco.errors import GuardStop
from maskrcnn_coco.guard import inputs as targets
from maskrcnn_coco.guard import step as steps
from maskrcnn_coco.guard.buffers import Buffers
from maskrcnn_coco.guard.deferred import Deferred
from maskrcnn_coco.guard.divergence import Divergence
from maskrcnn_coco.guard.health import Health, update_ratio
from maskrcnn_coco.guard.loss_scale import Scale
from maskrcnn_coco.guard.norms import Components, Layout, nonfinite_at, stacked_norms
from maskrcnn_coco.guard.updates import Haste, Stall
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import Alarm, StepRecord

Mode = Literal["recover", "stop", "observe", "off"]


class Guard:
    """Takes the place of zero_grad, backward, unscale, clip and step in any PyTorch training loop.

    Args:
        model: any module; its norm buffers are protected.
        optimizer: any optimizer that steps without a closure.
        scaler: a GradScaler where the forward pass runs in fp16.
        max_grad_norm: clip the gradient to this 2-norm, after unscaling; 0 or None is off.
        components: name → parameters, for norms and records; by default the four of a torchvision detector, the
            top-level children of other models.
        mode: "recover" and "stop" refuse alike (what follows is the loop's business); "observe" reports, and takes the
            step that a plain loop would take; "off" is a plain loop.
        measure_every, check_every: steps between exact update-to-weight ratios, and between checks of the weights.
        max_crashes: crashes in a row after which the code is to blame.
        deferred: for CUDA, with a fused optimizer: nothing is read within a step. The device refuses; a record is
            filled in a step or two later, when it is listed in ``completed``, and its alarm is raised then.

    Raises:
        ConfigError: an optimizer that needs a closure, or holds no parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = 10.0,
        components: Components | None = None,
        mode: Mode = "recover",
        measure_every: int = 50,
        check_every: int = 10,
        max_crashes: int = 5,
        deferred: bool = False,
    ) -> None:
        steps.refuse_closures(optimizer)
        self.model, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.mode: Mode = mode
        self.measure_every, self.check_every, self.max_crashes = measure_every, check_every, max_crashes
        self._components = components
        self._lay_out()
        self.scale = Scale(scaler)
        self.buffers = Buffers(model)
        self.limits = targets.Limits.of(model)
        self.divergence, self.stall, self.haste = Divergence(), Stall(), Haste()
        self.alarm: Alarm | None = None
        self.seconds = 0.0
        self._next = self._taken = self._crashes = 0
        self.completed: list[StepRecord] = []
        self._deferred = Deferred(self) if deferred and mode in ("recover", "stop") else None
        self.at_once_until = -1  # a deferred guard reads at once before this step

    def step(
        self,
        forward: steps.Forward,
        batch: Any,
        ids: Sequence[int] | None = None,
        *,
        step: int | None = None,
        epoch: int = 0,
        micro_batches: bool = False,
    ) -> StepRecord:
        """Take one planned step, or refuse it and leave everything bit for bit as it was.

        Args:
            forward: ``forward(batch)`` → a scalar loss tensor, or a dict of them whose sum is the loss.
            batch: what ``forward`` takes; with ``micro_batches`` a list of them, whose gradients are averaged.
            ids: image (sample) ids, for the record; by default those the batch carries.
            step: number of the planned step; by default counted from 0.

        Returns:
            The record of the step. `alarm` holds the verdict, or None for an applied step and for a benign skip.

        Raises:
            GuardStop: the same crash came ``max_crashes`` times in a row: the code is wrong, not a batch.
        """
        if self.layout.outdated(self.optimizer):
            self._lay_out()
        step = self._next if step is None else step
        self._next, self.alarm = step + 1, None
        batches = list(batch) if micro_batches else [batch]
        found = [int(i) for i in ids] if ids is not None else targets.image_ids(batches)
        deferred = self._deferred if step >= self.at_once_until else None
        scale = None if deferred else self.scale.value
        record = StepRecord(step, epoch, {}, math.nan, math.nan, {}, self.health.lr(), scale, found, applied=False)
        if deferred is not None:
            return deferred.step(forward, batches, record)
        self.completed = [record]
        if self.mode == "off":
            return self._plain(forward, batches, record)
        return self._guarded(forward, batches, record)

    @property
    def nbytes(self) -> int:
        """Bytes that the guard holds between steps (copies of norm buffers)."""
        return self.buffers.nbytes

    def reset(self, step: int | None = None) -> None:
        """After a rollback, a load or a repair: forget the run-up, look at the whole state before the next step."""
        self._next = self._next if step is None else step
        self.alarm, self._crashes = None, 0
        for part in (self.divergence, self.stall, self.haste, self.health):
            part.reset()
        self.layout.zero_grad()
        if self._deferred is not None:
            self._deferred.pending.clear()

    @property
    def late(self) -> bool:
        """Whether records and alarms come later than their steps; before ``at_once_until`` they do not."""
        return self._deferred is not None and self._next >= self.at_once_until

    def flush(self) -> None:
        """With ``deferred``: wait for the steps under way, so that every record is complete."""
        if self._deferred is not None:
            self._deferred.flush()

    def inspect(self) -> Verdict | None:
        """Look at the whole state now, between steps: call it before anything is saved. None: it is sound."""
        return self.scale.check() or self.health.check(whole=True) or self.buffers.verdict(whole=True)

    def state_dict(self) -> dict[str, Any]:
        """Plain data: what the alarms have learned."""
        return {"divergence": self.divergence.state_dict(), "scale": self.scale.state_dict(), "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.divergence.load_state_dict(state["divergence"])
        self.scale.load_state_dict(state["scale"])
        self._taken = int(state["taken"])

    def _lay_out(self) -> None:
        self.layout = Layout(self.model, self.optimizer, self._components)
        self.health = Health(self.layout, self.optimizer, every=self.check_every)

    def _guarded(self, forward: steps.Forward, batches: list[Any], record: StepRecord) -> StepRecord:
        began = time.perf_counter()
        before = self._before(batches)
        observing = self.mode == "observe"
        if before is not None and (not observing or before.fatal):
            return self.refuse(record, before, began, ran=False)
        self.layout.zero_grad()
        self.buffers.save()
        self.seconds += time.perf_counter() - began
        done = self._run(forward, batches, catch=not observing)
        began = time.perf_counter()
        self.scale.unscale(self.optimizer, self.layout)
        gradients, where = self.layout.gradients()
        record.losses, record.loss = done.losses, done.loss
        group_norms = self._measure(gradients, where, record)
        verdict = before or self._verdict(done, record, group_norms)
        if self.scale.scaler is not None and not math.isfinite(record.grad_norm) and (verdict is None or observing):
            return self._overflow(record, verdict, began)
        if (verdict is not None and not observing) or (done.hollow and math.isnan(record.loss)):
            return self.refuse(record, verdict, began)
        self._apply(gradients, group_norms, record, began)
        if verdict is not None:
            self.sound(record, verdict)
        return record

    def _run(self, forward: steps.Forward, batches: list[Any], *, catch: bool) -> steps.Pass:
        return steps.run(forward, batches, self.scale.scaler, self.layout, catch=catch)

    def _before(self, batches: list[Any]) -> Verdict | None:
        """What must be known before native code sees the batch."""
        found = targets.verdict_on(batches, self.limits) or self.scale.check() or self.health.check()
        return found or self.buffers.verdict(whole=self._taken % self.check_every == 0)

    def _measure(self, gradients: list[torch.Tensor], where: list[int], record: StepRecord) -> list[float]:
        stacked = stacked_norms(gradients)
        # The total as torch's clip_grad_norm_ has it, to the last bit, so that both clip alike.
        *self._tensor_norms, record.grad_norm = torch.cat([stacked, stacked.norm().reshape(1)]).tolist()
        self._where = where
        groups = self.layout.totals(self._tensor_norms, where)
        record.group_grad_norm = self.layout.by_component(groups)
        return groups

    def _verdict(self, done: steps.Pass, record: StepRecord, groups: list[float]) -> Verdict | None:
        """None for a sound step, and for an overflow of scaled gradients at a sound loss."""
        measured: dict[str, Any] = {"losses": done.losses, "group_grad_norm": record.group_grad_norm}
        measured |= {} if done.micro_batch is None else {"micro_batch": done.micro_batch}
        if done.error is not None:
            return self.crash(done.error, measured)
        self._crashes = 0
        if done.micro_batch is not None:
            bad = [n for n, v in done.losses.items() if not math.isfinite(v) and n not in done.hollow]
            return Verdict("loss_nonfinite", f"{', '.join(bad) or 'the total loss'} is not finite", measured)
        self.buffers.changed()
        buffers = self.buffers.wrong()
        if not math.isfinite(record.grad_norm):
            wild = self.divergence.wild(record.step, record.loss)
            if wild is not None or self.scale.scaler is not None:
                return wild
            bad = [self.layout.names[self._where[i]] for i in nonfinite_at(self._tensor_norms)]
            measured |= {"parameters": bad, "buffers": buffers}
            some = f"{len(bad)} of {len(self._where)} gradients" if bad else "the gradient's norm"
            return Verdict("grad_nonfinite", f"{some} not finite, first {bad[:1]}, with finite losses", measured)
        if buffers:
            text = f"the forward pass made {buffers[0]} non-finite or enormous"
            return Verdict("buffer_nonfinite", text, measured | {"buffers": buffers})
        coefficient = steps.clip_coefficient(record.grad_norm, self.max_grad_norm)
        leap = self.health.leap(groups, coefficient)
        if leap is not None or math.isnan(record.loss):
            return leap
        found = self.divergence.judge(record.step, record.loss, record.grad_norm, record.group_grad_norm)
        bound = self.health.bound if coefficient < 1.0 else {}
        return found or self.haste.judge(record.step, record.loss, self.divergence.first_loss, bound)

    def crash(self, error: str, measured: dict[str, Any]) -> Verdict:
        """The verdict on a forward or backward pass that raised ``error``."""
        self._crashes += 1
        if self._crashes >= self.max_crashes:
            raise GuardStop(
                f"the forward or backward pass failed {self._crashes} times in a row: {error}",
                fix="this is more than one bad batch: run the step once outside the guard and read the traceback",
            )
        return Verdict("crash", error, measured | {"error": error})

    def _overflow(self, record: StepRecord, verdict: Verdict | None, began: float) -> StepRecord:
        """fp16 gradients beyond range: part of the search for a scale, until the scale says otherwise."""
        verdict = self.scale.overflowed(record.step) or verdict
        self.buffers.restore()
        if verdict is not None:
            verdict.measured |= {"losses": record.losses, "group_grad_norm": record.group_grad_norm}
        return self.refuse(record, verdict, began, ran=False)

    def refuse(self, record: StepRecord, verdict: Verdict | None, began: float, *, ran: bool = True) -> StepRecord:
        """Put everything back. ``ran``: the forward pass was begun. ``verdict`` None: no incident."""
        self.layout.zero_grad()
        if ran:
            self.buffers.restore()
            self.scale.refused(record.loss_scale)
        if verdict is not None:
            self.sound(record, verdict)
        self.seconds += time.perf_counter() - began
        return record

    def _apply(self, gradients: list[torch.Tensor], groups: list[float], record: StepRecord, began: float) -> None:
        coefficient = steps.clip_coefficient(record.grad_norm, self.max_grad_norm)
        due = self._taken % self.measure_every == 0 or self.stall.watching or self.haste.watching or self.health.brisk
        copies = [p.detach().clone() for p in self.layout.params] if due else []
        self.seconds += time.perf_counter() - began
        steps.apply(self.optimizer, gradients, coefficient)
        began = time.perf_counter()
        self.scale.applied(bool(gradients))
        record.applied = True
        self._taken += 1
        self.health.finished(due=due)
        self.divergence.accept(record.loss, record.grad_norm, record.group_grad_norm)
        if due:
            record.update_ratio = update_ratio(copies, self.layout, self.health.weight_norms())
            self.haste.measured(record.step, record.update_ratio)
            verdict = self.stall.judge(record.step, record.update_ratio, record.lr, record.group_grad_norm)
            if verdict is not None:
                self.sound(record, verdict)
        self.seconds += time.perf_counter() - began

    def sound(self, record: StepRecord, verdict: Verdict) -> None:
        """Raise the alarm for ``record``."""
        record.symptom = verdict.symptom
        onset = record.step if verdict.onset_step is None else verdict.onset_step
        self.alarm = Alarm(verdict.symptom, record.step, record.epoch, onset, verdict.message, verdict.measured)

    def _plain(self, forward: steps.Forward, batches: list[Any], record: StepRecord) -> StepRecord:
        parameters = list(self.model.parameters())
        record.losses, record.grad_norm = steps.plain(
            forward, batches, self.optimizer, self.scale.scaler, parameters, self.max_grad_norm
        )
        record.loss, record.applied = sum(record.losses.values()), True
        return record
