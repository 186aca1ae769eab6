"""Which samples of a batch are guilty, each part of it judged by what the run itself had on the same weights.

A part of a batch is noisier than the whole, and data with heavy tails hold samples that are loud in good health: what
counts is the sign that the whole batch gave, and at least half of its way (in orders of magnitude) from healthy to bad.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.from_records import record_of
from maskrcnn_coco.diagnosis.limits import FEW, LOSS_FACTOR, NORM_FACTOR
from maskrcnn_coco.diagnosis.search import smallest_culprits, smallest_cure
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.outcome import NOTHING, Outcome
from maskrcnn_coco.replay.replay import Replay, ReplayImpossible
from maskrcnn_coco.replay.snapshot import Snapshot

ERROR = re.compile(r"(\w*):?.*?(\([^()]+:\d+, in [^()]+\))?$")
"""Class and line of an error as `guard.forward_backward.in_words` has it."""
LOUD = 100.0
"""A part of a batch that is this many times healthy is guilty, however much worse the whole is."""
MOST = 8
"""Most samples that are looked for: of a batch that bad ones fill, none is to come back."""
PARTNERS = 4
"""Most samples beside which one is tried that cannot go through the model alone."""
CURED = 10.0
"""Loss or gradient norm of the whole batch must fall by so much for the sample left out to be its reason."""


def guilty_samples(
    case: Case, replay: Replay, facts: Facts, keep: Callable[[Sequence[bool]], list[Any]], snapshot: Snapshot | None
) -> list[int]:
    """The ids of the samples that make the step bad by themselves, or without which it is sound; empty where none is.

    Args:
        keep: one flag for each sample of the step → its micro-batches with those samples only.
        snapshot: the weights to try them on; None: the failing step's own.

    Raises:
        ReplayImpossible: a part of the batch raises an error that the whole does not: it cannot be cut.
    """
    ids = facts.image_ids
    whole = [o for n in ("same", "earlier") if (o := facts.outcomes.get(n)) is not None]
    known = facts.outcomes.get("same" if snapshot is None else "earlier")
    # On these weights; or on its own where it was not tried on these, and next to nothing is known of healthy steps.
    shown = known if known is not None or facts.reference.count >= FEW else facts.outcomes.get("same")
    recorded = None if snapshot is None else record_of(case, snapshot.step)
    then = recorded if recorded is not None and recorded.applied else None
    parts = _Parts(replay, ids, [o.error for o in whole], keep, snapshot)

    def bad(positions: Sequence[int], test: str) -> bool:
        outcome = parts.run(positions)
        facts.outcomes[test] = outcome
        guilty = _guilty(outcome, shown, facts, then)
        parts.sound.extend([] if guilty else positions)
        return guilty

    def cured(left_out: Sequence[int], test: str) -> bool:
        gone = ", ".join(str(ids[p]) for p in left_out)
        batches = keep([p not in set(left_out) for p in range(len(ids))])
        outcome = facts.outcomes[test] = replay.run(
            f"without image {gone}{weights(snapshot)}", batches=batches, snapshot=snapshot
        )
        return known is not None and _cured(outcome, known, facts, then)

    found = smallest_culprits(list(range(len(ids))), bad, most=MOST)
    if not found and known is not None and facts.abnormal(known):
        # Each sample's loss may be of the whole batch (a ranking, a partial likelihood): alone it is of nothing.
        found = smallest_cure(list(range(len(ids))), cured)
    return [ids[p] for p in found]


def guilty_annotations(case: Case, replay: Replay, facts: Facts, snapshot: Snapshot | None) -> list[int]:
    """The ids of the annotations that make the guilty samples of ``facts`` bad, on these weights."""
    found = []
    for batch in case.batches or []:
        for position, image_id in enumerate(batch.image_ids):
            if image_id in (facts.guilty_images or []):
                found += _annotations_of(batch.subset([position]), image_id, replay, facts, snapshot)
    return found


def _annotations_of(single: Any, image_id: int, replay: Replay, facts: Facts, snapshot: Snapshot | None) -> list[int]:
    given = single.targets[0].get("annotation_ids")
    every = [int(a) for a in given] if given is not None else []
    if not every:
        return []

    def bad(kept: Sequence[int], test: str) -> bool:
        gone = [a for a in every if a not in set(kept)]
        what = f"image {image_id} with annotations {', '.join(map(str, kept)) or 'none'}{weights(snapshot)}"
        facts.outcomes[test] = replay.run(what, batches=[single.drop_annotations(0, gone)], snapshot=snapshot)
        return facts.bad(test)

    return [] if bad([], "empty") else smallest_culprits(every, bad)


@dataclass
class _Parts:
    """Replays parts of a batch. ``raised``: what the whole raised in each of its replays, None: nothing."""

    replay: Replay
    ids: list[int]
    raised: list[str | None]
    keep: Callable[[Sequence[bool]], list[Any]]
    snapshot: Snapshot | None
    sound: list[int] = field(default_factory=list)

    def run(self, positions: Sequence[int]) -> Outcome:
        """What comes of these samples; of one that raises for being alone, what comes of it in company.

        Raises:
            ReplayImpossible: it is the cut that raises.
        """
        outcome = self._run(positions)
        if not self._by_the_cut(outcome, len(positions)):
            return outcome
        beside = self._in_company(positions[0]) if len(positions) == 1 else None
        if beside is None or (beside.error and not any(self.raised)):
            raise ReplayImpossible(f"a part of the batch raises what the whole does not: {outcome.error}")
        return beside

    def _run(self, positions: Sequence[int], beside: Sequence[int] = ()) -> Outcome:
        named = ", ".join(str(self.ids[p]) for p in positions) + (f" beside {self.ids[beside[0]]}" if beside else "")
        batches = self.keep([p in {*positions, *beside} for p in range(len(self.ids))])
        test = f"images {named} only{weights(self.snapshot)}"
        return self.replay.run(test, batches=batches, snapshot=self.snapshot)

    def _by_the_cut(self, outcome: Outcome, count: int) -> bool:
        """The cut raises, not the samples: norm layers refuse one value, a graph's edges point at what is gone."""
        if not outcome.error or not self.raised:
            return False
        return not any(self.raised) or (count == 1 and not any(alike(e, outcome.error) for e in self.raised))

    def _in_company(self, position: int) -> Outcome | None:
        """One sample beside a sound one; where none is known yet, beside each of the first few. None: there is none."""
        every = [p for p in range(len(self.ids)) if p != position]
        others = [p for p in self.sound if p != position][:1] or (every if len(every) > 1 else [])
        outcome = None
        for partner in others[:PARTNERS]:  # of two samples, both are the whole again
            outcome = self._run([position], [partner])
            if not outcome.error:
                break
        return outcome


