"""The tests of a divergence: the last steps taken again, as they were and with learning rates lowered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from typing import Any

from torch import nn

from maskrcnn_coco.diagnosis.comparisons import (
    above_still,
    astray,
    bounds,
    compare_first,
    differences,
    diverges,
    drift,
    louder,
    mean_loss,
    swollen,
    unlearnt,
)
from maskrcnn_coco.diagnosis.endurance import Endurance
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.from_records import beyond_sense
from maskrcnn_coco.diagnosis.limits import CALM, SLOWEST, WALK
from maskrcnn_coco.diagnosis.lr_verdict import LrTrial, LrVerdict
from maskrcnn_coco.diagnosis.optimizer_experiments import by_length
from maskrcnn_coco.diagnosis.search import Walk, factors_for, lr_search
from maskrcnn_coco.diagnosis.setting_experiments import SettingExperiments
from maskrcnn_coco.diagnosis.weight_experiments import before_it_turned, sound_steps_at_it, weight
from maskrcnn_coco.replay.case import Case, dict_of
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay, ReplayImpossible
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.tape import TapeEntry

GAP = 3.0
"""A component whose update-to-weight ratio is this many times another's is the more likely culprit of the two."""
LR_GAP = 15.0
"""The same for learning rates; heads at ten times the backbone's rate are usual."""
LAP = 8
"""Steps that a repaired walk is taken past the failing one."""
STAYS, RISES = 1.05, 3.0
"""Times what weights that stand still cost that the steps as they were have to, where weights were thrown and the loss
stays where it began, and else."""
FURTHER = 0.01
"""What the component that moved most is lowered by before one that hardly moved is named."""


