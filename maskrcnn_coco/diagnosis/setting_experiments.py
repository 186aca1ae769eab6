"""The tests of settings beside the rate: the last steps taken again with one of them as it was, or as it usually is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.components import forgets_squares
from maskrcnn_coco.diagnosis.comparisons import climbing, level
from maskrcnn_coco.diagnosis.facts import LEAP, Facts
from maskrcnn_coco.diagnosis.from_records import beyond_sense
from maskrcnn_coco.diagnosis.limits import SOUND
from maskrcnn_coco.diagnosis.lr_verdict import LrTrial, LrVerdict
from maskrcnn_coco.diagnosis.optimizer_experiments import SOUND_LENGTH
from maskrcnn_coco.diagnosis.search import FACTORS, Walk
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.optimizer import classes_of, names_of, setting_names, settings_of, usual_settings
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.replay.snapshot import Snapshot

Past = Callable[[Snapshot, dict[str, float], dict[str, Any]], tuple[Walk, int]]
SETTLED = 3
"""Steps with another value that a setting had before make that one a usual one."""
MORE = 0.7
"""Losses that are lower than this share of those at lower rates: much more is learned."""
SHARE = 0.5
"""Share of the steps for replays that may be spent before what is unusual is tried: rates are to be tried too."""
SHAPES = {"history_size", "max_iter", "max_eval", "ns_steps"}
"""Settings that the optimizer's state has its form of, or that say how much work a step is."""
MOST = 4
"""Most settings that are tried, one after the other."""


@dataclass
class Odd:
    """A setting of some groups that is not what it was, or not what its class has by itself; by components."""

    name: str
    given: dict[str, Any] = field(default_factory=dict)
    sound: dict[str, Any] = field(default_factory=dict)
    since: int | None = None
    """The first step with it; None: from the start."""


