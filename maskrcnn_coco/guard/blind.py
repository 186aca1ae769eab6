"""What a loop keeps from a guard that it does not call, said once each: its loss, and any gradient."""

from __future__ import annotations

import math
import warnings

from maskrcnn_coco.errors import GuardWarning
from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.records import StepRecord

UNSEEN = 10
"""Steps in a row after which it is said."""
NO_LOSS = (
    f"no loss was seen in {UNSEEN} steps: it is made outside the model. What is not finite is refused all the same; "
    "a loss that climbs, behind clipping above all, is not noticed. To show it: loss = guard.see(loss)"
)
NO_GRADIENT = (
    f"no parameter of the optimizer had a gradient in the last {UNSEEN} steps, so that none of them trains: backward() "
    "is not called before step(), zero_grad() comes between the two, or the loss does not depend on these parameters"
)


class Blind:
    """Counts the steps of a training that show nothing. ``says``: warn of it."""

    def __init__(self, *, says: bool) -> None:
        self._losses = self._gradients = 0
        self._says = [NO_LOSS, NO_GRADIENT] if says else []

    def seen(self, record: StepRecord, layout: Layout) -> None:
        """Look at a step that is complete. Where every parameter is frozen, no gradient is meant."""
        if not self._says:
            return
        self._losses = self._losses + 1 if math.isnan(record.loss) and record.applied else 0
        self._gradients = self._gradients + 1 if record.grad_norm == 0 and record.applied else 0
        for count, text in ((self._gradients, NO_GRADIENT), (self._losses, NO_LOSS)):
            if count == UNSEEN and text in self._says and not (text == NO_GRADIENT and layout.frozen):
                self._says.remove(text)
                warnings.warn(text, GuardWarning, stacklevel=5)
