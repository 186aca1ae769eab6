"""What walks with lower learning rates came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.replay.outcome import Outcome

LEAPT = 10.0
"""A rate that rises so far above those of the steps before is a schedule's peak, or a slip of somebody's."""
STEP_DOWN = 0.3
"""The lasting fix multiplies by this: above it, most divergences measured came back."""


@dataclass
class LrTrial:
    """A walk over the tape with the learning rate of some components multiplied by ``factor``."""

    lowered: tuple[str, ...]
    factor: float
    bounded: bool
    outcome: Outcome
    beyond: int = 0
    """So many steps past the failing one, on the recorded batches over again."""
    what: str = ""
    """What was kept from being higher, in place of a factor: "weight decay 0.0001"."""


@dataclass
class LrVerdict:
    """What the walks proved: the components to lower, and whether each is needed and enough."""

    components: list[str]
    from_step: int
    factor: float
    sufficient: bool
    necessary: bool
    doubtful: bool = False
    """Another component moved much more than the one the walks name."""
    trials: list[LrTrial] = field(default_factory=list)
    also: list[str] = field(default_factory=list)
    """Components that have to be lowered along for training to hold past the failing step."""
    holds: float | None = None
    """The largest factor tried at which it holds; None where that was not tried."""
    settings: dict[str, Any] = field(default_factory=dict)
    """The rates are right: it holds with these settings of the optimizer no higher than this; a mapping by components:
    with these in place of their own."""
    since: int | None = None
    """The first step with the setting that was wrong; None: from the start, or not known."""
    most: dict[str, float] = field(default_factory=dict)
    """Rates that leapt: it holds with these no higher than they were before."""
    swollen: tuple[str, float, str] | None = None
    """With every rate at 0 the losses rise all the same: the buffer that grew most, how many times, its component."""
    back_to: int | None = None
    """A newer state than that of ``from_step`` from which it holds as well, or an older one that is sounder."""

    @property
    def step_down(self) -> float:
        """What the named rates are multiplied by: the largest factor that held past the failing step."""
        return STEP_DOWN * self.factor / 0.1 if self.holds is None else self.holds