class SettingExperiments:
    """Tests over the tape of one case.

    Args:
        past: (state to start from, rates no higher than these, settings in place of those of then) → the walk over the
            recorded steps and those to follow, and how many those are.
    """

    def __init__(self, case: Case, replay: Replay, facts: Facts, past: Past) -> None:
        self.case, self.replay, self.facts, self.past = case, replay, facts, past

    def verdict(self, older: Sequence[Snapshot], order: Sequence[str]) -> LrVerdict | None:
        """Where one setting alone is to blame, and no rate has to be lowered without it. ``older``: newest first."""
        found = next((v for state in older if (v := self._beyond_sense(state, order))), None)
        if found is not None:
            return found
        if self.facts.own_leap:
            return self._by_length()
        odd = self._odd()
        for one in [o for o in odd if o.since is not None]:
            for state in [s for s in older if s.step <= int(one.since or 0)] or older[:1]:
                if found := self._with(state, one):
                    return found
        unusual = [o for o in odd if o.since is None]
        for state in [*older[:1], *older[1:][-1:]] if unusual else []:
            if self.replay.steps > SHARE * self.replay.most_steps:
                break
            if found := self._by_itself(state, order, unusual):
                return found
        return None

    def _beyond_sense(self, start: Snapshot, order: Sequence[str]) -> LrVerdict | None:
        """A decay that eats the weights, a momentum that forgets nothing."""
        f, groups = self.facts, self._groups()
        now = settings_of(self.case.now.optimizer.get("param_groups", []))
        steps = [(e.lr, e.settings) for e in self.case.entries(start.step) if e.settings is not None]
        for name, most in SOUND.items():
            absurd = beyond_sense(name, [*steps, (f.lr, now)], groups)
            named = [c for c in order if c in absurd]
            if not named:
                continue
            walk, last = self.past(start, {}, {name: most})
            ok, outcome = walk((), 1.0)
            if ok:
                trial = LrTrial((), 1.0, ok, outcome, last, what=f"{name.replace('_', ' ')} {most:g}")
                verdict = LrVerdict(named, start.step, 1.0, True, True, trials=[trial], holds=1.0)
                verdict.settings = {name: most}
                return verdict
        return None

    def _by_itself(self, start: Snapshot, order: Sequence[str], odd: Sequence[Odd]) -> LrVerdict | None:
        """What was unusual from the start is to blame only where rates that are a tenth are too high with it as well,
        or where much more is learned without it.

        Else either would do, and the rate is what people look for first.
        """
        walk, last = self.past(start, {}, {})
        ok, outcome = walk(order, FACTORS[0])
        slower = LrTrial(tuple(order), FACTORS[0], ok and not climbing(outcome, last), outcome, last)
        for one in odd[:MOST]:
            found = self._with(start, one)
            if found is not None and slower.bounded and last:
                found = found if level(found.trials[0].outcome, last) < MORE * level(outcome, last) else None
            if found is not None:
                found.trials.append(slower)
                return found
        return None

    def _by_length(self) -> LrVerdict | None:
        """The refused update with a setting as it was before: of a sound length, and it is not else."""
        f = self.facts
        changed = [o for o in self._odd() if o.since is not None]
        if not changed:
            return None
        own = self.replay.update("same batch, same weights, and the update", f.lr)
        for odd in changed if not own.finite or (own.moved or 0.0) > LEAP else []:
            value = next(iter(odd.sound.values()))
            what = f"{odd.name.replace('_', ' ')} {value}"
            test = f"same batch, same weights, {what}, and the update"
            outcome = self.replay.update(test, f.lr, settings={odd.name: odd.sound})
            if outcome.finite and not outcome.error and (outcome.moved or 0.0) <= SOUND_LENGTH:
                verdict = LrVerdict(list(odd.sound), f.step, 1.0, True, True, holds=1.0, since=odd.since)
                verdict.trials, verdict.settings = [LrTrial((), 1.0, True, outcome, what=what)], {odd.name: odd.sound}
                return verdict
        return None

    def _with(self, start: Snapshot, odd: Odd) -> LrVerdict | None:
        if self.replay.out_of_steps:
            return None
        walk, last = self.past(start, {}, {odd.name: odd.sound})
        ok, outcome = walk((), 1.0)
        if not ok or climbing(outcome, last):
            return None
        value = next(iter(odd.sound.values()))
        trial = LrTrial((), 1.0, ok, outcome, last, what=f"{odd.name.replace('_', ' ')} {value}")
        verdict = LrVerdict(list(odd.sound), start.step, 1.0, True, True, trials=[trial], holds=1.0)
        verdict.settings, verdict.since = {odd.name: odd.sound}, odd.since
        return verdict

    def _groups(self) -> list[str]:
        return names_of(self.replay.optimizer)

    def _odd(self) -> list[Odd]:
        """What changed first."""
        optimizer, found = self.replay.optimizer, dict[tuple[str, int | None], Odd]()
        now = settings_of(self.case.now.optimizer.get("param_groups", []), setting_names(optimizer))
        tape = [e for e in self.case.tape if e.settings is not None and e.step < self.facts.step]
        for i, (component, kind) in enumerate(zip(self._groups(), classes_of(optimizer), strict=True)):
            usual = usual_settings(kind)
            before = [(e.step, e.settings[i]) for e in tape if e.settings is not None and i < len(e.settings)]
            for name, given in now[i].items() if i < len(now) else ():
                if isinstance(given, bool) or name in SHAPES:
                    continue
                had = [(step, held[name]) for step, held in before if name in held]
                if leapt := _leapt(had, given):
                    since, sound = leapt
                elif _strange(name, now[i], usual) and all(_alike(v, given) for _, v in had):
                    since, sound = None, usual[name]
                else:
                    continue
                odd = found.setdefault((name, since), Odd(name, since=since))
                odd.given[component], odd.sound[component] = given, sound
        return sorted(found.values(), key=lambda o: (o.since is None, o.name))


def _leapt(had: Sequence[tuple[int, Any]], given: Any) -> tuple[int, Any] | None:
    """(step, value until then) where a setting that stood still became ``given`` at once; a schedule's does not."""
    until = list(_while_alike(had))
    rest = had[len(until) :]
    if len(until) < SETTLED or not all(_alike(v, given) for _, v in rest) or _alike(until[-1][1], given):
        return None
    return (rest[0][0] if rest else until[-1][0] + 1), until[-1][1]


def _while_alike(had: Sequence[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    for step, value in had:
        if not _alike(value, had[0][1]):
            return
        yield step, value


def _alike(a: Any, b: Any) -> bool:
    a, b = (tuple(v) if isinstance(v, list) else v for v in (a, b))
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def _strange(name: str, group: dict[str, Any], usual: dict[str, Any]) -> bool:
    """Whether a setting is none that its class has by itself, nor one that people have for good reasons."""
    if name not in usual or name in SOUND or isinstance(group[name], str):
        return False
    if usual[name] is None or _alike(group[name], usual[name]):  # what has no default is worked out from others
        return False
    return name != "betas" or forgets_squares(group)
