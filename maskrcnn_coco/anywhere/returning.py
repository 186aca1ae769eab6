"""Rates that were lowered in a loop with a schedule of its own, and how they come back.

What was too high is an absolute rate, and a spike may be over. So a rate comes back where the schedule itself has
brought it well below what held; and, at intervals that double, where a private copy trains on at the schedule's own
rates as well as the training itself does at the lowered ones. Steps are counted, not seconds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

from maskrcnn_coco.anywhere.cases import case_of
from maskrcnn_coco.anywhere.lowering import rates_back
from maskrcnn_coco.components import real
from maskrcnn_coco.diagnosis.rates_again import FEWEST, stand
from maskrcnn_coco.guard.hooks import Deafness
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.recovery import HOLD_LEAST, LAPSES
from maskrcnn_coco.replay.isolation import untouched

RISES = 2.0
"""A rate that is so many times the one which it leapt from, at most, leaps no more."""


class Returning:
    """Gives back lowered rates.

    Args:
        known: an `AlarmResponder`.
    """

    def __init__(self, known: Any) -> None:
        self.known = known
        self.since = 0
        """The first step after a rate was lowered last."""
        self.asked = 0
        """The step at which the return was asked for last."""
        self.wait = HOLD_LEAST
        """Steps from there to the next time."""
        self.lapses = 0
        """How often a rate had to be lowered again after it was given back."""
        self.leapt: set[str] = set()
        """Groups that are held to the rate which they leapt from."""
        self.proved = False
        """Whether any was proved to be too high."""
        self.times = 1.0
        """How many times as long as their loss makes them the loop made gradients, when it was answered last."""
        self.longest = math.inf
        """Above this norm they surely are; no copy need be asked."""
        self._gave = False

    def lowered(self, step: int, detail: Mapping[str, Any], *, proved: bool) -> None:
        """A rate was lowered at ``step``: where it had come back, that was too early, and the next wait is longer."""
        self.lapses, self._gave = self.lapses + self._gave, False
        self.leapt |= set(detail.get("most") or {})
        if times := detail.get("multiplied"):
            self.times, self.longest = float(times), self.known.history[-1].grad_norm / math.sqrt(times)
        self.proved = self.proved or proved
        self.since = self.asked = step + 1
        self.wait = HOLD_LEAST * 2**self.lapses

    def by_schedule(self, step: int) -> None:
        """After ``step``: what the schedule has brought below what held is lowered no more."""
        lowered = self.known.guard.instruments.lowered
        if lowered.factors:
            self._note(rates_back(lowered, self._own(), self.known.held), step)

    def before(self, step: int) -> None:
        """At the start of planned step ``step``: ask for the return, where it is due."""
        lowered = self.known.guard.instruments.lowered
        if not (lowered.factors or lowered.limits):
            return
        self._follow()
        if self.lapses >= LAPSES:
            return
        if step - self.asked < self.wait or step - self.since < FEWEST:
            return
        if median(r.grad_norm for r in self.known.history[-FEWEST:]) > self.longest:
            return
        own = self._own()
        names = [name for name in own if lowered.share(name, own[name]) < 1.0]
        if not names or self.known.guard.immediate.team is not None:  # all processes would have to agree
            return
        self.asked, self.wait = step, 2 * self.wait
        if self._stand(step, own):
            for name in names:
                lowered.give_back(name)
            self.known.guard.instruments.divergence.watch()
            self._gave, self.proved, self.times, self.longest = True, False, 1.0, math.inf
            self._note(names, step)

    def _follow(self) -> None:
        """A schedule that rises by and by, or begins anew where it was, is no leap: what it is held to rises along."""
        limits, own = self.known.guard.instruments.lowered.limits, self._own()
        for name in self.leapt & own.keys():
            most = limits.get(name, {}).get("lr")
            if most is not None and most < own[name] <= RISES * most:
                limits[name]["lr"] = own[name]

    def _stand(self, step: int, own: dict[str, float]) -> bool:
        known = self.known
        try:
            case = case_of(known, Alarm("diverged", step, 0, step, "", {}))
            with Deafness.deaf(), untouched(known.model, case.now):
                return stand(case, lambda _: own, self.since, proved=self.proved, times=self.times)
        except Exception:  # what cannot be asked stays as it is
            return False

    def _own(self) -> dict[str, float]:
        """The learning rates that the loop's own schedule has set."""
        known = self.known
        groups = known.guard.optimizer.param_groups
        return {name: real(g.get("lr") or 0.0) for name, g in zip(known.groups.names, groups, strict=True)}

    def _note(self, names: list[str], step: int) -> None:
        """Say in the incident that lowered a rate since when it is back."""
        for name in names:
            lowering = (i for i in reversed(self.known.incidents) if name in i.action.detail.get("components", ()))
            incident = next(lowering, None)
            if incident is not None:
                incident.detail.setdefault("rates_back", {})[name] = step

    def state_dict(self) -> dict[str, Any]:
        """Plain data; no step's number, as a resumed loop counts anew."""
        kept = {"wait": self.wait, "lapses": self.lapses, "gave": self._gave, "proved": self.proved}
        return {**kept, "leapt": sorted(self.leapt), "times": self.times}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; of a state from before there was any, nothing."""
        self.wait, self.lapses = int(state.get("wait", HOLD_LEAST)), int(state.get("lapses", 0))
        self._gave, self.leapt = bool(state.get("gave", False)), set(state.get("leapt", ()))
        self.proved, self.times = bool(state.get("proved", True)), float(state.get("times", 1.0))
        self.since = self.asked = self.known.guard.next_step
