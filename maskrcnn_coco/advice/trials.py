"""Short trainings from one saved state, judged by the guard: what `advise` measures with.

A trial is the real thing in small: the run's own model, batches, optimizer (momentum, weight decay, AdamW's moments),
clipping and guard. So the limits found with it include all of these; what a trial leaves out is time (a few dozen
steps) and the rest of the data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskrcnn_coco.components import times_of
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.snapshot import Snapshot, restore, take

FORWARD = 1 / 3
"""What a forward pass takes of a step: the backward pass takes twice as much."""
ForwardAt = Callable[[nn.Module, Any, int, int], dict[str, Tensor]]
"""(model, batch, step, micro-batch) → losses; seeds torch from the last two, so that a step can be repeated."""


@dataclass(frozen=True)
class Task:
    """What is trained in a trial.

    ``batches[i]`` is one batch or a list of micro-batches; they are used in turn. ``make_optimizer`` must give every
    parameter group a "component". ``max_grad_norm`` 0 means no clipping.
    """

    make_model: Callable[[], nn.Module]
    make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    forward: ForwardAt
    batches: Sequence[Any]
    max_grad_norm: float = 10.0
    precision: str = "fp32"
    make_scaler: Callable[[], Any] | None = None


@dataclass
class Trial:
    """One short training. ``stable``: the guard raised no alarm; ``symptom`` is its alarm otherwise."""

    lr: dict[str, float]
    stable: bool
    steps: int
    seconds: float
    symptom: str | None = None
    records: list[StepRecord] = field(default_factory=list)

    @property
    def losses(self) -> list[float]:
        """Total loss of each step."""
        return [r.loss for r in self.records]

    @property
    def final_loss(self) -> float:
        """Median loss of the last quarter of the steps; inf when unstable."""
        if not self.stable or not self.records:
            return math.inf
        tail = sorted(self.losses[-max(1, len(self.records) // 4) :])
        return tail[len(tail) // 2]


def constant(step: int) -> float:
    """The factor of a learning rate that does not change."""
    return 1.0


class Trials:
    """One model on which trials are run, each from a saved state. Private: the run's own model is never touched."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.model = task.make_model().train()
        self.optimizer = task.make_optimizer(self.model)
        self.scaler = task.make_scaler() if task.make_scaler else None
        self.guard = Guard(
            self.model,
            self.optimizer,
            scaler=self.scaler,
            max_grad_norm=task.max_grad_norm,
            mode="observe",
            say=False,
        )
        self.steps_spent = 0
        self.work = 0.0
        """What budgets count: steps, and forward passes as their share of one. No machine, busy or idle, changes it."""

    @property
    def components(self) -> list[str]:
        """Components that have trainable parameters, in the order of the optimizer's groups."""
        return list(dict.fromkeys(g["component"] for g in self.optimizer.param_groups if g["params"]))

    def parameters_of(self, component: str) -> list[nn.Parameter]:
        """Trainable parameters of one component."""
        groups = (g for g in self.optimizer.param_groups if g["component"] == component)
        return [p for g in groups for p in g["params"] if p.requires_grad]

    def save(self, step: int) -> Snapshot:
        """A copy of everything that a trial changes, before planned step ``step``."""
        return take(self.model, self.optimizer, self.scaler, step=step, epoch=0, guard=self.guard, inspected=True)

    def load(self, state: Snapshot) -> None:
        """Go back to ``state``, bit for bit; random numbers are drawn anew in each step."""
        restore(state, self.model, self.optimizer, self.scaler, self.guard, rng=False)

    def set_lr(self, lr: Mapping[str, float], factor: float = 1.0) -> None:
        """Write learning rates by component into the optimizer."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr[group["component"]] * factor * times_of(group)

    def batch(self, step: int) -> Any:
        """The batch of planned step ``step``."""
        return self.task.batches[step % len(self.task.batches)]

    def run(
        self,
        lr: Mapping[str, float],
        steps: int,
        *,
        first_step: int = 0,
        ramp: Callable[[int], float] | Mapping[str, Callable[[int], float]] = constant,
        stop: Callable[[StepRecord], bool] | None = None,
    ) -> Trial:
        """Train ``steps`` steps from the current state; end at the guard's first alarm, or after the step for which
        ``stop`` is true.

        ``ramp`` gives the factor on ``lr`` at the trial's own step 0, 1, …, for all components or per component.
        """
        start = time.monotonic()
        trial = Trial(dict(lr), stable=True, steps=0, seconds=0.0)
        for i in range(steps):
            factor = {c: (ramp.get(c, constant) if isinstance(ramp, Mapping) else ramp)(i) for c in lr}
            self.set_lr({c: lr[c] * factor[c] for c in lr})
            record = self.step(first_step + i)
            trial.records.append(record)
            if self.guard.alarm is not None:
                trial.stable, trial.symptom = False, self.guard.alarm.symptom
                break
            if stop is not None and stop(record):
                break
        trial.steps, trial.seconds = len(trial.records), time.monotonic() - start
        self.steps_spent += trial.steps
        return trial

    def step(self, step: int) -> StepRecord:
        """One guarded step on the batch of ``step``, at the learning rates that are set."""
        batch = self.batch(step)
        micro, self.work = isinstance(batch, list), self.work + 1.0
        counter = iter(range(len(batch) if micro else 1))
        forward = self.task.forward
        return self.guard.step(
            lambda b: forward(self.model, b, step, next(counter)), batch, step=step, micro_batches=micro
        )

    def loss(self, step: int, names: Sequence[str] = ()) -> float:
        """Sum of the losses ``names`` (none: all) on the batch of ``step``, without a graph; buffers are put back."""
        buffers = [(b, b.clone()) for b in self.model.buffers()]
        batch, self.work = self.batch(step), self.work + FORWARD
        parts = batch if isinstance(batch, list) else [batch]
        total = 0.0
        with torch.no_grad():
            for i, part in enumerate(parts):
                losses = self.task.forward(self.model, part, step, i)
                total += sum(float(v) for n, v in losses.items() if not names or n in names)
            for buffer, value in buffers:
                buffer.copy_(value)
        return total / len(parts)


def flops_of_step(trials: Trials) -> float:
    """Operations of one step, those of matrix products and convolutions; at least 1. The step changes the state.

    A number of the model, the batch and the settings, that no clock and no other work on the machine goes into.
    """
    trials.set_lr(dict.fromkeys(trials.components, 0.0))
    with FlopCounterMode(display=False) as counter:
        trials.step(0)
    return max(1.0, float(counter.get_total_flops()))
