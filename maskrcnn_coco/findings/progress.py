"""What step records show of a run that takes steps and learns nothing. No torch."""

from __future__ import annotations

import math

from maskrcnn_coco.findings.facts import Rates, Still
from maskrcnn_coco.records import StepRecord

STEPS = 20
"""Applied steps with objects that are looked at."""
FALLEN, STAYED, SHARE = 2e-6, 10, 0.05
"""Of its highest, for so many steps in a row and such a share of all steps: the end of a cosine is far shorter."""
LEAPS = 1.5
"""A rate that rises by this within a step has not settled: updates before it say nothing of those to come."""
MOVES = 1e-7
"""A rate from which on weights must change where there is a gradient."""
DETECTION = ("loss_classifier", "loss_box_reg", "loss_mask", "loss_objectness", "loss_rpn_box_reg")


class Progress:
    """Add every step's record; ask for `still` once ``steps`` are seen, and for `rates` at any time."""

    def __init__(self) -> None:
        self.seen = 0
        self.steps = 0
        self._gradient: dict[str, float] = {}
        self._ratio: dict[str, float] = {}
        self._rate: dict[str, float] = {}
        self._began: dict[str, float] = {}
        self._loss: dict[str, float] = {}
        self._fallen: dict[str, int] = {}
        self._latest: dict[str, float] = {}
        self.max_grad_norm = 0.0
        """Gradients are clipped to this norm; 0: they are not."""
        self.decay = 0.0
        """Share of its weights that weight decay alone takes from a group in a step, at the most."""
        self._largest, self._least, self._calm = 0.0, math.inf, 0
        self._rising = False

    def add(self, record: StepRecord, *, objects: bool = True) -> None:
        """One record; refused steps and batches without objects say nothing about gradients."""
        self.seen += 1
        self._add_rates(record)
        if not record.applied or not objects:
            return
        self.steps += 1
        for name, value in record.group_grad_norm.items():
            self._gradient[name] = max(self._gradient.get(name, 0.0), value)
        for name, value in record.update_ratio.items():
            if record.lr.get(name, 0.0) > 0:  # the first step of a warm-up from 0 moves nothing, and should not
                self._ratio[name] = max(self._ratio.get(name, 0.0), value)
        if math.isfinite(record.grad_norm):
            self._largest, self._least = max(self._largest, record.grad_norm), min(self._least, record.grad_norm)
        for name, value in record.losses.items():
            self._loss[name] = max(self._loss.get(name, 0.0), abs(value))

    @property
    def highest_rates(self) -> dict[str, float]:
        """Component → the highest rate so far."""
        return dict(self._rate)

    @property
    def settled(self) -> bool:
        """Enough steps are seen, and the rates rise no more: an update of now is one of those to come."""
        return self.steps >= STEPS and not self._rising

    def _add_rates(self, record: StepRecord) -> None:
        self._rising = any(rate > self._latest.get(n, rate) for n, rate in record.lr.items())
        for name, rate in record.lr.items():
            self._rate[name] = max(self._rate.get(name, 0.0), rate)
            if rate > LEAPS * self._latest.get(name, math.inf):  # a warm-up begins as low as it likes
                self._ratio.clear()
                self._calm = self.steps
            if rate > 0:
                self._began.setdefault(name, rate)
            # What comes back to where it began was thrown up, not down.
            low = rate < self._began.get(name, 0.0) and rate <= FALLEN * self._rate[name]
            self._fallen[name] = self._fallen.get(name, 0) + 1 if low else 0
            self._latest[name] = rate

    def still(self) -> Still:
        """Components and losses at which nothing happened in any of the steps so far."""
        moving = [n for n, r in self._rate.items() if r >= MOVES]
        others = any(v > 0 for v in self._gradient.values())
        zero = [n for n, v in self._loss.items() if v == 0 and n in DETECTION]
        rates = list(self._rate.values())
        return Still(
            self.steps,
            # "other" is what the optimizer holds and the model does not: a look at its groups says that.
            no_gradient=[n for n, v in self._gradient.items() if v == 0 and others and n != "other"],
            no_change=[n for n in moving if self._ratio.get(n, 1.0) == 0 and self._gradient.get(n, 0.0) > 1e-8],
            # A rate of 0 for one group may freeze it on purpose; for all of them it cannot.
            zero_rate=["all components"] if rates and max(rates) == 0 else [],
            zero_losses=zero if others else [],
            moved=max(self._ratio.values()) if self._ratio and self.steps - self._calm >= STEPS // 4 else None,
            rate=max(rates, default=0.0),
            detection=any(n in DETECTION for n in self._loss),
            gradient=self._largest,
            decay=self.decay,
            clipped=self._least / self.max_grad_norm if self.max_grad_norm and self._least < math.inf else 0.0,
        )

    def rates(self) -> Rates:
        """Components whose rate fell a million-fold and stayed there."""
        need = max(STAYED, SHARE * self.seen)
        fell = {n: (self._rate[n], self._latest[n]) for n, count in self._fallen.items() if count >= need}
        since = max((self._fallen[n] for n in fell), default=0)
        return Rates(self.seen, fell, self.seen - since)
