"""How much has to be lowered, of what was proved to blame, for training to hold past the failing step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from maskrcnn_coco.diagnosis.comparisons import climbing, level
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.lr_verdict import LrTrial, LrVerdict
from maskrcnn_coco.diagnosis.search import Walk
from maskrcnn_coco.replay.snapshot import Snapshot

LOWER, BETTER = 1 / 3, 0.95
"""A rate that holds gives way to one lower by this much where the losses past the failing step come down so far."""
LEARNS = 0.02
"""Or where it learns more: what losses are below those of weights that stand still, of which that is this share."""
MISTYPED = 0.01
"""A component whose rate has to come down to less than this was given its rate by mistake, and so were those that were
given the same: they come down too where that loses nothing."""
HURLED = 0.3
"""A step that moves weights by this share of their norm; healthy ones stay below 0.12. A walk that ends so stays
bounded by luck, on the few batches that it goes round."""
SPOILED, OLDER = 0.7, 2
"""A state whose batches lose no more than this share on an older one, with every rate at 0, is spoiled itself; so many
older ones are looked at."""
LOWEST, LEAST = 4, 0.01
"""So many times is a rate lowered further where none holds, and one that holds to this share of itself at most."""


class Endurance:
    """Walks past the failing step.

    Args:
        walker: (state to start from, rates no higher than these, settings in place of those of then) → the walk over
            the recorded steps and those to follow, and how many those are.
        beside: the components that learn as fast as the named ones, or faster.
        spent: whether no more steps may be replayed.
    """

    def __init__(
        self,
        facts: Facts,
        walker: Callable[[Snapshot, dict[str, float], dict[str, Any]], tuple[Walk, int]],
        beside: Callable[[Sequence[str]], list[str]],
        spent: Callable[[], bool],
    ) -> None:
        self.facts, self.walker, self.beside, self.spent = facts, walker, beside, spent

    def endure(self, verdict: LrVerdict, start: Snapshot) -> None:
        """Find what holds, and write it down in ``verdict``, proved from ``start`` up to the failing step.

        What is proved first, by itself; then with the components beside it that learn as fast, or faster. Of what
        holds, more is lowered where more is learned so: a walk may stay bounded and be a wild one all the same.
        """
        walk, last = self.walker(start, {}, {})
        if not last or self.spent() or self.as_before(verdict, start):
            return
        named = verdict.components
        tried: list[tuple[bool, list[str], float]] = []

        def reached(also: list[str], factor: float) -> float:
            ok, outcome = walk([*named, *also], factor)
            ok = ok and not climbing(outcome, last)
            verdict.trials.append(LrTrial((*named, *also), factor, ok, outcome, last))
            tried.append((ok, also, factor))
            calm = all(outcome.moved_last.get(c, 0.0) <= HURLED for c in (*named, *also))
            return level(outcome, last) if ok and calm else math.inf

        beside = self.beside(named)
        steps = [3 * verdict.factor, verdict.factor]
        tries = [([], s) for s in steps] + ([(beside, s) for s in steps] if beside else [])
        tries += [(beside, verdict.factor * LOWER**n) for n in range(1, LOWEST + 1)]
        for also, factor in tries:
            if self.spent():
                break
            best = reached(also, factor)
            if best < math.inf:
                verdict.also, verdict.holds = also, factor
                self._settle(verdict, beside, best, reached, lambda: self._still(start, last))
                return
        # None keeps from throwing weights about: the lowest that stays bounded, or the lowest that was tried.
        _, verdict.also, verdict.holds = ([t for t in tried if t[0]] or tried)[-1]

    def _still(self, start: Snapshot, last: int) -> float:
        """What the same walk loses with every rate at 0; NaN where losses may be below zero: then it is no measure."""
        if self.spent():
            return math.nan
        _, outcome = self.walker(start, dict.fromkeys(self.facts.lr, 0.0), {})[0]((), 1.0)
        positive = outcome.finite and all(loss > 0 for _, loss, _ in outcome.path)
        return level(outcome, last) if outcome.path and positive else math.nan

    def _settle(
        self,
        verdict: LrVerdict,
        beside: list[str],
        best: float,
        reached: Callable[[list[str], float], float],
        stood: Callable[[], float],
    ) -> None:
        """From what holds to what learns more: the components beside it along, then lower rates, while it pays."""
        assert verdict.holds is not None
        still: float | None = None
        while not self.spent():
            # Those beside may hold only at a rate lower than the one that the named ones hold at.
            if beside and not verdict.also:
                lost = reached(beside, verdict.holds)
                if lost <= (best if verdict.holds <= MISTYPED else BETTER * best):
                    verdict.also, best = beside, lost
            if verdict.holds <= LEAST * verdict.factor or self.spent():
                return
            lost = reached(verdict.also, verdict.holds * LOWER)
            if lost >= best:
                return
            if lost >= BETTER * best:
                still = stood() if still is None else still
                if not still - lost > LEARNS * still:  # NaN: nobody knows
                    return
            verdict.holds, best = verdict.holds * LOWER, lost

    def as_before(self, verdict: LrVerdict, start: Snapshot) -> bool:
        """Whether rates that leapt need only be no higher than before: then nothing else is lowered, nor for longer.

        All that leapt: what a slip of the schedule raised along with those to blame may do its harm later.
        """
        f = self.facts
        leapt = {c: f.usual_lr[c] for c in f.leapt}
        if not set(verdict.components) <= set(leapt):
            return False
        walk, last = self.walker(start, leapt, {})
        ok, outcome = walk((), 1.0)
        what = f"lr of {', '.join(leapt)} no higher than {max(leapt.values()):.2g}"
        verdict.trials.append(LrTrial((), 1.0, ok, outcome, last, what=what))
        if ok and not climbing(outcome, last):
            verdict.most = leapt
        return bool(verdict.most)

    def nearer(self, verdict: LrVerdict, older: Sequence[Snapshot]) -> None:
        """The newest state from which what was proved from an older one holds, and loses no more than from that one."""
        lowered, factor = [*verdict.components, *verdict.also], verdict.step_down
        levels = [t.outcome for t in verdict.trials if t.bounded and t.beyond]
        for state in [s for s in older if s.step > verdict.from_step] if levels else []:
            walk, last = self.walker(state, verdict.most, verdict.settings)
            if self.spent() or not last:
                return
            ok, outcome = walk(*(((), 1.0) if verdict.most or verdict.settings else (lowered, factor)))
            if ok and not climbing(outcome, last) and level(outcome, last) <= min(level(o, last) for o in levels):
                verdict.back_to = state.step
                return

    def sounder(self, verdict: LrVerdict, older: Sequence[Snapshot]) -> None:
        """An older state than the one that is gone back to, where that one lies well into the way up already.

        No alarm has come yet where rates grow from step to step and a loss is twice what it was. ``older``: newest
        first.
        """
        chosen = verdict.from_step if verdict.back_to is None else verdict.back_to
        best = math.inf
        for state in [s for s in older if s.step <= chosen][: 1 + OLDER]:
            walk, last = self.walker(state, dict.fromkeys(self.facts.lr, 0.0), verdict.settings)
            if self.spent() or not last:
                return
            _, outcome = walk((), 1.0)
            here = level(outcome, last) if outcome.finite and outcome.path else math.inf
            if here > SPOILED * best:
                return
            best = here
            if state.step < chosen:
                verdict.back_to = state.step

    def livelier(self, verdict: LrVerdict, older: Sequence[Snapshot]) -> None:
        """An older state than the chosen one, where that learns nothing any more with what was wrong put right.

        A decay that is far too strong leaves weights of nothing, whose losses may be lower than those of a start.
        ``older``: newest first.
        """
        states = [s for s in older if s.step <= verdict.from_step]
        for state in states[:1] + states[1:][-1:]:  # the budget is for few: the oldest is surely not spoiled
            walk, last = self.walker(state, verdict.most, verdict.settings)
            if self.spent() or not last:
                return
            _, outcome = walk((), 1.0)
            still = self._still(state, last)
            if outcome.finite and still - level(outcome, last) > LEARNS * still:
                verdict.back_to = state.step if state.step < verdict.from_step else None
                return