class LrExperiments:
    """LrExperiments over the tape of one case. ``healthy``: the newest state on which the failing batch is normal."""

    def __init__(self, case: Case, replay: Replay, facts: Facts) -> None:
        self.case, self.replay, self.facts = case, replay, facts
        self.healthy: Snapshot | None = None
        self._still = (0.0, 0.0)
        self._stand: dict[int, Outcome] = {}
        self._swollen: tuple[str, float, str] | None = None
        self._halfway = math.inf
        """The mean loss of a walk that is taken for bounded at most, where losses and norms of single steps tell
        nothing."""

    def retrace(self) -> None:
        f = self.facts
        start = self._start()
        if start is None:
            return
        differing: list[tuple[float, str]] = []

        def compare(model: nn.Module) -> None:
            differing.extend(differences(model, self.case.now))

        test = f"steps {start.step} to {f.step} taken again as they were"
        outcome = self.replay.walk(test, start, visit=compare)
        f.outcomes["retrace"] = outcome
        f.drift, f.astray = drift(differing, start.step), astray(differing)
        compare_first(f, self.case, outcome)
        before_it_turned(self.case, self.replay, f)
        sound_steps_at_it(self.replay, f, [s for s in self.walkable() if s.step < start.step])

    def weight(self) -> None:
        """Whether the loss has another weight now than at recorded steps."""
        weight(self.case, self.replay, self.facts)

    def lr(self) -> None:
        """From the newest healthy state; from an older one too where the answer is none, or doubtful.

        Where single steps do not tell, by what all of them cost together; from further back than else if need be.
        """
        f, first = self.facts, self._start()
        thrown = first is not None and isinstance(f.measured.get("moved"), dict)
        unhurried = self._unhurried(first) if thrown and first is not None else None
        try:
            self._search_all(first)
        finally:  # the steps for replays may be spent
            if unhurried is not None and (f.lr_verdict is None or not f.lr_verdict.sufficient):
                f.lr_verdict = unhurried

    def _search_all(self, first: Snapshot | None) -> None:
        f = self.facts
        older = [s for s in self.walkable() if first and s.step <= first.step]
        self._lr(older)
        if first is None or f.own_leap or f.healthy_retrace() or "own" in f.measured:
            return
        for start in [first, *(s for s in self.walkable(2 * WALK) if s.step < first.step)]:
            if f.lr_verdict is not None and (f.lr_verdict.sufficient or f.lr_verdict.swollen):
                return
            if self._stays_above(start):
                self._lr([start])

    def _unhurried(self, start: Snapshot) -> LrVerdict | None:
        """What is known where steps that threw weights about cost no less than short ones: their rate gains nothing.

        Their losses are at the start's, whatever the rate: that they come of the long steps nobody can show.
        """
        f, moved = self.facts, self.facts.measured["moved"]
        named = [c for c in self._order() if float(moved.get(c, 0.0)) > CALM]
        reached = f.outcomes.get("retrace")
        if not named or reached is None or not reached.path or reached.path[0][0] != start.step or f.healthy_retrace():
            return None
        factor = max(CALM / max(float(moved[c]) for c in named), SLOWEST)
        test = f"steps {start.step} to {f.step}, lr of {', '.join(named)} × {factor:.2g}"
        short = self.replay.walk(test, start, lr_factor=dict.fromkeys(named, factor))
        if short.error or not (short.finite and reached.finite):
            return None
        if mean_loss(short, len(short.path)) > STAYS * mean_loss(reached, len(reached.path)):
            return None
        trials = [LrTrial(tuple(named), factor, True, short)]
        return LrVerdict(named, start.step, factor, True, False, trials=trials, holds=factor)

    def _stays_above(self, start: Snapshot) -> bool:
        """Whether the steps as they were cost more than weights that stand still, over the same batches."""
        f = self.facts
        reached = f.outcomes.get("retrace")
        if reached is None or not reached.path or reached.path[0][0] != start.step:
            reached = self.replay.walk(f"steps {start.step} to {f.step} taken again as they were", start)
        stood = self._stood(start)
        if f.lr_verdict is not None and diverges(stood, f):
            f.lr_verdict.swollen = self._swollen  # no weight moved there
            return False
        self._halfway = above_still(stood, reached, least=STAYS if "moved" in f.measured else RISES)
        return math.isfinite(self._halfway)

    def _lr(self, older: list[Snapshot]) -> None:
        """From the states ``older``, the newest first."""
        f = self.facts
        by_setting = SettingExperiments(self.case, self.replay, f, self._past).verdict(older, self._order())
        if by_setting is not None:
            f.lr_verdict = by_setting
            if by_setting.since is not None and by_setting.from_step <= by_setting.since:
                return  # it begins before the setting was changed
            if f.settings.get("takes_again", True):
                self._before_it_was_set(older)
            else:
                self._endurance().livelier(by_setting, older)
            return
        if f.own_leap or not self.walkable():
            self._refused_update()
            return
        # Where in doubt, from as far back as the tape goes: there the state is surely not part of the trouble.
        for i, start in enumerate(older):
            order, known = self._order(), f.lr_verdict
            if 0 < i < len(older) - 1 and not (known is not None and self._between(start, order, known)):
                continue
            verdict = self._search(start, order, quick=known is not None)
            verdict.doubtful = self._doubtful(verdict)
            if verdict.sufficient and verdict.doubtful and order[0] not in verdict.components:
                verdict = self._expected(start, order, verdict)
            if known is None or not known.sufficient or (verdict.sufficient and self._better(verdict, known, order)):
                f.lr_verdict = verdict
            if f.lr_verdict is not None and f.lr_verdict.sufficient and not f.lr_verdict.doubtful:
                break
        if f.lr_verdict is not None and f.lr_verdict.sufficient:
            endurance = self._endurance()
            endurance.endure(f.lr_verdict, next(s for s in older if s.step == f.lr_verdict.from_step))
            endurance.nearer(f.lr_verdict, older)
            endurance.sounder(f.lr_verdict, older)

    def _past(self, start: Snapshot, most: dict[str, float], settings: dict[str, Any]) -> tuple[Walk, int]:
        beyond = self._beyond(start)
        return self._walker(start, beyond, lr_most=most, settings=settings), len(beyond)

    def _between(self, start: Snapshot, order: Sequence[str], known: LrVerdict) -> bool:
        """Whether to search from a state that is neither the newest nor the oldest: none of the newer ones could be
        kept from diverging, and this one can, whatever has to be lowered."""
        return not known.sufficient and self._walker(start)(order, self._factors()[-1])[0]

    def _refused_update(self) -> None:
        """The refused step is applied on the copy, and its batch seen again, at lower and lower rates.

        Only where the guard refused the very update; see `Facts.leap`. From an older state where there is one, over the
        steps since: what somebody did to the optimizer's state in between is then no rate's fault.
        """
        f, case = self.facts, self.case
        keys = [list(b.keys) for b in case.batches or []]
        again = [TapeEntry(f.step + 1, f.epoch, keys, dict(f.lr), f.loss_scale, applied=False)]
        self.replay.keep(f.step + 1, list(case.batches or []))
        start = self._start() or case.now
        walk = self._walker(start, again)
        if not walk((), 1.0)[0]:
            f.lr_verdict = lr_search(walk, self._order(), start.step, factors=self._factors())
            if f.lr_verdict.sufficient and start is not case.now:
                self._endurance().as_before(f.lr_verdict, start)
        elif f.own_leap and not (f.not_repeated() or f.state_changed or f.healthy_retrace()):
            f.lr_verdict = by_length(self.replay, f, self._order(), self._factors())

    def _endurance(self) -> Endurance:
        return Endurance(self.facts, self._past, self._beside, lambda: self.replay.out_of_steps)

    def _before_it_was_set(self, older: Sequence[Snapshot]) -> None:
        """Go back to a state of before the setting was changed, where one is kept: what it did is in the newer ones.

        That the steps hold without it is proved from a newer one; that one it never touched asks for no other proof.
        """
        verdict = self.facts.lr_verdict
        assert verdict is not None
        groups = [str(g.get("component", "")) for g in self.replay.optimizer.param_groups]
        entries = [(e.step, e.lr, e.settings) for e in self.case.entries(older[-1].step) if e.settings is not None]
        names = [n for n, most in verdict.settings.items() if not isinstance(most, dict)]
        absurd = (n for n, lr, kept in entries if any(beyond_sense(s, [(lr, kept)], groups) for s in names))
        first = next(absurd, verdict.from_step)
        verdict.back_to = next((s.step for s in older if s.step <= min(first, verdict.from_step - 1)), None)

    def _expected(self, start: Snapshot, order: Sequence[str], verdict: LrVerdict) -> LrVerdict:
        """The component that moved most, lowered further, before one that hardly moved is named."""
        walk, factor = self._walker(start), min(FURTHER, verdict.factor)
        for lowered, wanted in ((order[:1], True), (order[1:], False)):
            ok, outcome = walk(lowered, factor)
            verdict.trials.append(LrTrial(tuple(lowered), factor, ok, outcome))
            if ok != wanted:
                return verdict
        return LrVerdict([order[0]], start.step, factor, True, True, trials=verdict.trials)

    def _beside(self, named: Sequence[str]) -> list[str]:
        lr = self.facts.lr
        least = 0.5 * max(lr.get(c, 0.0) for c in named)
        return [c for c in self._order() if c not in named and lr.get(c, 0.0) >= least > 0]

    def _beyond(self, start: Snapshot) -> list[TapeEntry]:
        """Steps to follow the failing one: recorded batches over again, with learning rates as they would go on.

        A linear warm-up goes on rising to the planned rates.
        """
        f, recorded = self.facts, self.case.entries(start.step)
        planned, warmup = dict_of(self.case.settings.get("lr")), int(f.settings.get("warmup_steps") or 0)
        made = []
        for i, entry in enumerate(islice(cycle(recorded), LAP)):
            step = f.step + 1 + i
            rise = min(step + 1, warmup) / (f.step + 1) if f.step + 1 < warmup else 1.0
            lr = {c: v * rise for c, v in f.lr.items()}
            lr = {c: min(v, max(planned.get(c, v), f.lr[c])) for c, v in lr.items()}
            made.append(dataclasses.replace(entry, step=step, lr=lr))
        return made

    def _search(self, start: Snapshot, order: Sequence[str], *, quick: bool) -> LrVerdict:
        """The search from one state; where time runs out, what is known so far, marked as not proved."""
        trials: list[LrTrial] = []
        walk = self._walker(start)

        def kept(lowered: Sequence[str], factor: float) -> tuple[bool, Outcome]:
            ok, outcome = walk(lowered, factor)
            trials.append(LrTrial(tuple(lowered), factor, ok, outcome))
            return ok, outcome

        try:
            beside = self._beside(order[:1])
            found = lr_search(kept, order, start.step, quick=quick, beside=beside, factors=self._factors())
            again = not found.sufficient and self._louder(start)
            return self._search(start, order, quick=quick) if again else found
        except ReplayImpossible:
            helped = next((t for t in trials if t.bounded), None)
            components = list(helped.lowered) if helped else []
            factor = helped.factor if helped else 0.1
            return LrVerdict(components, start.step, factor, helped is not None, False, True, trials)

    def _factors(self) -> Sequence[float]:
        """What rates are lowered by, in turn."""
        bound = self.facts.measured.get("update_bound")
        leap = max((float(v) for v in bound.values()), default=0.0) if isinstance(bound, dict) else 0.0
        return factors_for(max(self.facts.rises.values(), default=1.0), leap)

    def _better(self, older: LrVerdict, known: LrVerdict, order: Sequence[str]) -> bool:
        """Two doubtful answers: the one that the prior expects, if one of them is."""
        if older.doubtful != known.doubtful:
            return known.doubtful
        return older.components == list(order[:1]) and known.components != older.components

    def _doubtful(self, verdict: LrVerdict) -> bool:
        """Not needed, or another component moved much more, or learns at a rate out of all proportion to this one's."""
        for values, gap in ((self.facts.update_ratio, GAP), (self.facts.lr, LR_GAP)):
            named = max((values.get(c, 0.0) for c in verdict.components), default=0.0)
            if max(values.values(), default=0.0) > gap * named > 0:
                return True
        return not verdict.necessary

    def _walker(
        self,
        start: Snapshot,
        beyond: Sequence[TapeEntry] = (),
        lr_most: Mapping[str, float] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Walk:
        f = self.facts
        loss, norm = self._bounds()

        def over(o: Outcome) -> bool:
            if math.isfinite(self._halfway):
                return not o.finite or (len(o.path) > 1 and mean_loss(o, len(o.path)) > self._halfway)
            own = unlearnt(o, f)  # behind a sum that says nothing
            return not o.finite or (abs(o.loss) > loss or o.grad_norm > norm if own is None else own)

        def walk(lowered: Sequence[str], factor: float) -> tuple[bool, Outcome]:
            test = f"steps {start.step} to {f.step}, lr of {', '.join(lowered)} × {factor:g}"
            outcome = self.replay.walk(
                test,
                start,
                lr_factor=dict.fromkeys(lowered, factor),
                stop=over if math.isinf(self._halfway) else lambda o: not o.finite,
                beyond=beyond,
                lr_most=lr_most,
                settings=settings,
            )
            return not over(outcome), outcome

        return walk

    def _bounds(self) -> tuple[float, float]:
        """(loss, norm) beyond which a walk diverges."""
        loss, norm = bounds(self.facts, self.case)
        return max(loss, self._still[0]), max(norm, self._still[1])

    def _louder(self, start: Snapshot) -> bool:
        """Whether healthy weights that stand still are louder than the bounds allow; raises those, once."""
        if any(self._still):
            return False
        self._still = louder(self._stood(start), self._bounds(), self.facts.outcomes.get("retrace"))
        return any(self._still)

    def _stood(self, start: Snapshot) -> Outcome:
        """The batches of the walk on weights that stand still."""
        if start.step not in self._stand:
            test = f"steps {start.step} to {self.facts.step}, learning rate 0"
            still = dict.fromkeys(self._order(), 0.0)

            def visit(model: nn.Module) -> None:
                self._swollen = swollen(model, start)

            self._stand[start.step] = self.replay.walk(test, start, lr_factor=still, visit=visit)
        return self._stand[start.step]

    def _order(self) -> list[str]:
        ratio, lr = self.facts.update_ratio, self.facts.lr
        return sorted(self.facts.components, key=lambda c: (-ratio.get(c, 0.0), -lr.get(c, 0.0)))

    def _start(self) -> Snapshot | None:
        """Newest walkable snapshot from before the onset, else the oldest walkable one."""
        walkable = self.walkable()
        latest = self.facts.onset_step if self.healthy is None else min(self.healthy.step, self.facts.onset_step)
        return next((s for s in walkable if s.step <= latest), walkable[-1] if walkable else None)

    def walks(self) -> set[str]:
        """The tests that walk over the tape, as far as there is one. A rate is asked only where steps were taken."""
        taken = [bool(self.case.entries(s.step)) for s in self.walkable()]
        return ({"retrace"} if taken else set()) | ({"lr"} if any(taken) else set())

    def walkable(self, most: int = WALK) -> list[Snapshot]:
        older = [s for s in self.case.earlier if s.step < self.facts.step]
        return [s for s in older if self.facts.step - s.step <= most and self.case.covers(s.step)]
