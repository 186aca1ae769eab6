"""A fault of a task, and what is to be said of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from anywhere.mainstream.task import Run


@dataclass(frozen=True)
class Case:
    """One fault in one task.

    Attributes:
        cause: the code that is right; ``also``: codes that are right too.
        sample: the bad sample is to be named.
        parts: components or modules any one of which is right to name; empty: none is asked.
        end: "goes on": the run takes all its steps, ends finite and keeps what it learned. "stops": no sound way to go
            on exists; it may stop with its verdict. "open": the loop stays wrong, or ends by itself as ever: only the
            verdict is asked. "goes on" and "stops" both ask for finite weights.
        decoy: nothing is wrong.
    """

    task: str
    kind: str
    cause: str
    fault: Callable[[Run], None]
    also: tuple[str, ...] = ()
    sample: bool = False
    parts: tuple[str, ...] = ()
    end: str = "goes on"
    decoy: bool = False

    @property
    def name(self) -> str:
        """Task and kind."""
        return f"{self.task}/{self.kind}"


def honest(task: str, kind: str, change: Callable[[Run], None]) -> Case:
    """A run that nothing is wrong with."""
    return Case(task, kind, "", change, decoy=True)
