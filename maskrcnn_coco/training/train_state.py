"""What a step of training changes: weights, optimizer, loss scale, what the guard has learned, averaged weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.facts import StateFault
from maskrcnn_coco.diagnosis.scan_state import scan_state
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.model.ema import Ema
from maskrcnn_coco.replay.optimizer import optimizer_names, restore_optimizer
from maskrcnn_coco.replay.snapshot import Snapshot, restore, state_bytes, take
from maskrcnn_coco.replay.state import nonfinite_names, state_tensors
from maskrcnn_coco.system.memory import is_short


@dataclass(frozen=True)
class TrainState:
    """The live parts of a run that an older state overwrites, in place. Whose they are is `session.Session`."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None
    guard: Guard
    ema: Ema | None
    device: torch.device

    def snapshot(self, step: int, epoch: int, extra: dict[str, Any], *, inspected: bool = False) -> Snapshot:
        """The state before planned step ``step``, copied and verified; see `replay.snapshot.take`."""
        return take(
            self.model,
            self.optimizer,
            self.scaler,
            step=step,
            epoch=epoch,
            guard=self.guard,
            extra=extra,
            inspected=inspected,
            host=is_short(self.device, state_bytes(self.model, self.optimizer)),
        )

    def restore(self, snapshot: Snapshot) -> None:
        """Put ``snapshot`` back; the averaged weights too, as they were then."""
        restore(snapshot, self.model, self.optimizer, self.scaler, guard=self.guard)
        if self.ema is not None:
            self.ema.go_back(snapshot.step, self.model)

    def load(self, state: dict[str, Any], source: str, expected: str) -> None:
        """Put a checkpoint's ``state`` in place.

        Raises:
            CheckpointError: ``source`` is of another model or optimizer than ``expected``, which says this run's.
        """
        try:
            self.model.load_state_dict(state["model"])
            restore_optimizer(self.optimizer, state["optimizer"])
        except (RuntimeError, ValueError, KeyError) as e:
            raise CheckpointError(
                f"{source} is a checkpoint of another model or optimizer",
                got=str(e).splitlines()[0],
                expected=expected,
                fix="give the same --model, --optimizer and data as before, or start from its weights with --weights",
            ) from e
        if self.scaler is not None and state["scaler"] is not None:
            self.scaler.load_state_dict(state["scaler"])
        self.guard.load_state_dict(state["guard"])
        if self.ema is not None:
            # A run that only now begins to average starts from the weights it goes on with.
            self.ema.load_state_dict(state.get("ema") or {"updates": 0, "weights": state["model"]})

    def is_sound(self) -> bool:
        """Whether the guard finds nothing wrong with it, and no weight or buffer is NaN or infinite."""
        return self.guard.inspect() is None and not nonfinite_names(state_tensors(self.model))

    def poisoned(self, snapshot: Snapshot) -> list[StateFault]:
        """What no healthy run can hold, in ``snapshot`` of this state."""
        names = optimizer_names(self.model, self.optimizer)
        return [f for f in scan_state(snapshot, self.model, names, component_of) if f.certain]
