"""Samples that are left out though no cause was proved: they are looked at again when they come again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from maskrcnn_coco.anywhere.cases import case_of
from maskrcnn_coco.anywhere.samples import Key, Samples
from maskrcnn_coco.diagnosis.from_records import reference_of
from maskrcnn_coco.diagnosis.limits import LOSS_FACTOR, NORM_FACTOR
from maskrcnn_coco.guard.hooks import Deafness
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.recovery import HOLD_LEAST
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.isolation import untouched
from maskrcnn_coco.replay.replay import Replay


class Suspects:
    """What failed on healthy weights, and may have failed for another's sake: a module or a source broken for a while.

    Each is tried, as it comes, on a private copy with the weights of now; where it fails, twice as many steps later.

    Args:
        known: an `AlarmResponder`.
    """

    def __init__(self, known: Any) -> None:
        self.known = known
        self._waits: dict[Any, tuple[int, int]] = {}
        """Sample → (step from which on it is tried, steps that the next wait takes)."""

    def add(self, step: int, ids: Sequence[Any]) -> None:
        """Samples ``ids`` are left out from step ``step`` on."""
        self._waits |= dict.fromkeys(ids, (step + HOLD_LEAST, 2 * HOLD_LEAST))

    def without(self, data: Any, ids: Sequence[int] | None) -> tuple[Any, Sequence[int] | None, bool]:
        """The batch without the samples that are left out; whether anything of it is left."""
        known = self.known
        if ids is None or not known.left_out & set(ids):
            return data, ids, True
        whole = Samples(data, list(ids), [Key(0, 0, p, i, i) for p, i in enumerate(ids)], select=known.select)
        known.left_out -= self.innocent(known.guard.next_step, whole)
        keep = [p for p, i in enumerate(ids) if i not in known.left_out]
        if len(keep) == len(ids):
            return data, ids, True
        return (whole.subset(keep).data, [ids[p] for p in keep], True) if keep else (data, ids, False)

    def innocent(self, step: int, whole: Samples) -> set[Any]:
        """Those of ``whole``, what step ``step`` is to be taken on, that are tried now and are what is usual."""
        due = [i for i in whole.image_ids if i in self._waits and step >= self._waits[i][0]]
        if not due or self.known.guard.immediate.team is not None:
            return set()
        found: set[Any] = set()
        try:
            case = case_of(self.known, Alarm("diverged", step, 0, step, "", {}))
            with Deafness.deaf(), untouched(self.known.model, case.now):
                found = {i for i in due if _sound(case, whole.subset([whole.image_ids.index(i)]))}
        except Exception:  # what cannot be tried stays as it is
            found = set()
        for i in due:
            _, wait = self._waits.pop(i)
            if i not in found:
                self._waits[i] = (step + wait, 2 * wait)
        return found


def _sound(case: Case, batch: Samples) -> bool:
    usual, step = reference_of(case.history, case.alarm.step), case.alarm.step
    test = f"sample {batch.image_ids[0]}, which was left out, weights of step {step}"
    found = Replay(case).run(test, batches=[batch], step=step)
    quiet = abs(found.loss) <= LOSS_FACTOR * usual.loss and found.grad_norm <= NORM_FACTOR * usual.norm
    return usual.count > 0 and found.finite and found.error is None and quiet