def alike(error: str | None, other: str | None) -> bool:
    """Whether two errors, in words, are one: of the same class, raised at the same line; what they say may differ."""
    first, second = ERROR.match(error or ""), ERROR.match(other or "")
    if first is None or second is None:
        return False
    (kind, line), (other_kind, other_line) = first.groups(), second.groups()
    return kind == other_kind and (line == other_line or None in (line, other_line))


def of_no_sample(facts: Facts) -> None:
    """Blame none where most samples, each alone, bring about an average over nothing: the batch happens to lack one."""
    nothing = facts.location is not None and NOTHING in str(facts.location.op)
    if nothing and 1 < len(facts.image_ids) < 2 * len(facts.guilty_images or []):
        facts.guilty_images = []


def _guilty(part: Outcome, whole: Outcome | None, facts: Facts, then: StepRecord | None) -> bool:
    """Whether a part of the batch is bad as the whole is. ``then``: the run's own step on these weights."""
    known = facts.reference
    if not facts.abnormal(part) or not part.finite or part.error:
        return facts.abnormal(part)
    if whole is None or not known.count or not facts.abnormal(whole):
        return True
    loss, norm = _healthy(facts, then)
    signs = [(part.loss, whole.loss, loss, LOSS_FACTOR), (part.grad_norm, whole.grad_norm, norm, NORM_FACTOR)]
    if not whole.finite or whole.error:
        return any(abs(mine) > LOUD * usual for mine, _, usual, _ in signs)
    shown = [(mine, whole_, usual, factor) for mine, whole_, usual, factor in signs if abs(whole_) > factor * usual]
    if not shown:
        return True  # a loss below zero
    return any(abs(mine) > usual * _most(abs(all_) / usual, factor) for mine, all_, usual, factor in shown)


def _most(ratio: float, factor: float) -> float:
    return max(factor, min(math.sqrt(ratio), LOUD))


def _cured(outcome: Outcome, whole: Outcome, facts: Facts, then: StepRecord | None) -> bool:
    """Whether leaving samples out made a bad step a normal one, today or on these weights; not by a little."""
    if not outcome.finite or outcome.error:
        return False
    loss, norm = _healthy(facts, then)
    if not whole.finite or whole.error:
        return abs(outcome.loss) <= LOUD * loss and outcome.grad_norm <= LOUD * norm
    normal = abs(outcome.loss) <= LOSS_FACTOR * loss and outcome.grad_norm <= NORM_FACTOR * norm
    pairs = ((whole.loss, outcome.loss), (whole.grad_norm, outcome.grad_norm))
    return normal and any(abs(before) > CURED * abs(after) for before, after in pairs)


def _healthy(facts: Facts, then: StepRecord | None) -> tuple[float, float]:
    """Loss and gradient norm that are healthy: what is high today may have been usual then."""
    known = facts.reference
    if then is None:
        return known.loss, known.norm
    return max(known.loss, abs(then.loss)), max(known.norm, then.grad_norm)


def weights(snapshot: Snapshot | None) -> str:
    """Which weights a replay used, where they are not the failing step's own."""
    return "" if snapshot is None else f", weights of step {snapshot.step}"
