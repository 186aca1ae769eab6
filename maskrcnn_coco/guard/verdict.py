"""Why a step is refused, and what may speak against it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from maskrcnn_coco.records import StepRecord, Symptom


@dataclass
class Verdict:
    """Why a step is refused. ``onset_step`` None: this very step. ``fatal``: running it could kill the interpreter.

    ``suspicion``: a verdict only if something else of the step is not finite. Inputs may hold NaN or -inf by design: an
    attention mask, targets that are ignored where they are NaN.
    """

    symptom: Symptom
    message: str
    measured: dict[str, Any] = field(default_factory=dict)
    onset_step: int | None = None
    fatal: bool = False
    suspicion: bool = False


class Looks(Protocol):
    """What replays can tell of a step before it is refused."""

    def as_loud_before(self, record: StepRecord, onset: int) -> bool:
        """Whether its batch is as loud on weights from before step ``onset``."""
        ...

    def calm_before(self, record: StepRecord, onset: int) -> bool:
        """Whether its batch is not half as loud on weights from before step ``onset``."""
        ...

    def climbs(self, record: StepRecord) -> bool:
        """Whether its gradients are a number below 0 times those of its loss."""
        ...

    def turned_around(self, record: StepRecord) -> bool:
        """Whether its loss, or one on record, is -1 times what it is when taken again."""
        ...

    def steep_once(self, record: StepRecord) -> bool:
        """Whether the same step, taken again, has a gradient that is nothing like as steep."""
        ...

    def steep_at_first(self, record: StepRecord, first: StepRecord) -> bool:
        """The same of the run's first step, now that it is at ``record``'s."""
        ...

    def of_nothing(self, record: StepRecord) -> bool:
        """Whether what is NaN of its losses reaches no gradient at all: a mean over nothing."""
        ...
