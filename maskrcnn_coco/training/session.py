"""`Session`: what a run holds (data, model, optimizer, guard, log, saver) and where it stands."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.config.resolve import total_steps
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.loader import build_loader
from maskrcnn_coco.data.plan import Plan
from maskrcnn_coco.data.prepare import RunData
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.findings.facts import Way
from maskrcnn_coco.findings.watch import Watch
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.ema import Ema
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import Schedule, apply_lr
from maskrcnn_coco.records import Alarm, Incident, StepRecord
from maskrcnn_coco.recovery import Budgets
from maskrcnn_coco.replay.optimizer import setting_names, settings_of
from maskrcnn_coco.replay.ring import Ring
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.tape import Tape, TapeEntry
from maskrcnn_coco.report.console import Console
from maskrcnn_coco.system.backends import use_fused_attention, use_libraries
from maskrcnn_coco.training.augmentation_counts import objects_in
from maskrcnn_coco.training.progress import Progress
from maskrcnn_coco.training.run_log import RunLog, end_tracking
from maskrcnn_coco.training.train_state import TrainState

SNAPSHOT_EVERY = 10
"""Planned steps between two in-memory snapshots; a copy of 352 MB costs 0.1 s, under 1 % of ten steps that size."""
KEPT_RECORDS = 500
"""Step records held in memory, at least; the oldest snapshot in the ring is younger, and a diagnosis looks at 300."""


@dataclass
class Session:
    """The parts of a run. Built by `start.open_session`; the loop moves it."""

    config: Config
    data: RunData
    device: torch.device
    precision: str
    ranks: Ranks
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    schedule: Schedule
    guard: Guard
    forward: Forward
    train_source: CocoDataset | UserData
    val_source: CocoDataset | UserData | None
    plan: Plan
    console: Console
    log: RunLog
    saver: Saver
    small: bool = False
    way: Way = "command"
    """How the caller came in: by a command on COCO data, or from Python with a data set of their own."""
    norms_in_eval: list[str] = field(default_factory=list)
    """Norm layers that the caller handed over in eval mode: they stay so."""
    watch: Watch | None = None
    ring: Ring = field(default_factory=Ring)
    tape: Tape = field(default_factory=Tape)
    ema: Ema | None = None
    progress: Progress = field(default_factory=Progress)
    history: list[StepRecord] = field(default_factory=list)
    incidents: list[Incident] = field(default_factory=list)
    budgets: Budgets = field(default_factory=Budgets)
    evaluation: EvalResult | None = None
    started: float = field(default_factory=time.monotonic)
    first_step: int = 0
    resumed_from: str | None = None
    """The checkpoint that the state came from."""
    changed_in_file: list[str] = field(default_factory=list)
    """Its tensors that somebody changed since the run saved it."""
    own_settings: list[dict[str, Any]] = field(init=False)
    """What each group of the optimizer was made with, beside its rate."""
    max_steps: int | None = None
    doubt: Alarm | None = None
    """An alarm that came late, whose step is about to be taken again."""
    warned: dict[str, int] = field(default_factory=dict)
    rates_asked: list[int] = field(default_factory=list)
    """Steps at which it was tried whether lowered rates are needed still."""
    last_save: float = field(default_factory=time.monotonic)
    left_out: set[str] = field(default_factory=set)
    """What evaluations could not use, in sentences that were said."""
    unsettled: bool = False
    """A step has changed the state, and is not counted yet: the two do not belong together."""
    saved_step: int = -1
    """The step of the newest state handed to the saver."""
    lock: ExitStack = field(default_factory=ExitStack)

    def __post_init__(self) -> None:
        self.own_settings = settings_of(self.optimizer.param_groups)
        self._names = tuple(setting_names(self.optimizer))

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.saver.wait()
        self.log.close()
        end_tracking(self.log)  # where an error ended the run; else it was told already
        if not self.progress.libraries:
            use_libraries(True)  # the setting is the process's, not the run's
        if not self.progress.attention:
            use_fused_attention(True)
        self.lock.close()
        # It holds this session in its turn. Such a circle would keep weights, snapshots and the saver's copies in
        # memory until Python happens to look for circles, which after a few runs in one process is gigabytes later.
        self.watch = None

    @property
    def epochs(self) -> int:
        """Planned epochs."""
        return -(-self.total_steps // self.plan.steps_per_epoch)

    @property
    def total_steps(self) -> int:
        """Planned optimizer steps of the whole run."""
        return total_steps(self.plan.steps_per_epoch, self.config)

    @property
    def epochs_done(self) -> int:
        """Epochs whose steps are all taken; at the planned end also the one that --max-steps cut short."""
        step, per = self.progress.step, self.plan.steps_per_epoch
        return -(-step // per) if step >= self.total_steps else step // per

    @property
    def out_of_steps(self) -> bool:
        """Whether a run that was to be short has had its steps."""
        return self.max_steps is not None and self.progress.step - self.first_step >= self.max_steps

    def epoch_of(self, step: int) -> int:
        """Epoch, from 0, of planned step ``step``."""
        return step // self.plan.steps_per_epoch

    def set_lr(self, step: int) -> dict[str, float]:
        """Write the learning rates of ``step`` into the optimizer and return them."""
        lr = self.schedule.at(step, self.progress.lr_factors)
        apply_lr(self.optimizer, lr)
        self.guard.instruments.plan.rates = lr
        progress = self.progress
        if progress.by_plan or progress.settings_most or progress.usual:
            # Within the step, too: what somebody sets before every step was met again otherwise.
            self.guard.instruments.hold(lr if progress.by_plan else {}, progress.settings_most, progress.usual)
        return lr

    def batches(self, epoch: int) -> Iterator[list[Batch]]:
        """The micro-batches of each coming step of ``epoch``, from where the run stands."""
        return build_loader(
            self.train_source,
            self.plan,
            epoch,
            self.progress.step,
            workers=self.config.workers or 0,
            pin=self.device.type == "cuda",
            warn=self.console.warn,
        )

    @property
    def train_state(self) -> TrainState:
        """The parts that a step changes, and an older state overwrites."""
        return TrainState(self.model, self.optimizer, self.scaler, self.guard, self.ema, self.device)

    def snapshot_due(self, step: int) -> bool:
        """Whether the state before ``step`` is copied into the ring; who only observes needs it to find a cause."""
        return self.config.guard != "off" and (step % SNAPSHOT_EVERY == 0 or not self.ring.items)

    def snapshot(self, step: int, *, inspected: bool = False) -> Snapshot:
        """The state before planned step ``step``, copied and verified."""
        return self.train_state.snapshot(step, self.epoch_of(step), self.progress.plain(), inspected=inspected)

    def keep_snapshot(self, step: int) -> None:
        """Copy the state before ``step`` into the ring. A guard that reads late has looked at it already."""
        self.ring.add(self.snapshot(step, inspected=self.guard.late))
        if self.ema is not None:
            self.ema.remember(step, [s.step for s in self.ring.items])

    def take_step(self, batches: list[Batch]) -> StepRecord:
        """Take the planned step that the run stands at, on its micro-batches, or refuse it; kept on the tape."""
        step, began = self.progress.step, time.monotonic()
        if self.watch is not None:
            self.watch.batch(self.model, [(b.images, b.targets) for b in batches])
        lr, ids = self.set_lr(step), [i for batch in batches for i in batch.image_ids]
        forward, epoch = self.forward.begin(step), self.epoch_of(step)
        try:
            record = self.guard.step(forward, batches, ids, step=step, epoch=epoch, micro_batches=True)
        finally:
            self.unsettled = self.guard.applying
        self.unsettled = True
        if not self.guard.late:
            record.lr = self.guard.instruments.rates()  # as the step had them: a hook may have set others than the plan
        keys, settings = [batch.keys for batch in batches], settings_of(self.optimizer.param_groups, self._names)
        self.tape.add(
            TapeEntry(
                step, record.epoch, keys, {**lr, **record.lr}, record.loss_scale, record.applied, record, settings
            )
        )
        self.progress.count_batches(len(ids), *objects_in(batches), seconds=time.monotonic() - began)
        return record

    def rewind(self, step: int) -> None:
        """Forget what was recorded from planned step ``step`` on: the run goes on from there."""
        self.progress.step, self.saved_step = step, -1
        self.progress.closed_epochs = min(self.progress.closed_epochs, self.epoch_of(step))
        self.progress.skipped_steps -= sum(r.step >= step and not r.applied for r in self.history)
        self.progress.recall(self.history, step)
        self.tape.drop_from(step)
        self.ring.drop_after(step)
        self.history = [r for r in self.history if r.step < step]
        self.log.open(step, self.progress.closed_epochs)

    def keep_records(self, records: Sequence[StepRecord]) -> None:
        """Write steps down, everywhere."""
        progress = self.progress
        for record in records:
            if not self.history and not self.incidents:
                self.console.first_batch(record)
            if record.applied:
                progress.first_loss = record.loss if progress.first_loss is None else progress.first_loss
                progress.last_loss = record.loss
            else:
                progress.skipped_steps += 1
            self.tape.complete(record)
            self.history.append(record)
            self.log.record(record)
            if self.watch is not None and self.ranks.is_main:
                self.watch.record(record)

    def keep_history(self) -> None:
        """Forget records that no roll-back, epoch mean or diagnosis can ask for any more."""
        del self.history[: -max(2 * self.plan.steps_per_epoch, KEPT_RECORDS)]

    def leave_out(
        self, image_ids: Sequence[int], annotation_ids: Sequence[int], why: str, *, met_in: Sequence[int] = ()
    ) -> None:
        """Quarantine images and annotations from now on, and write ``quarantine.json``.

        ``met_in``: the images of the annotations; ids of a data set of somebody's own may start again in each.
        """
        self.progress.quarantine += [{"id": i, "incident": why} for i in image_ids]
        self.progress.quarantine_annotations += [
            {"id": a, "incident": why, "image_ids": list(met_in)} for a in annotation_ids
        ]
        self.plan.quarantine(image_ids)
        self.train_source.quarantine(annotation_ids, list(met_in))
        self.log.quarantine_due = True
        self.log.write_due(self.progress)

    def draw_anew(self, draws: Sequence[Sequence[int]]) -> None:
        """Other random numbers for these draws of samples, ``(epoch, index, repeat)``, from now on."""
        self.progress.redrawn += [list(draw) for draw in draws]
        self.plan.redraw(draws)

    def keep_incident(self, incident: Incident) -> None:
        """Write one incident down, everywhere, and remember it."""
        self.incidents.append(incident)
        self.log.incident(incident, self.progress, self.train_source)

    def time_left(self) -> float:
        """Seconds to the planned end, at the pace so far."""
        done = self.progress.step
        return (time.monotonic() - self.started) / max(1, done - self.first_step) * (self.total_steps - done)
