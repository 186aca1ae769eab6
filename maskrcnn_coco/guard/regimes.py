"""What is healthy is another thing from some step on: a loss of another weight, targets that grow, other data.

Such a row of loud steps is no divergence. What is usual is learned anew from it, said once, and nothing is refused.
"""

from __future__ import annotations

import warnings
from typing import Any, Protocol

import torch

from maskrcnn_coco.errors import GuardWarning
from maskrcnn_coco.guard.divergence import HURLED, Divergence
from maskrcnn_coco.guard.health import Health
from maskrcnn_coco.guard.inputs import Expected
from maskrcnn_coco.guard.loss_weight import Found, LossWeight
from maskrcnn_coco.guard.unlearnt import Unlearnt
from maskrcnn_coco.guard.updates import Haste, Stall
from maskrcnn_coco.guard.verdict import Looks, Verdict
from maskrcnn_coco.records import StepRecord

SAME_LENGTH = 3.0
"""Gradients so many times the healthy length take no longer step than usual steps are."""
TAIL = 1e6
"""A single loss up to so many times healthy may be a tail of the data's; beyond it something divides by next to 0."""


class Parts(Protocol):
    """What is asked of a guard's instruments."""

    optimizer: torch.optim.Optimizer
    divergence: Divergence
    loss_weight: LossWeight
    stall: Stall
    haste: Haste
    unlearnt: Unlearnt
    health: Health
    expected: Expected
    looks: Looks | None
    regimes: list[dict[str, Any]]
    said: set[str]
    warns: bool


class Regimes:
    """Asks whether a loud step is one of these, and takes it for that.

    Args:
        parts: of the guard whose step it is.
    """

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def weighed_anew(self, record: StepRecord, norm: float, found: Found) -> None:
        """A new weight of the loss: what is healthy is that much larger from here on. Said at once."""
        self.parts.divergence.weighed_anew(found[0], norm, record.group_grad_norm)
        self.parts.loss_weight.adopt(found)
        self.parts.stall, self.parts.haste, self.parts.unlearnt = Stall(), Haste(), Unlearnt()
        self.parts.regimes.append({"step": record.step, "factor": found[0]})
        if self.parts.warns:
            text = (
                f"step {record.step}: the loss is about {found[0]:.2g} times what it was, and so are gradients, though "
                "the weights moved too little for it: taken for a new weight of the loss, or of one term of it; "
                "nothing is refused for it. If nothing was changed on purpose, look at what makes the loss"
            )
            warnings.warn(text, GuardWarning, stacklevel=3)

    def runs_after(self, record: StepRecord, norm: float) -> None:
        """Targets that grow (the values of a policy that gets better): what is healthy follows them."""
        factor = abs(record.loss) / self.parts.divergence.reference
        self.parts.divergence.weighed_anew(factor, norm, record.group_grad_norm)
        self.parts.loss_weight = LossWeight()
        self.parts.regimes.append({"step": record.step, "factor": factor})
        self._say_once(
            "creeps",
            f"step {record.step}: the loss crept up to {factor:.2g} times what it was, though every step goes "
            "downhill: taken for targets or data that change; nothing is refused for it. Said once",
        )

    def are_others(self, found: Verdict, record: StepRecord, norm: float) -> bool:
        """Whether a row of loud steps is no doing of this model: older weights are as loud on what it is given now."""
        # A detector has no rewards and no rival. Adam's steps have one length whatever the gradient; SGD's are as long.
        short, row = "betas" in self.parts.optimizer.param_groups[0] or self._is_short(), "row" in found.measured
        loud = row or (short and abs(record.loss) <= TAIL * self.parts.divergence.reference)
        if not loud or self.parts.expected.num_classes is not None or self.parts.looks is None:
            return False
        usual, onset = short or norm <= SAME_LENGTH * self.parts.divergence.norm_reference, found.onset_step
        return usual and self.parts.looks.as_loud_before(record, record.step if onset is None else onset)

    def led_up(self, found: Verdict, record: StepRecord) -> bool:
        """Whether older weights are calm on this batch: steps have led here, whatever their gradients say."""
        onset = record.step if found.onset_step is None else found.onset_step
        return self.parts.looks is not None and self.parts.looks.calm_before(record, onset)

    def _is_short(self) -> bool:
        """Whether SGD's step along this gradient, however long that is, is one as healthy steps are."""
        return isinstance(self.parts.optimizer, torch.optim.SGD) and 0.0 < self.parts.health.moved <= HURLED

    def others_now(self, record: StepRecord, norm: float, row: bool) -> None:
        """Batches that are as loud on older weights (rewards, heavy tails): of a row what is healthy is learned too."""
        factor = abs(record.loss) / self.parts.divergence.reference
        if row:
            self.parts.divergence.weighed_anew(factor, norm, record.group_grad_norm)
            self.parts.loss_weight = LossWeight()
            self.parts.regimes.append({"step": record.step, "factor": factor})
        times = f"step {record.step}: losses are up to {factor:.2g} times what they were, and so on older weights"
        self._say_once("others", f"{times}: taken for other data, rewards or rivals; nothing is refused. Said once")

    def _say_once(self, kind: str, text: str) -> None:
        if self.parts.warns and kind not in self.parts.said:
            self.parts.said.add(kind)
            warnings.warn(text, GuardWarning, stacklevel=4)
