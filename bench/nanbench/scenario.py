"""One entry of the bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from nanbench.scene import Scene, Setup


class NotApplicable(Exception):
    """A system cannot run this scenario: never a loss."""


@dataclass(frozen=True)
class Culprit:
    """Who did it, as far as it can be known. ``image`` True: the scene's bad image, ``annotations`` its objects' rows.

    ``components``: any one of these is right; empty: there is none, or it cannot be told.
    """

    components: tuple[str, ...] = ()
    module: str | None = None
    image: bool = False
    annotations: tuple[int, ...] = ()
    rank: int | None = None
    checkpoint: bool = False


PLAIN, NOBODY = Setup(), Culprit()


@dataclass(frozen=True)
class Scenario:
    """A clean run's way to ruin.

    Attributes:
        fault: changes a clean scene into the broken one; draws nothing at random but from the scene's seed.
        cause: the code that is right; ``also`` lists others that are right too, with the reason in the comment there.
        together: several things are wrong in one run: each of these codes has to be named.
        onset: first planned step at which anything is wrong; None where it depends on the order of the images.
        decoy: nothing is wrong: any action is a false one.
        verdict: no healthy state exists to go on from (a wrong model, a wrong data set): the right end is a stop with
            the right verdict, and survival is not asked.
        open_end: the loop is somebody else's and stays wrong, whatever it is told: only the verdict is asked for.
        needs: what a system must offer to run it: "resume", "undivided", "ranks".
    """

    id: str
    cause: str
    source: str
    fault: Callable[[Scene], None]
    setup: Setup = PLAIN
    culprit: Culprit = NOBODY
    also: tuple[str, ...] = ()
    together: tuple[str, ...] = ()
    onset: int | None = None
    decoy: bool = False
    verdict: bool = False
    open_end: bool = False
    needs: tuple[str, ...] = ()

    @property
    def family(self) -> str:
        """data, lr or other: what the culprit targets are counted by."""
        return "data" if self.cause.startswith("DATA_") else "lr" if self.cause == "LR_TOO_HIGH" else "other"


@dataclass
class Outcome:
    """What a system hands back; `scoring` makes the JSON line of it."""

    finished: bool
    """Ended by itself with every planned step taken."""
    finite: bool = True
    """Weights, buffers and optimizer state are finite at the end."""
    evaluation: float = float("inf")
    steps: int = 0
    incidents: list[dict[str, Any]] = field(default_factory=list)
    """One a detected fault: step, cause (None where the system names none), culprit, action, lost_steps, seconds."""
    stopped: str | None = None
    """The system's own last word, where it stopped by itself."""
    seconds: float = 0.0
    step_seconds: float = 0.0
    """Median time of a healthy step."""
    first_bad: int | None = None
    """The first step at which the bad image was in a batch."""
    warned: dict[str, int] = field(default_factory=dict)
    """Component → step of the first early warning about it, while everything was still sound."""
