"""A loop that goes up its own loss, while all of it is still finite and of usual size.

Where somebody turns the sign of the gradients, or of the loss, losses rise slowly or change their sign at once; neither
is extreme, and behind clipping it stays so for good. A run may do both honestly, so a step is taken again before
anything is said: what every gradient is a number below 0 times of is no matter of opinion.
"""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, pstdev

from maskrcnn_coco.guard.verdict import Looks, Verdict
from maskrcnn_coco.records import StepRecord

LEVEL = 8
"""Steps that make a level of the loss."""
KNOWN = 2 * LEVEL
"""Steps after which a level may be called the lowest."""
OVER, NOISE = 0.25, 3.0
"""A level this share of the lowest one above it, and so many deviations of a single loss, is worth a look."""
ROW, SHARE = 3, 0.25
"""So many losses in a row of the other sign, in the mean of at least this share of the usual size."""


class Uphill:
    """Remembers the lowest level of the loss, and its sign."""

    def __init__(self) -> None:
        self._last: deque[float] = deque(maxlen=LEVEL)
        self._taken = 0
        self._lowest, self._spread = math.inf, 0.0
        self._sign: float | None = 0.0
        """Of all losses so far; 0: none yet; None: there were both, and it means nothing."""
        self._others: list[float] = []
        """Losses of the other sign, in a row."""

    def reset(self) -> None:
        """After a rollback or a load: levels are of other steps."""
        self._last.clear()
        self._others.clear()

    def judge(self, looks: Looks | None, record: StepRecord) -> Verdict | None:
        """The verdict on a step whose loss is calm. Remembers the step."""
        loss = record.loss
        if looks is None or not math.isfinite(loss):
            return None
        if self._turned(loss):
            since, usual = record.step - len(self._others) + 1, fmean(self._last)
            self._sign, self._others = None, []
            if looks.turned_around(record):
                text = f"loss {loss:.4g}, and {usual:.4g} in the mean before step {since}: it was turned around"
                return Verdict("diverged", text, {"loss": loss, "loss_reference": usual}, since)
        if self._others:
            return None
        self._last.append(loss)
        self._taken += 1
        level = fmean(self._last) if len(self._last) == LEVEL else math.inf
        if level < self._lowest:
            self._lowest, self._spread = level, pstdev(self._last)
        elif self._taken > KNOWN and level - self._lowest > max(OVER * abs(self._lowest), NOISE * self._spread):
            lowest, self._lowest = self._lowest, level  # asked once at each height
            if level < math.inf and looks.climbs(record):
                text = f"the last {LEVEL} losses are {level:.4g} in the mean, once {lowest:.4g}: steps go up the loss"
                measured = {"loss": loss, "loss_reference": lowest, "uphill": True}
                return Verdict("diverged", text, measured, record.step - LEVEL + 1)
        return None

    def _turned(self, loss: float) -> bool:
        """Whether losses have another sign than all before them, at once and for good."""
        sign = math.copysign(1.0, loss) if loss else 0.0
        if self._sign is None or not sign:
            return False
        if not self._sign or sign == self._sign:
            self._sign, self._others = None if self._others else sign, []
            return False
        self._others.append(abs(loss))
        if self._taken <= KNOWN or len(self._others) > LEVEL or not self._last:
            self._sign, self._others = None, []
            return False
        return len(self._others) >= ROW and fmean(self._others) >= SHARE * abs(fmean(self._last))
