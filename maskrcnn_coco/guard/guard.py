"""The guard: measures every step and refuses the bad ones; it never decides what to do about them.

A step has three acts. Begin: look at inputs and state, copy what a forward pass may change. Judge: after the backward
pass, unscale and measure. Apply: clip and step, or put everything back. A refusal is a branch, never a product:
`0 * NaN` is NaN.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import FindingWarning
from maskrcnn_coco.findings.watch import watch_of
from maskrcnn_coco.guard import arguments, forward_backward, inputs, optimizer_step
from maskrcnn_coco.guard.buffers import Buffers
from maskrcnn_coco.guard.deferred import Deferred
from maskrcnn_coco.guard.divergence import Divergence
from maskrcnn_coco.guard.health import Health
from maskrcnn_coco.guard.immediate import Act, Immediate, Mode
from maskrcnn_coco.guard.judgement import Instruments
from maskrcnn_coco.guard.loss_scale import Scale
from maskrcnn_coco.guard.norms import Components, Layout
from maskrcnn_coco.guard.resumed import Comparison, mark_of
from maskrcnn_coco.guard.sharding import refuse_shards
from maskrcnn_coco.guard.team import Team
from maskrcnn_coco.guard.updates import Haste, Stall
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import Alarm, StepRecord


class Guard:
    """Takes the place of zero_grad, backward, unscale, clip and step in any PyTorch training loop.

    `step` is all three acts. A loop that makes its own backward pass calls them one by one::

        guard.begin(batch)
        loss = model(batch)
        loss.backward()
        guard.judge(loss)
        guard.apply()

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
        on_alarm: called with each `Alarm`, in place of the warning.
        say: warn (`GuardWarning`, once per symptom) about what is refused, and (`FindingWarning`, once each) about what
            keeps a finite training from learning; a loop that says it itself turns it off.
        ranks: the processes of a run of several; the guard then averages their gradients. By default those that
            torch.distributed knows, whose gradients are averaged where the model is a DistributedDataParallel. All
            processes refuse together, and the one that is bad is named.

    Raises:
        ConfigError: no model, no optimizer or no such mode; an optimizer that needs a closure, or holds no parameters,
            or only shards of them.
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
        on_alarm: Callable[[Alarm], Any] | None = None,
        say: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        arguments.refuse_other(model, optimizer, mode)
        self._refuse_what_it_cannot(model, optimizer)
        self.instruments = Instruments(
            model,
            optimizer,
            scaler=scaler,
            max_grad_norm=max_grad_norm,
            components=components,
            measure_every=measure_every,
            check_every=check_every,
            max_crashes=max_crashes,
            say=say,
        )
        self.instruments.on_alarm = on_alarm
        self.at_once_until = -1
        """A deferred guard reads at once before this step."""
        self._next = 0
        self._deferred = Deferred(self.instruments) if deferred and mode in ("recover", "stop") else None
        self._act: Act | None = None
        self._resume: Comparison | None = None
        self._watch = watch_of(model) if say and mode != "off" else None
        self.immediate = Immediate(self.instruments, mode)
        self.immediate.team = Team(ranks, averages=True) if ranks is not None and ranks.world > 1 else None

    def _refuse_what_it_cannot(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer_step.refuse_closures(optimizer)
        refuse_shards(model, optimizer)

    # --- what others look at

    @property
    def mode(self) -> Mode:
        """What is done with a bad step; may be changed between steps."""
        return self.immediate.mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self.immediate.mode = mode

    @property
    def model(self) -> nn.Module:
        """The guarded model."""
        return self.instruments.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The guarded optimizer."""
        return self.instruments.optimizer

    @property
    def layout(self) -> Layout:
        """The optimizer's parameters by component."""
        return self.instruments.layout

    @property
    def health(self) -> Health:
        """The judge of state between steps."""
        return self.instruments.health

    @property
    def buffers(self) -> Buffers:
        """The protected buffers."""
        return self.instruments.buffers

    @property
    def scale(self) -> Scale:
        """The loss scale of fp16."""
        return self.instruments.scale

    @property
    def divergence(self) -> Divergence:
        """What the run's losses and norms have taught."""
        return self.instruments.divergence

    @property
    def stall(self) -> Stall:
        """The judge of weights that stand still."""
        return self.instruments.stall

    @property
    def haste(self) -> Haste:
        """The judge of weights that are thrown about."""
        return self.instruments.haste

    @property
    def alarm(self) -> Alarm | None:
        """The verdict on the last step; None for an applied step and for a benign skip."""
        return self.instruments.alarm

    @property
    def regimes(self) -> list[dict[str, Any]]:
        """Steps at which the loss was weighed anew without a word, and was taken for that; with its factor."""
        return self.instruments.regimes

    @property
    def completed(self) -> list[StepRecord]:
        """The records that the last call completed; without ``deferred`` that of its own step."""
        return self.instruments.completed

    @property
    def seconds(self) -> float:
        """Wall time spent in the guard itself."""
        return self.instruments.seconds

    @property
    def nbytes(self) -> int:
        """Bytes that the guard holds between steps (copies of norm buffers; of all state for some optimizers)."""
        return self.instruments.buffers.nbytes + self.immediate.undo.nbytes

    @property
    def late(self) -> bool:
        """Whether records and alarms come later than their steps; before ``at_once_until`` they do not."""
        return self._deferred is not None and self._next >= self.at_once_until

    @property
    def applying(self) -> bool:
        """Whether an error broke off the last step while the optimizer was at work: the state is half of two."""
        return self.immediate.applying or (self._deferred is not None and self._deferred.applying)

    @property
    def doubted(self) -> int | None:
        """A step that a late guard refused without a verdict: only taken again at once it can be judged."""
        return None if self._deferred is None else self._deferred.doubted

    @property
    def next_step(self) -> int:
        """The number that the next step gets where the caller gives none."""
        return self._next

    def step(
        self,
        forward: forward_backward.Forward,
        batch: Any,
        ids: Sequence[int] | None = None,
        *,
        step: int | None = None,
        epoch: int = 0,
        micro_batches: bool = False,
    ) -> StepRecord:
        """Take one planned step, or refuse it and leave everything bit for bit as it was.

        Args:
            forward: ``forward(batch)`` → the loss: a scalar tensor, a dict of them whose sum it is, an output with
                ``.loss``, or a tuple that begins with it.
            batch: what ``forward`` takes; with ``micro_batches`` a list of them, whose gradients are averaged.
            ids: image (sample) ids, for the record; by default those the batch carries.
            step: number of the planned step; by default counted from 0.

        Returns:
            The record of the step. `alarm` holds the verdict, or None for an applied step and for a benign skip.

        Raises:
            GuardStop: the same crash came ``max_crashes`` times in a row: the code is wrong, not a batch.
        """
        batches = list(batch) if micro_batches else [batch]
        late = self._deferred if self.late else None
        if late is not None and (self.health.state_marked() or late.better_at_once()):
            return self._judge_state(forward, batches, ids, step, epoch)
        record = self._record(batches, ids, step, epoch)
        if self._deferred is not None and record.step >= self.at_once_until:
            return self._deferred.step(forward, batches, record)
        if self.mode == "off":
            return self.immediate.plain(forward, batches, record)
        act = self.immediate.begin(batches, record)
        if not act.over:
            self.immediate.run_and_judge(forward, batches, act)
        record = self.immediate.apply(act, None)
        if act.done is not None and not record.applied:
            self.instruments.layout.zero_grad()
        return record

    def _judge_state(
        self,
        forward: forward_backward.Forward,
        batches: list[Any],
        ids: Sequence[int] | None,
        step: int | None,
        epoch: int,
    ) -> StepRecord:
        """A late guard's step with an optimizer state that somebody changed: read at once, as it may have to be undone.

        What was under way is completed first; of several alarms the first counts, as ever.
        """
        self.flush()
        before, alarm = self.completed, self.alarm
        self.at_once_until = (self._next if step is None else step) + 1
        record = self.step(forward, batches, ids, step=step, epoch=epoch, micro_batches=True)
        self.instruments.completed = [*before, *self.completed]
        self.instruments.alarm = alarm or self.alarm
        return record

    def begin(self, batch: Any = None, *, ids: Sequence[int] | None = None, epoch: int = 0) -> bool:
        """Act one, before the forward pass: look at batch and state, and copy what the pass may change.

        Gradients are the caller's: they are neither dropped nor zeroed, so several batches may add up.

        Returns:
            False where this step will be refused whatever comes: the model need not run, and `apply` will say why.
        """
        batches = [] if batch is None else [batch]
        act = self._act = self.immediate.begin(batches, self._record(batches, ids, None, epoch))
        return not act.over

    def judge(self, loss: Any = None) -> bool:
        """Act two, after the caller's backward pass: measure the gradients as they stand.

        Args:
            loss: what was trained on, in any form that `step`'s ``forward`` may return; None: unknown, so that only
                gradients, buffers and state are judged.

        Returns:
            Whether `apply` will take the step.
        """
        if self._act is None:
            self._act = self.immediate.begin([], self._record([], None, None, 0))
        act = self._act
        if not act.over:
            self.immediate.judge(act, forward_backward.seen(loss))
        return not act.over

    def apply(self, step: Callable[[], Any] | None = None) -> StepRecord:
        """Act three: take the optimizer's step, or put everything back.

        Args:
            step: the caller's own way to step; by default clip and ``optimizer.step()``.
        """
        act, self._act = self._act, None
        if act is None or (act.done is None and not act.over):
            raise RuntimeError("apply() comes after judge()")
        return self.immediate.apply(act, step)

    # --- between steps

    def reset(self, step: int | None = None) -> None:
        """After a rollback, a load or a repair: forget the run-up, look at the whole state before the next step."""
        self._next = self._next if step is None else step
        self._act = None
        self.instruments.reset()
        if self._deferred is not None:
            self._deferred.reset()

    def new_regime(self) -> None:
        """The loss means something else from here on (re-weighted, another task): learn anew what is healthy."""
        self.instruments.new_regime()

    def accept_buffers(self, names: Sequence[str] | None = None) -> None:
        """Take the model's buffers as they are now (all, or those named) for what they are meant to be."""
        self.instruments.buffers.accept(names)

    def flush(self) -> None:
        """With ``deferred``: wait for the steps under way, so that every record is complete."""
        if self._deferred is not None:
            self._deferred.flush()

    def inspect(self) -> Verdict | None:
        """Look at the whole state now, between steps: call it before anything is saved. None: it is sound."""
        return self.instruments.inspect()

    def state_dict(self) -> dict[str, Any]:
        """Plain data: what the alarms have learned, and a mark of the training that they belong to."""
        state = self.learned()
        return state if self._watch is None else state | {"mark": mark_of(self.instruments, self._watch.highest_rates)}

    def learned(self) -> dict[str, Any]:
        """Of `state_dict` what an older state in memory goes back to: nothing that has to be read from a device."""
        parts = self.instruments
        return {"divergence": parts.divergence.state_dict(), "scale": parts.scale.state_dict(), "taken": parts.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.instruments.divergence.load_state_dict(state["divergence"])
        self.instruments.scale.load_state_dict(state["scale"])
        self.instruments.taken = int(state["taken"])
        if "mark" in state:
            self._resume = Comparison(state["mark"], self.instruments.taken)

    # --- the acts

    def _record(self, batches: Sequence[Any], ids: Sequence[int] | None, step: int | None, epoch: int) -> StepRecord:
        parts = self.instruments
        if self.immediate.team is None:
            self.immediate.team = Team.found(parts.model)
        if parts.layout.outdated(parts.optimizer):
            parts.lay_out()
        step = self._next if step is None else step
        self._next, parts.alarm = step + 1, None
        self._look(batches)
        found = arguments.whole_numbers(ids) if ids is not None else inputs.image_ids(batches)
        late = self._deferred is not None and step >= self.at_once_until
        scale = None if late else parts.scale.value
        record = StepRecord(step, epoch, {}, math.nan, math.nan, {}, parts.rates(), scale, found, applied=False)
        parts.completed = [] if late else [record]
        return record

    def _look(self, batches: Sequence[Any]) -> None:
        """What makes training useless while all is finite: looked at in first samples and steps, said once."""
        if self._watch is None:
            return
        try:
            self._watch.clips_at(self.instruments.max_grad_norm)
            for record in self.completed:
                self._watch.record(record)
            self._watch.optimizer(self.model, self.optimizer)
            if self._resume is not None:
                self._watch.resumed(self._resume.look(self.instruments))
                self._resume = None if self._resume.over else self._resume
            self._watch.batch(self.model, [p for p in map(inputs.detection_pair, batches) if p is not None])
        except FindingWarning:  # the caller made warnings errors
            raise
        except Exception:  # a look at data of any form must never cost a step
            self._watch = None
