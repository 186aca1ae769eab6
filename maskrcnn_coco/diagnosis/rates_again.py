"""Whether rates that were lowered are needed no more: the last steps' batches, trained on at rates nobody lowered."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from maskrcnn_coco.diagnosis.from_records import reference_of
from maskrcnn_coco.diagnosis.limits import LOSS_FACTOR, NORM_FACTOR
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.replay.tape import TapeEntry

FEWEST, MOST = 8, 30
"""Steps that such a walk takes at least, for a divergence to show, and at most."""
AS_GOOD, NO_WORSE = 1.25, 1.05
"""Times the lowest level of before the trouble, or times the losses of the same batches at the lowered rates, that it
may end with: a rate that was proved too high may stay finite and learn worse. One that was not may end with the first
of both, as a lower rate is always the quieter one for a while."""
LEVEL = 16
"""Steps that make a level."""


def stand(
    case: Case, rates: Callable[[TapeEntry], Mapping[str, float]], since: int, *, proved: bool, times: float = 1.0
) -> bool:
    """Whether training goes on as it does where it goes on at ``rates``; False where too little is known.

    From the state of now, with all that the optimizer remembers: an older one would not tell what a spike left there.

    Args:
        rates: recorded step → the learning rate of each component that nobody lowered.
        since: the first step after the trouble. Batches of before it are not asked.
        proved: the rates were proved to be too high.
        times: gradients were so many times as long as their losses made them. Where the recorded ones still are, rates
            stay low: replays have none of it.

    Raises:
        ReplayImpossible: it cannot be told.
    """
    replay = Replay(case)
    entries = [e for e in case.entries(since) if e.record is not None][-MOST:]
    records = [e.record for e in entries if e.record is not None]
    if len(entries) < FEWEST or case.rig.make_batch is None:
        return False
    before, known = reference_of(case.history, since), [abs(r.loss) for r in records]
    loss, norm = max([before.loss, *known]), max([before.norm, *(r.grad_norm for r in records)])

    def wild(outcome: Outcome) -> bool:
        loud = not case.rig.norms_clipped and outcome.grad_norm > NORM_FACTOR * norm
        return not outcome.finite or abs(outcome.loss) > LOSS_FACTOR * loss or loud

    again = [dataclasses.replace(e, lr={**e.lr, **rates(e)}) for e in entries]
    test = f"batches of steps {entries[0].step} to {entries[-1].step}, at rates that nobody lowered"
    outcome = replay.walk(test, case.now, instead=again, stop=wild)
    if wild(outcome) or outcome.error or len(outcome.path) < len(again):
        return False
    ratios = [r.grad_norm / norm for r, (_, _, norm) in zip(records, outcome.path, strict=False) if norm > 0]
    if times > 1.0 and (not ratios or statistics.median(ratios[-FEWEST:]) > math.sqrt(times)):
        return False
    half = len(again) // 2
    reached = statistics.fmean(abs(loss) for _, loss, _ in outcome.path[half:])
    best = lowest_level([r for r in case.history if r.step < since])
    return reached <= max(AS_GOOD * best, (NO_WORSE if proved else AS_GOOD) * statistics.fmean(known[half:]))


def lowest_level(records: Sequence[StepRecord]) -> float:
    """The lowest mean size of the losses of so many steps in a row as make a level; 0 where there are not so many."""
    losses = [abs(r.loss) for r in records if r.applied and math.isfinite(r.loss)]
    return min((statistics.fmean(losses[i : i + LEVEL]) for i in range(len(losses) - LEVEL + 1)), default=0.0)
