"""A guarded training in miniature, for tests of replay and diagnosis: real detector, guard, snapshots and tape."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from nanbench.tiny import sample, tiny_model
from torch import nn

from maskrcnn_coco.components import components, times_of
from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.forward import Forward
from maskrcnn_coco.model.optim import build_optimizer
from maskrcnn_coco.records import Alarm, StepRecord
from maskrcnn_coco.replay.case import Case, Rig
from maskrcnn_coco.replay.optimizer import settings_of
from maskrcnn_coco.replay.ring import Ring
from maskrcnn_coco.replay.snapshot import take
from maskrcnn_coco.replay.tape import Tape, TapeEntry


@dataclass
class TinyRun:
    """The loop of `training.train_step`, without data files. ``spoil`` may change a batch (step, batch) in place."""

    lr: dict[str, float] = field(
        default_factory=lambda: dict.fromkeys(("backbone", "rpn", "box_head", "mask_head"), 0.01)
    )
    model: nn.Module = field(default_factory=tiny_model)
    kind: str = "sgd"
    momentum: float = 0.9
    weight_decay: float = 1e-4
    max_grad_norm: float = 10.0
    fpn_times: float = 1.0
    precision: str = "fp32"
    batch_size: int = 4
    accumulate: int = 1
    images: int = 24
    spoil: Callable[[int, Batch], None] | None = None
    before_step: Callable[[TinyRun, int], None] | None = None
    lr_at: Callable[[int], dict[str, float]] | None = None
    warmup: int = 0
    scale: float = 2.0**12
    settings: dict[str, Any] = field(default_factory=dict)
    snapshot_every: int = 4
    reference: Callable[[], nn.Module] | None = None

    def __post_init__(self) -> None:
        self.model.train()
        self.optimizer = self.make_optimizer(self.model)
        self.scaler = torch.amp.GradScaler("cpu", init_scale=self.scale) if self.precision == "fp16" else None
        self.guard = Guard(
            self.model, self.optimizer, scaler=self.scaler, max_grad_norm=self.max_grad_norm, measure_every=2
        )
        self.ring, self.tape = Ring(capacity=5), Tape(64)
        self.history: list[StepRecord] = []
        device = torch.device("cpu")
        self.forward = Forward(self.model, device=device, precision=self.precision, seed=0)

    def make_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        given: dict[str, Any] = {"momentum": self.momentum, "weight_decay": self.weight_decay}
        return build_optimizer(model, kind=self.kind, fpn_times=self.fpn_times, **given)

    def make_batch(self, keys: list[SampleKey]) -> Batch:
        pairs = [sample(k.image_id) for k in keys]
        batch = Batch([i for i, _ in pairs], [t for _, t in pairs], list(keys))
        if self.spoil:
            self.spoil(keys[0].epoch, batch)
        return batch

    def batches(self, step: int) -> list[Batch]:
        made = []
        for micro in range(self.accumulate):
            first = (step * self.accumulate + micro) * self.batch_size
            # The key's epoch is the step here, so that `spoil` knows when it is asked.
            keys = [SampleKey(step, i % self.images, i % self.images) for i in range(first, first + self.batch_size)]
            made.append(self.make_batch(keys))
        return made

    def rates(self, step: int) -> dict[str, float]:
        if self.lr_at:
            return self.lr_at(step)
        up = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return {c: v * up for c, v in self.lr.items()}

    def until_alarm(self, steps: int = 40) -> Case:
        """Train until the guard sounds an alarm; the case is then as `response.build_case` makes it."""
        for step in range(steps):
            alarm, batches = self.step(step)
            if alarm is not None:
                return self.case(alarm, batches)
        raise AssertionError(
            f"no alarm in {steps} steps: {[(round(r.loss, 2), round(r.grad_norm, 1)) for r in self.history]}"
        )

    def step(self, step: int) -> tuple[Alarm | None, list[Batch]]:
        if step % self.snapshot_every == 0:
            self.ring.add(take(self.model, self.optimizer, self.scaler, step=step, epoch=0, guard=self.guard))
        rates = self.rates(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rates[group["component"]] * times_of(group)
        if self.before_step:
            self.before_step(self, step)
        batches = self.batches(step)
        record = self.guard.step(self.forward.begin(step), batches, step=step, micro_batches=True)
        keys = [b.keys for b in batches]
        settings = settings_of(self.optimizer.param_groups)
        self.tape.add(TapeEntry(step, 0, keys, rates, record.loss_scale, record.applied, record, settings))
        self.history.append(record)
        return self.guard.alarm, batches

    def case(self, alarm: Alarm, batches: list[Batch]) -> Case:
        now = take(self.model, self.optimizer, self.scaler, step=alarm.step, epoch=0, guard=self.guard)
        config = {"lr": self.lr["backbone"], "head_lr_multiplier": 1.0, "max_grad_norm": self.max_grad_norm}
        config |= {"momentum": self.momentum, "weight_decay": self.weight_decay}
        settings = {"config": config, **self.settings}
        earlier = [s for s in self.ring.items if s.step <= alarm.step]
        return Case(alarm, now, earlier, list(self.tape), batches, self.history[-300:], settings, self.rig())

    def rig(self) -> Rig:
        return Rig(
            model=self.model,
            build_optimizer=self.make_optimizer,
            forward=Forward(nn.Identity(), device=torch.device("cpu"), precision=self.precision, seed=0).losses,
            components=components,
            make_batch=self.make_batch,
            precision=self.precision,
            max_grad_norm=self.max_grad_norm,
            reference=self.reference,
        )


def rates(**changed: float) -> dict[str, float]:
    """0.01 for every component but those named."""
    return {**dict.fromkeys(("backbone", "rpn", "box_head", "mask_head"), 0.01), **changed}


def with_target(batch: Batch, image_id: int, **changes: Any) -> None:
    """Replace entries of one image's target, where that image is in the batch."""
    for position, key in enumerate(batch.keys):
        if key.image_id == image_id:
            batch.targets[position] = {**copy.copy(batch.targets[position]), **changes}


def alarm_at(step: int, symptom: Any = "loss_nonfinite") -> Alarm:
    return dataclasses.replace(Alarm(symptom, step, 0, step, "test"))
