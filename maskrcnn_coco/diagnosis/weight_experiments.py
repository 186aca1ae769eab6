"""The tests of a loss that is not what recorded steps had: its weight or sign, and whether that alone diverges."""

from __future__ import annotations

from collections.abc import Sequence

from maskrcnn_coco.diagnosis.comparisons import compare_step, turned_at, weight_now
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import diverges_as_weighed
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.replay import Replay, ReplayImpossible
from maskrcnn_coco.replay.snapshot import Snapshot


def weight(case: Case, replay: Replay, facts: Facts) -> None:
    """Whether the loss has another weight now than at recorded steps, the oldest first: it may rise for long.

    One step each, not the way from there: a batch that is still kept is enough.
    """
    for snapshot in reversed(case.earlier):
        entry = case.entry(snapshot.step)
        if entry is None:
            continue
        test = f"step {snapshot.step} taken again, learning rate 0"
        try:
            batches = replay.batches_of(entry)
        except ReplayImpossible:
            continue  # older than the batches that are kept
        found = replay.run(test, snapshot=snapshot, batches=batches, step=entry.step)
        if weight_now(facts, case, found, entry.step) is not None:
            return


def sound_steps_at_it(replay: Replay, facts: Facts, older: Sequence[Snapshot]) -> None:
    """Steps from before the onset, which the run took soundly, at the weight that the loss has now: from the newest of
    ``older``, where the walk from nearer by tells nothing of them."""
    if facts.weighed is None or not facts.bad("retrace") or not older or diverges_as_weighed(facts):
        return
    most = facts.limits()[0]
    test = f"steps from {older[0].step} on taken again as they were, with the loss's weight of now"
    facts.outcomes["heavier"] = replay.walk(test, older[0], stop=lambda o: not o.finite or abs(o.loss) > most)


def before_it_turned(case: Case, replay: Replay, facts: Facts) -> None:
    """A recorded step from before a loss turned negative all at once, where the walk began after that."""
    at = turned_at(case.history)
    older = [s for s in case.earlier if at is not None and s.step < at]
    entry = next((e for s in older if (e := case.entry(s.step)) is not None), None)
    if facts.redefined is not None or entry is None:
        return
    snapshot = next(s for s in older if s.step == entry.step)
    test, batches = f"step {entry.step} taken again, learning rate 0", replay.batches_of(entry)
    found = replay.run(test, snapshot=snapshot, batches=batches, step=entry.step)
    if found.finite:
        compare_step(facts, case, entry.step, found.losses, found.loss)
