"""How far a replay may be from the run's healthy figures before it counts as diverged. No torch."""

from __future__ import annotations

import math

LOSS_FACTOR = 5.0
NORM_FACTOR = 10.0
"""A replay is abnormal above this many times the run's own healthy median; measured healthy spread is below 3 and 5."""
MOST_FACTOR = 30.0
"""The same where hardly a step is known, at most: the guard's own measure of a loss that has left what is usual."""
FEW = 3
"""Healthy steps from which on a run's spread is known; a loop of somebody's own is known to clip, if it does."""
NO_HISTORY_LOSS = 100.0
"""Where the run has no healthy step yet: every healthy detector measured starts below 20, the broken ones above 400."""
ROUGHLY = 10.0
"""Two failures of one step are alike up to this factor."""
ALIKE = 2.0
"""A loss that is no more than so many times the one of older weights is not these weights' doing."""

CALM, SLOWEST = 0.1, 1e-3
"""Share of their own norm that weights may move by in five steps once they are no longer thrown about; least factor."""

NO_STATE = "an empty optimizer state"
"""What an update is tried with where no older state of the optimizer is kept, or none is sound."""
SOON = 5
"""Steps within which a factor of all gradients comes again: those in between need not be loud enough."""


def loss_factor(usual: float, count: int, reached: float | None) -> float:
    """How many times the ``usual`` loss is too far; more where only one or two steps are known of it.

    What so few happen to have is nobody's spread (an action's reward, a critic's first loss): there half of the way, in
    orders of magnitude, to what the failing step reached is too far.
    """
    known = reached is not None and math.isfinite(reached) and usual > 0
    if reached is None or not known or not 0 < count < FEW:
        return LOSS_FACTOR
    return min(max(LOSS_FACTOR, math.sqrt(abs(reached) / usual)), MOST_FACTOR)


WALK = 20
"""Most steps of a walk over the tape."""
SOUND = {"weight_decay": 1e-4, "momentum": 0.9}
"""What detectors are trained with. A momentum of 1 or more forgets nothing, and grows."""
