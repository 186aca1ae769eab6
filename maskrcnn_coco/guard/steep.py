"""One gradient that is far too long at a calm loss. Adam, RMSprop and Adagrad remember its square: no loss ever rises,
and steps stay short for thousands of steps. So such a step is asked for again before it is taken; the first of a run,
which has none to be compared with, as soon as the second is known."""

from __future__ import annotations

from maskrcnn_coco.guard.divergence import SURVIVED
from maskrcnn_coco.guard.verdict import Looks, Verdict
from maskrcnn_coco.records import StepRecord

STEEP = 1e3
"""A gradient so many times the healthy one is one that a calm loss hardly has."""
ANOTHER = 3.0
"""A second loss that is so many times the first, or less, is that of another place: its gradient tells nothing."""


class Steep:
    """What a run's gradients were like that were asked for again."""

    def __init__(self) -> None:
        self._known = 1.0
        """Times `STEEP`: no gradient below it is asked for, as one was no fault."""
        self._first: tuple[StepRecord, float] | None = None
        """The first step, until the next one is judged."""

    def judge(self, looks: Looks | None, record: StepRecord, taken: float, usual: float) -> Verdict | None:
        """The verdict on a step whose loss is calm: of its gradient ``taken``, beside the ``usual`` one (0: unknown).

        One that comes again is the loss's own, and the next of its size is not asked for.
        """
        if looks is None or usual <= 0:
            self._first = (record, taken)
            return None
        if self._first is not None:
            return self._begun(looks, record, taken, *self._first)
        times = taken / usual
        if times <= STEEP * self._known:
            return None
        if looks.steep_once(record):
            text = (
                f"gradient norm {times:.3g} times the healthy one at a loss of {record.loss:.4g}; not so, taken again"
            )
            return Verdict("diverged", text, {"grad_norm": taken, "grad_norm_reference": usual})
        self._known = max(self._known, times / STEEP * SURVIVED)
        return None

    def _begun(self, looks: Looks, record: StepRecord, taken: float, first: StepRecord, norm: float) -> Verdict | None:
        """The verdict on the first step, where the second is nothing like as steep."""
        self._first = None
        alike = abs(record.loss) <= ANOTHER * abs(first.loss) and abs(first.loss) <= ANOTHER * abs(record.loss)
        if not alike or not 0 < taken < norm / STEEP or not looks.steep_at_first(record, first):
            return None
        text = f"gradient norm {norm:.3g} at step {first.step}, now {taken:.3g} at a loss alike; not so, taken again"
        measured = {"steep_at": first.step, "grad_norm": norm, "grad_norm_reference": taken}
        return Verdict("diverged", text, measured, first.step)
