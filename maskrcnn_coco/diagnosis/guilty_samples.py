"""Which samples of a batch are guilty, each part of it judged by what the run itself had on the same weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from maskrcnn_coco.diagnosis.facts import LOSS_FACTOR, NORM_FACTOR, Facts
from maskrcnn_coco.diagnosis.from_records import record_of
from maskrcnn_coco.diagnosis.search import smallest_culprits
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay, ReplayImpossible
from maskrcnn_coco.replay.snapshot import Snapshot


def guilty_samples(
    case: Case, replay: Replay, facts: Facts, keep: Callable[[Sequence[bool]], list[Any]], snapshot: Snapshot | None
) -> list[int]:
    """The ids of the samples that make the step bad by themselves; empty where none does.

    Args:
        keep: one flag for each sample of the step → its micro-batches with those samples only.
        snapshot: the weights to try them on; None: the failing step's own.

    Raises:
        ReplayImpossible: a part of the batch raises an error that the whole does not: it cannot be cut.
    """
    ids = facts.image_ids
    whole = [o for n in ("same", "earlier") if (o := facts.outcomes.get(n)) is not None]
    sound: list[int] = []

    def run(positions: Sequence[int], beside: Sequence[int] = ()) -> Outcome:
        named = ", ".join(str(ids[p]) for p in positions) + (f" beside {ids[beside[0]]}" if beside else "")
        batches = keep([p in {*positions, *beside} for p in range(len(ids))])
        return replay.run(f"images {named} only{weights(snapshot)}", batches=batches, snapshot=snapshot)

    def bad(positions: Sequence[int], test: str) -> bool:
        outcome = run(positions)
        if outcome.error and whole and not any(o.error for o in whole):
            # The cut raises, not the samples: norm layers refuse one value, a graph's edges point at what is gone.
            partner = [p for p in sound if p not in positions][:1]
            outcome = run(positions, partner) if len(positions) == 1 and partner else outcome
            if outcome.error:
                raise ReplayImpossible(f"a part of the batch raises what the whole does not: {outcome.error}")
        facts.outcomes[test] = outcome
        guilty = facts.abnormal(outcome) and not _as_then(outcome, case, snapshot)
        sound.extend([] if guilty else positions)
        return guilty

    return [ids[p] for p in smallest_culprits(list(range(len(ids))), bad)]


def _as_then(outcome: Outcome, case: Case, snapshot: Snapshot | None) -> bool:
    """Whether it is no worse than what the run itself had on these older weights: high today, usual then."""
    then = None if snapshot is None else record_of(case, snapshot.step)
    if then is None or not then.applied or not outcome.finite or outcome.error:
        return False
    pairs = ((abs(outcome.loss), abs(then.loss) * LOSS_FACTOR), (outcome.grad_norm, then.grad_norm * NORM_FACTOR))
    return all(now <= most for now, most in pairs)


def weights(snapshot: Snapshot | None) -> str:
    """Which weights a replay used, where they are not the failing step's own."""
    return "" if snapshot is None else f", weights of step {snapshot.step}"
