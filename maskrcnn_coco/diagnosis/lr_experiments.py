"""The tests of a divergence: the last steps taken again, as they were and with learning rates lowered."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from itertools import cycle, islice

from torch import nn

from maskrcnn_coco.components import component_of
from maskrcnn_coco.diagnosis.comparisons import (
    between,
    climbing,
    compare_first,
    differences,
    drift,
    level,
    louder,
    out_of_proportion,
    weight_now,
)
from maskrcnn_coco.diagnosis.facts import (
    LOSS_FACTOR,
    NO_HISTORY_LOSS,
    NORM_FACTOR,
    Facts,
    LrTrial,
    LrVerdict,
    OlderFile,
)
from maskrcnn_coco.diagnosis.search import factors_for, lr_search
from maskrcnn_coco.replay.case import Case, dict_of
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay, ReplayImpossible
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.replay.tape import TapeEntry

WALK = 20
"""Most steps of a walk over the tape."""
GAP = 3.0
"""A component whose update-to-weight ratio is this many times another's is the more likely culprit of the two."""
LR_GAP = 15.0
"""The same for learning rates; heads at ten times the backbone's rate are usual."""
SHRINKS = 0.5
"""Learning rate times weight decay above which weight decay itself is suspected: weights halve in every step."""
DECAY = 1e-4
"""The weight decay that detectors are trained with."""
LAP = 8
"""Steps that a repaired walk is taken past the failing one."""
LOWER, BETTER = 1 / 3, 0.95
"""A rate that holds gives way to one lower by this much where the losses past the failing step come down so far."""
FURTHER = 0.01
"""What the component that moved most is lowered by before one that hardly moved is named."""
LEAST = 0.01
"""No rate is tried much below this share of itself."""
AFTER_LOAD, MARGIN, FILES = 25, 6, 2
"""Steps after a load within which the file itself is in doubt; steps more that an older file must stand; most files."""
USUAL = 0.7
"""Bounds may rise to what the last healthy steps had, and to this share of what the run reached at most."""


