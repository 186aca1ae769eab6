"""Where the run stands, and what stays in force when it goes back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.records import StepRecord

DECISIONS = (
    *("incidents", "quarantine", "quarantine_annotations", "lr_factors", "weight_decay", "momentum", "by_plan"),
    *("usual", "fp32_modules", "eager_modules", "libraries", "attention", "findings", "redrawn"),
)
"""What stays in force when an older state is loaded."""


@dataclass
class Progress:
    """Where the run stands: what a checkpoint's "loop" entry and a snapshot's ``extra`` hold. Plain data only."""

    step: int = 0
    first_loss: float | None = None
    last_loss: float | None = None
    loaded_loss: float | None = None
    """``last_loss`` when this process took the run up."""
    best: float | None = None
    best_epoch: int = -1
    skipped_steps: int = 0
    images_seen: int = 0
    train_seconds: float = 0.0
    epoch_began_seconds: float = 0.0
    """``train_seconds`` when the last epoch was closed."""
    closed_epochs: int = 0
    """Epochs whose record and evaluation are done: at an epoch's last step they may still be to do."""
    lr_factors: dict[str, float] = field(default_factory=dict)
    weight_decay: float | None = None
    """What recovery lowered the weight decay to."""
    momentum: float | None = None
    """The same for SGD's momentum."""
    usual: dict[str, Any] = field(default_factory=dict)
    """Setting of the optimizer → what recovery put in place of one that was proved wrong; "lr": by component."""
    by_plan: bool = False
    """Whether steps are taken at the plan's learning rates, whatever somebody sets between steps."""
    fp32_modules: list[str] = field(default_factory=list)
    eager_modules: list[str] = field(default_factory=list)
    libraries: bool = True
    """False: cuDNN and oneDNN are off, because one of them was wrong."""
    attention: bool = True
    """False: fused attention kernels are off, because one of them was wrong."""
    quarantine: list[dict[str, Any]] = field(default_factory=list)
    quarantine_annotations: list[dict[str, Any]] = field(default_factory=list)
    redrawn: list[list[int]] = field(default_factory=list)
    """Draws of samples that were bad, [epoch, index, repeat]: others take their places."""
    incidents: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    first_epoch_loss: float | None = None
    findings: list[dict[str, Any]] = field(default_factory=list)
    """`RunFinding` as plain data, in the order in which they were said."""
    objects_shown: int = 0
    objects_vanished: int = 0
    """Objects that were targets, and that augmentation took out of sight, since the last epoch was closed."""
    use_ema: bool = False
    """Whether the averaged weights were the better ones when last evaluated."""

    def loaded(self) -> None:
        """This is what a file held: no record of this process is from before it."""
        self.loaded_loss = self.last_loss

    def recall(self, records: Sequence[StepRecord], step: int) -> None:
        """First and last loss as they were before planned step ``step``: no loss of a step that was taken back.

        Args:
            records: the step records held, oldest first.
        """
        kept = [r.loss for r in records if r.applied and r.step < step]
        if kept:
            self.last_loss = kept[-1]
        elif step == 0:
            self.first_loss = self.last_loss = None
        else:
            self.last_loss = self.loaded_loss

    def count_batches(self, images: int, shown: int, vanished: int, *, seconds: float) -> None:
        """Count what one step was shown: images, objects, and objects that augmentation took out of sight."""
        self.train_seconds += seconds
        self.images_seen += images
        self.objects_shown += shown
        self.objects_vanished += vanished

    @property
    def settings_most(self) -> dict[str, float]:
        """Setting of the optimizer → the most that recovery left of it."""
        lowered = {"weight_decay": self.weight_decay, "momentum": self.momentum}
        return {name: most for name, most in lowered.items() if most is not None}

    def plain(self) -> dict[str, Any]:
        """A private copy as plain data, the same for a run that was resumed and one that never stopped."""
        return copy.deepcopy({name: value for name, value in vars(self).items() if name != "loaded_loss"})

    def keep_decisions(self, since: Progress) -> None:
        """Take over what was decided in ``since``, a later state of the same run."""
        for name in DECISIONS:
            setattr(self, name, copy.deepcopy(getattr(since, name)))
