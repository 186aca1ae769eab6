"""Losses that stay where a run began, or above, after a step threw the weights away.

Units die, scores saturate, biases come back to what they were at the start: no loss is extreme, no further step is
large, and nothing is learned any more. A component's own losses may stay there while the sum of all falls.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median

from maskrcnn_coco.guard.divergence import HURLED
from maskrcnn_coco.guard.early_warning import OWN_LOSSES
from maskrcnn_coco.guard.verdict import Verdict

AFTERWARDS, LASTING = 8, 24
"""So many steps in a row after weights were thrown nearly all losses have to be near the start, or above; so long after
it a row may still end. What was learned in one large step is lost again where the weights cannot move any more."""
DIPS, LEARNT = 1, 0.9
"""Losses below this share of the start among as many as that are no sign of learning: a batch of one object may always
be easy. Weights that were thrown away come back to about the start by their biases alone, and stay there."""
ABOVE = 1.1
"""A component's own losses above this many times their start are none that a sound rate leads to. After a run's first
step their median has to be: with Adam that moves each weight by the rate, and wide layers by half their norm."""
WHOLE = 1.0
"""Moved by as much, nothing is left of what the weights were, be it in the first step."""
ALL = ""
"""All losses together; the others go by the component whose own they are."""


@dataclass
class Thrown:
    """A step that moved a component by more than `HURLED` of its norm, and the last losses since, of so many."""

    step: int
    component: str
    moved: float
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=AFTERWARDS))
    since: int = 0
    usual: bool = False
    """It was the run's first, or right behind such a one, and left something of the weights: no warm-up, perhaps."""


class Unlearnt:
    """Whether anything is learned after weights were thrown away."""

    def __init__(self) -> None:
        self.waits = True
        """For the first losses, or for those after weights were thrown; in nearly every step for none."""
        self._first: dict[str, float] = {}
        self._thrown: dict[str, Thrown] = {}
        self._opens = True

    def judge(self, losses: Mapping[str, float], total: float, first: float, *, bounded: bool) -> Verdict | None:
        """The verdict on a step.

        Args:
            losses: of a step, by name.
            total: their sum.
            first: the sum in the run's first step; infinite: this is the first.
            bounded: steps are of a size whatever the gradient. Where not, noise around an optimum throws small weights
                about too, and losses have to be above the start.
        """
        self._opens = not math.isfinite(first)
        now = {ALL: total} | own_losses(losses)
        if not self._first:
            self._first = dict(now)
        if math.isfinite(first):
            self._first[ALL] = first
        for name in list(self._thrown):
            found = self._stays(name, now.get(name, math.nan), bounded=bounded)
            if found is not None:
                self.reset()
                return found
        self.waits = bool(self._thrown)
        return None

    def measured(self, step: int, ratio: Mapping[str, float], bound: Mapping[str, float]) -> None:
        """‖update‖ / ‖weights‖ of a step by component, and the most that it could be."""
        for component, measured in ratio.items():
            # The bound knows that weights which start at zero must be able to leave it.
            moved = min(measured, bound.get(component, measured))
            if moved > HURLED:
                for name in (ALL, *([component] if component in self._first else [])):
                    known = self._thrown.get(name)
                    if known is None or known.step != step or known.moved < moved:
                        # A row of such steps from the first on is one matter: without a warm-up each is as long.
                        follows = known is not None and known.usual and known.since == 1
                        usual = (self._opens or follows) and moved < WHOLE
                        self._thrown[name], self.waits = Thrown(step, component, moved, usual=usual), True

    def reset(self) -> None:
        """Weights are others now."""
        self._thrown.clear()
        self.waits = not self._first

    def _stays(self, name: str, loss: float, *, bounded: bool) -> Verdict | None:
        thrown, first = self._thrown[name], self._first[name]
        if math.isnan(loss):
            return None
        thrown.losses.append(loss)
        thrown.since += 1
        if thrown.since > LASTING:
            del self._thrown[name]
        learns = sum(v <= LEARNT * first for v in thrown.losses) > DIPS or loss <= LEARNT * first
        if len(thrown.losses) < AFTERWARDS or learns:
            return None
        if (not bounded or thrown.usual) and median(thrown.losses) <= first * (ABOVE if thrown.usual else 1.0):
            return None
        whose = f"losses of {name}" if name else "loss"
        text = (
            f"step {thrown.step} moved {thrown.component} by {thrown.moved:.2g} times its weights, and since then the "
            f"{whose} stayed near {'their' if name else 'its'} start of {first:.3g}, or above: {loss:.4g}"
        )
        moved = {thrown.component: thrown.moved}
        measured = {"update_ratio": moved, "moved": moved, "component": thrown.component}
        if name:
            measured["own"] = {"component": name, "losses": list(OWN_LOSSES[name]), "most": ABOVE * first}
        return Verdict("diverged", text, measured, thrown.step)


def own_losses(losses: Mapping[str, float]) -> dict[str, float]:
    """Component → sum of the losses that are its own, where a detector names any."""
    known = {c: [losses[n] for n in names if n in losses] for c, names in OWN_LOSSES.items()}
    return {c: sum(values) for c, values in known.items() if values}
