"""What a tutorial's training is made of, and one run of it with the places where a fault may break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

Rows = list[tuple[Any, ...]]
Loss = Callable[[nn.Module, Any], Any]
TRAIN, HELD_OUT = 160, 48
"""Samples of a task, of which each is a tuple of tensors."""


@dataclass(frozen=True)
class Task:
    """One tutorial.

    Attributes:
        rows: a number → so many samples, from torch's own generator.
        loss: (model, batch) → a loss, or a dict of them; the batch is the tuple of the collated fields.
        optimizer: its class; ``options`` are its keywords.
        schedule: "none", "cosine", "warmup" (and cosine), "onecycle", "step".
        clip: of the gradients' norm; 0: not clipped.
        precision: "fp32", "bf16" or "fp16" (with a GradScaler).
        way: into the guard: "see" (the loss is made outside of the model, ``forward`` and batches are shown), "inside"
            (the model gives its loss), "step" (`Guard.step`).
        score: (model, batch) → what is measured of the held-out samples, lower is better; None: the loss.
        cuts: whether a batch can be cut into samples without a ``select``.
        prepare: (run, batch) → the batch that the loss takes, made of what the loader gives: played, looked up.
        rivals: two networks that step in turn (a GAN): their names in the model, each with a loss of its own.
        several: (model, options) → optimizers that step once each for one backward pass, in place of ``optimizer``.
        after_step: what a script does behind each step: a target network follows.
        shuffle: False: samples come in their order.
        closure: the optimizer is handed a closure that zeroes gradients, makes the loss and goes back (LBFGS, SAM).
    """

    name: str
    rows: Callable[[int], Rows]
    model: Callable[[], nn.Module]
    loss: Loss
    optimizer: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW
    options: dict[str, Any] = field(default_factory=lambda: {"lr": 3e-3})
    schedule: str = "none"
    clip: float = 0.0
    precision: str = "fp32"
    accumulate: int = 1
    ema: bool = False
    workers: int = 0
    batch: int = 16
    epochs: int = 6
    way: str = "see"
    score: Callable[[nn.Module, Any], Tensor] | None = None
    scored: bool = True
    cuts: bool = True
    collate: Callable[[list[Any]], Any] | None = None
    prepare: Callable[[Any, Any], Any] | None = None
    rivals: dict[str, Loss] = field(default_factory=dict)
    several: Callable[[nn.Module, dict[str, Any]], list[torch.optim.Optimizer]] | None = None
    after_step: Callable[[Any], None] | None = None
    shuffle: bool = True
    closure: bool = False

    @property
    def per_epoch(self) -> int:
        """Steps of an epoch."""
        return TRAIN // (self.batch * self.accumulate)

    @property
    def steps(self) -> int:
        """Planned steps."""
        return self.per_epoch * self.epochs


class Items(Dataset):
    """A run's samples, each with its number before it."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def __len__(self) -> int:
        return len(self.run.rows)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        row = self.run.rows[index]
        return (index, *(self.run.draw(index, row) if self.run.draw is not None else row))


class Run:
    """A run that nothing is wrong with; a fault changes it before it starts, or says what happens at a step."""

    def __init__(self, task: Task, seed: int, system: str = "diagnose") -> None:
        torch.manual_seed(1000 + seed)
        made = task.rows(TRAIN + HELD_OUT)
        self.rows, self.held_out = made[:TRAIN], made[TRAIN:]
        torch.manual_seed(seed)
        self.task, self.seed, self.system = task, seed, system
        self.shuffled_by = seed * 100
        """The order of the samples."""
        self.model = task.model()
        self.loss, self.options = task.loss, dict(task.options)
        self.batch, self.workers, self.drop_last, self.precision = task.batch, task.workers, True, task.precision
        self.clip, self.schedule, self.accumulate = task.clip, task.schedule, task.accumulate
        self.bad = (37 + 11 * seed) % TRAIN
        """The sample that a fault of one sample is in."""
        self.draw: Callable[[int, tuple[Any, ...]], tuple[Any, ...]] | None = None
        self.collate, self.prepare, self.rivals = task.collate, task.prepare, dict(task.rivals)
        self.after_step, self.odd_end = task.after_step, False
        """``odd_end``: the last micro-batches of an epoch make a step too, though they are fewer."""
        self.regimes: set[int] = set()
        """Steps from which on a loss means something else, and the script says so to its guard."""
        self.memory: dict[str, Any] = {}
        """What a script keeps beside its model: a target network, a running mean."""
        self.resumes: Callable[[dict[str, Any]], None] | None = None
        self.factors: dict[int, float] = {}
        """Step → what all rates are multiplied by from there on, whatever the schedule says."""
        self.wrong: set[str] = set()
        """What the loop gets wrong: "keeps gradients", "undivided", "clips scaled", "steps scaled"."""
        self.after_backward: Callable[[Run], None] | None = None
        self.events: dict[int, list[Callable[[Run], None]]] = {}
        self.step, self.optimizer = 0, None
        self.active = True
        """False while the held-out samples are scored."""
        self.first_bad: int | None = None
        self.order: list[int] = []
        """The samples as they were shown, for guards that number them through."""

    def at(self, step: int, change: Callable[[Run], None]) -> None:
        """Have ``change`` happen once, right before step ``step``."""
        self.events.setdefault(step, []).append(change)

    def begin(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """What each loop calls before a planned step."""
        self.step, self.optimizer = step, optimizer
        for change in self.events.pop(step, []):
            change(self)

    def shown(self, ids: list[int]) -> None:
        """The samples of the coming micro-batch."""
        self.order += ids
        if self.bad in ids and self.first_bad is None:
            self.first_bad = self.step

    def change_bad(self, field_at: int, change: Callable[[Tensor], Any]) -> None:
        """One field of the bad sample is another."""
        row = list(self.rows[self.bad])
        row[field_at] = change(row[field_at].clone())
        self.rows[self.bad] = tuple(row)

    def state_of(self, name: str) -> dict[str, Any]:
        """The optimizer's state of one weight."""
        assert self.optimizer is not None
        return self.optimizer.state[self.model.get_parameter(name)]


def total(loss: Any) -> Tensor:
    """A loss, or the sum of a dict of them."""
    return sum(loss.values()) if isinstance(loss, dict) else loss  # pyright: ignore[reportReturnType]