class LrExperiments:
    """LrExperiments over the tape of one case. ``healthy``: the newest state on which the failing batch is normal."""

    def __init__(self, case: Case, replay: Replay, facts: Facts) -> None:
        self.case, self.replay, self.facts = case, replay, facts
        self.healthy: Snapshot | None = None
        self._still = (0.0, 0.0)

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
        f.drift = drift(differing, start.step)
        compare_first(f, self.case, outcome)

    def weight(self) -> None:
        """Whether the loss has another weight now than at recorded steps, the oldest first: it may rise for long.

        One step each, not the way from there: a batch that is still kept is enough.
        """
        for snapshot in reversed(self.case.earlier):
            entry = next((e for e in self.replay.entries(snapshot.step) if e.step == snapshot.step), None)
            if entry is None:
                continue
            test = f"step {snapshot.step} taken again, learning rate 0"
            try:
                batches = self.replay.batches_of(entry)
            except ReplayImpossible:
                continue  # older than the batches that are kept
            found = self.replay.run(test, snapshot=snapshot, batches=batches, step=entry.step)
            if weight_now(self.facts, self.case, found, entry.step) is not None:
                return

    def after_load(self) -> bool:
        """Whether the run was taken up from a file a few steps ago, and there are older ones."""
        case = self.case
        if case.files is None or case.planned is None or case.loaded_step is None:
            return False
        return 0 <= case.alarm.step - case.loaded_step <= AFTER_LOAD

    def file(self) -> None:
        """Older files, trained on over the planned steps, for as long as the loaded one took to diverge and longer."""
        f, case = self.facts, self.case
        assert case.files is not None and case.planned is not None and case.loaded_step is not None
        count = case.alarm.step - case.loaded_step + MARGIN
        for path, state in islice(case.files(), FILES):
            entries = [e for s in range(state.step, state.step + count) if (e := case.planned(s)) is not None]
            test = f"{path}, trained on for {len(entries)} steps"
            outcome = self.replay.walk(test, state, instead=entries)
            loaded = next((s for s in case.earlier if s.step == case.loaded_step), case.now)
            differing = out_of_proportion(loaded, state)
            trains = (
                bool(entries) and outcome.finite and not self._over_reference(outcome) and self._does_as_well(state)
            )
            names = [n for n, _ in differing]
            modules = {n.rpartition(".")[0] for n in names}
            owners = {component_of(n) for n in names}
            f.older_file = OlderFile(path, state.step, trains, outcome, differing)
            f.older_file.component = owners.pop() if len(owners) == 1 else None
            f.older_file.module = (modules.pop() or None) if len(modules) == 1 else None
            if trains:
                return

    def _does_as_well(self, older: Snapshot) -> bool:
        """Where only the first losses after the load are in doubt: the batch of the first, on the older weights."""
        jump, case = self.facts.measured.get("after_load"), self.case
        if jump is None or case.planned is None:
            return True
        first = case.planned(case.loaded_step or 0)
        if first is None:
            return False
        test = f"batch of step {first.step}, weights of step {older.step}, learning rate 0"
        batches = self.replay.batches_of(first)
        outcome = self.replay.run(test, batches=batches, snapshot=older, step=first.step)
        self.facts.outcomes["earlier"] = outcome
        return outcome.finite and abs(outcome.loss) <= math.sqrt(jump[0] * jump[1])

    def _over_reference(self, outcome: Outcome) -> bool:
        jump = self.facts.measured.get("after_load")
        if jump:
            # The loaded file trains, only far worse than before: the older one has to do as well as the run did.
            return any(abs(v) > math.sqrt(jump[0] * jump[1]) for _, v, _ in outcome.path)
        loss, norm = self.facts.limits()
        if not self.facts.reference.count:
            return abs(outcome.loss) > NO_HISTORY_LOSS
        return any(abs(v) > loss or not n <= norm for _, v, n in outcome.path)

    def lr(self) -> None:
        """From the newest healthy state; from an older one too where the answer is none, or doubtful."""
        f = self.facts
        first = self._start()
        older = [s for s in self.walkable() if first and s.step <= first.step]
        if older and self._shrinks(older[0]):
            return
        if f.own_leap or not self.walkable():
            self._refused_update()
            return
        # Where in doubt, from as far back as the tape goes: there the state is surely not part of the trouble.
        for start in dict.fromkeys([older[0].step, older[-1].step]) if older else []:
            start = next(s for s in older if s.step == start)
            order, known = self._order(), f.lr_verdict
            verdict = self._search(start, order, quick=known is not None)
            verdict.doubtful = self._doubtful(verdict)
            if verdict.sufficient and verdict.doubtful and order[0] not in verdict.components:
                verdict = self._expected(start, order, verdict)
            if known is None or not known.sufficient or (verdict.sufficient and self._better(verdict, known, order)):
                f.lr_verdict = verdict
            if f.lr_verdict is not None and f.lr_verdict.sufficient and not f.lr_verdict.doubtful:
                break
        if f.lr_verdict is not None and f.lr_verdict.sufficient:
            self._endure(f.lr_verdict, next(s for s in older if s.step == f.lr_verdict.from_step))

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

    def _shrinks(self, start: Snapshot) -> bool:
        """Whether weight decay alone is to blame: no component's rate has to be lowered without it."""
        f = self.facts
        decay = f.settings.get("weight_decay")
        named = [c for c in self._order() if f.lr.get(c, 0.0) * float(decay or 0.0) > SHRINKS]
        if not named:
            return False
        beyond = self._beyond(start)
        ok, outcome = self._walker(start, beyond, weight_decay=DECAY)((), 1.0)
        if ok:
            trials = [LrTrial((), 1.0, ok, outcome, len(beyond))]
            f.lr_verdict = LrVerdict(named, start.step, 1.0, True, True, trials=trials, holds=1.0, weight_decay=DECAY)
        return ok

    def _expected(self, start: Snapshot, order: Sequence[str], verdict: LrVerdict) -> LrVerdict:
        """The component that moved most, lowered further, before one that hardly moved is named."""
        walk, factor = self._walker(start), min(FURTHER, verdict.factor)
        for lowered, wanted in ((order[:1], True), (order[1:], False)):
            ok, outcome = walk(lowered, factor)
            verdict.trials.append(LrTrial(tuple(lowered), factor, ok, outcome))
            if ok != wanted:
                return verdict
        return LrVerdict([order[0]], start.step, factor, True, True, trials=verdict.trials)

    def _endure(self, verdict: LrVerdict, start: Snapshot) -> None:
        """How much has to be lowered for training to hold past the failing step, not only up to it.

        What is proved first, by itself; then with the components beside it that learn as fast, or faster. Of what
        holds, more is lowered where more is learned so: a walk may stay bounded and be a wild one all the same.
        """
        beyond = self._beyond(start)
        if not beyond or self.replay.out_of_steps:
            return
        walk, named, last = self._walker(start, beyond), verdict.components, len(beyond)

        def reached(also: Sequence[str], factor: float) -> float:
            ok, outcome = walk([*named, *also], factor)
            ok = ok and not climbing(outcome, last)
            verdict.trials.append(LrTrial((*named, *also), factor, ok, outcome, last))
            return level(outcome, last) if ok else math.inf

        beside = self._beside(named)
        steps = [3 * verdict.factor, verdict.factor]
        tries = [([], s) for s in steps] + ([(beside, s) for s in steps] if beside else [])
        tries.append((beside, verdict.factor * LOWER))
        for verdict.also, verdict.holds in tries:
            best = reached(verdict.also, verdict.holds)
            if best < math.inf:
                self._settle(verdict, beside, best, reached)
                return

    def _settle(
        self, verdict: LrVerdict, beside: list[str], best: float, reached: Callable[[Sequence[str], float], float]
    ) -> None:
        """From what holds to what learns more: the components beside it along, then lower rates, while it pays."""
        assert verdict.holds is not None
        if beside and not verdict.also and not self.replay.out_of_steps:
            lost = reached(beside, verdict.holds)
            if lost < BETTER * best:
                verdict.also, best = beside, lost
        while verdict.holds > LEAST and not self.replay.out_of_steps:
            lost = reached(verdict.also, verdict.holds * LOWER)
            if lost >= BETTER * best:
                return
            verdict.holds, best = verdict.holds * LOWER, lost

    def _beside(self, named: Sequence[str]) -> list[str]:
        lr = self.facts.lr
        least = 0.5 * max(lr.get(c, 0.0) for c in named)
        return [c for c in self._order() if c not in named and lr.get(c, 0.0) >= least > 0]

    def _beyond(self, start: Snapshot) -> list[TapeEntry]:
        """Steps to follow the failing one: recorded batches over again, with learning rates as they would go on.

        A linear warm-up goes on rising to the planned rates.
        """
        f, recorded = self.facts, self.replay.entries(start.step)
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
        return factors_for(max(self.facts.rises.values(), default=1.0))

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
        self, start: Snapshot, beyond: Sequence[TapeEntry] = (), weight_decay: float | None = None
    ) -> Callable[[Sequence[str], float], tuple[bool, Outcome]]:
        f = self.facts
        loss, norm = self._bounds()

        def over(o: Outcome) -> bool:
            return not o.finite or abs(o.loss) > loss or o.grad_norm > norm

        def walk(lowered: Sequence[str], factor: float) -> tuple[bool, Outcome]:
            test = f"steps {start.step} to {f.step}, lr of {', '.join(lowered)} × {factor:g}"
            factors = dict.fromkeys(lowered, factor)
            outcome = self.replay.walk(
                test, start, lr_factor=factors, stop=over, beyond=beyond, weight_decay=weight_decay
            )
            return not over(outcome), outcome

        return walk

    def _bounds(self) -> tuple[float, float]:
        """(loss, norm) between the healthy medians and what the run reached, on a logarithmic scale."""
        f = self.facts
        if f.reference.count == 0:
            start = f.outcomes.get("earlier") or f.outcomes.get("same")
            loss, norm = (abs(start.loss), start.grad_norm) if start and start.finite else (math.inf, math.inf)
        else:
            loss, norm = f.reference.loss, f.reference.norm
        base = f.outcomes.get("retrace")
        if base is not None and (f.healthy_retrace() or f.own_leap):
            base = None  # what the run reached was not these steps' doing: it says nothing about what is too far
        peak_loss = max([abs(v) for _, v, _ in base.path] or [math.inf]) if base and base.finite else math.inf
        peak_norm = max([v for _, _, v in base.path] or [math.inf]) if base and base.finite else math.inf
        # The first steps of a run are louder than its median, and walks begin there.
        loud = [r for r in self.case.history if r.applied and r.step < f.onset_step]
        loudest_loss = max([abs(r.loss) / loss for r in loud if math.isfinite(r.loss)] or [0.0])
        loudest_norm = max([r.grad_norm / norm for r in loud if math.isfinite(r.grad_norm)] or [0.0])
        bound = between(norm, peak_norm, max(8.0, loudest_norm))
        bound_loss = between(loss, peak_loss, max(4.0, loudest_loss))
        # What the last healthy steps had is not too far, unless the run itself went hardly further.
        for r in loud[-WALK:]:
            bound_loss = max(bound_loss, min(abs(r.loss), USUAL * peak_loss)) if math.isfinite(r.loss) else bound_loss
            bound = max(bound, min(r.grad_norm, USUAL * peak_norm)) if math.isfinite(r.grad_norm) else bound
        if base is not None and peak_norm <= NORM_FACTOR * norm and peak_loss > LOSS_FACTOR * loss:
            bound = math.inf  # the run's own gradients stayed usual: what went too far is its loss
        if self.case.rig.norms_clipped and self.case.rig.max_grad_norm:
            bound = math.inf  # a norm that is cut off at the top says nothing of how far it went
        return max(bound_loss, self._still[0]), max(bound, self._still[1])

    def _louder(self, start: Snapshot) -> bool:
        """Whether healthy weights that stand still are louder than the bounds allow; raises those, once."""
        if any(self._still):
            return False
        test = f"steps {start.step} to {self.facts.step}, learning rate 0"
        outcome = self.replay.walk(test, start, lr_factor=dict.fromkeys(self._order(), 0.0))
        self._still = louder(outcome, self._bounds(), self.facts.outcomes.get("retrace"))
        return any(self._still)

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
        taken = [bool(self.replay.entries(s.step)) for s in self.walkable()]
        return ({"retrace"} if taken else set()) | ({"lr"} if any(taken) else set())

    def walkable(self) -> list[Snapshot]:
        older = [s for s in self.case.earlier if s.step < self.facts.step]
        return [s for s in older if self.facts.step - s.step <= WALK and self.replay.covers(s.step)]
