"""How far a step may go where the optimizer's state is not what the last step left.

A state that somebody scaled, zeroed in part or loaded from elsewhere is finite, and so is the update that it makes:
what is left to judge by is how far updates of this optimizer went before, and what its rate and gradients lead to.
"""

from __future__ import annotations

from collections import deque
from statistics import median

import torch

FURTHEST = 0.3
"""A step may move a component's weights by this share of their norm whatever else is known."""
TIMES_EXPECTED, TIMES_USUAL = 10.0, 15.0
"""Or by so many times what its gradients and rate alone lead to, or what was measured before."""
KEPT = 5
"""Measured updates that the usual one is the median of."""


class UsualUpdates:
    """Remembers the measured update-to-weight ratios of one optimizer."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._known: deque[tuple[dict[str, float], dict[str, float]]] = deque(maxlen=KEPT)

    def add(self, ratio: dict[str, float], rates: dict[str, float]) -> None:
        """Component → ‖update‖ / ‖weights‖ of a step, and its learning rates."""
        self._known.append((ratio, rates))

    def most(self, rates: dict[str, float], sizes: dict[str, float], *, sure: bool) -> dict[str, float]:
        """Component → ‖update‖ / ‖weights‖ that no step has with a sound state, as far as can be told.

        Args:
            rates: of the coming step.
            sizes: component → how far a rate of 1 may move it, without momentum.
            sure: of this optimizer they are more than a guess: else they count only until a step was measured.
        """
        times = TIMES_EXPECTED if sure or not self._known else 0.0
        return {
            c: max(FURTHEST, times * rates.get(c, 0.0) * size, TIMES_USUAL * self._usual(c, rates.get(c, 0.0)))
            for c, size in sizes.items()
        }

    def _usual(self, component: str, rate: float) -> float:
        known = [
            ratio[component] * max(1.0, rate / then[component] if then.get(component) else 1.0)
            for ratio, then in self._known
            if component in ratio
        ]
        return median(known) if known else 0.0
