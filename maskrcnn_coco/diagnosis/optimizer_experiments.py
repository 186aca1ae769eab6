"""The tests of what the optimizer makes of sound gradients: its update, with another state, with usual settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from maskrcnn_coco.components import is_possible
from maskrcnn_coco.diagnosis.facts import LEAP, Facts, StateFault
from maskrcnn_coco.diagnosis.limits import NO_STATE
from maskrcnn_coco.diagnosis.lr_verdict import LrVerdict
from maskrcnn_coco.diagnosis.search import lr_search
from maskrcnn_coco.replay.optimizer import classes_of, usual_settings
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.replay.replay import Replay
from maskrcnn_coco.replay.snapshot import Snapshot

HALF_EPS = 1e-4
"""What half precision holds beside the roots of its squares: the usual 1e-8 is 0 there."""
SOUND_LENGTH = 0.12
"""‖update‖ / ‖weights‖ that healthy steps stay below."""
THROWN = 1.0
"""The same of a step that throws weights about, however far it was meant to go."""
TENFOLD = 10.0
"""A factor that is lower than it need be is raised by so much at a time."""
SETTINGS = 6
"""Most settings that are tried, one after the other."""
SLOWER = 1e-3
"""What is not finite at so much of the rate either is no doing of the rate's."""
OF_NO_MATTER = {"lr", "foreach", "fused", "maximize", "capturable", "differentiable"}
"""Settings that have no usual value, or say how an update is computed, not what it is."""


class OptimizerExperiments:
    """Tests of one case."""

    def __init__(self, replay: Replay, facts: Facts) -> None:
        self.replay, self.facts = replay, facts

    def update(self) -> None:
        """The failing step with its update."""
        f = self.facts
        f.outcomes["update"] = self.replay.update("same batch, same weights, and the optimizer's update", f.lr)

    def planned(self) -> None:
        """The refused update as it would have been, and at the rates of the plan."""
        f, lr = self.facts, dict(self.facts.lr)
        f.outcomes["update"] = self.replay.update("same batch, same weights, and the update at the rates it had", lr)
        lr |= {name: planned for name, (planned, _) in f.measured["foreign"].items()}
        f.outcomes["planned"] = self.replay.update("same batch, same weights, and the update at the plan's rates", lr)

    def state(self, healthy: Snapshot | None) -> None:
        """The update with the optimizer's state of some steps before, then with none at all, until one is sound."""
        f = self.facts
        tries = [(f"optimizer state of step {healthy.step}", healthy)] if healthy is not None else []
        for what, snapshot in [*tries, (NO_STATE, None)]:
            test = f"same batch, same weights, {what}, and the update"
            f.outcomes["state"] = self.replay.update(test, f.lr, snapshot, empty=snapshot is None)
            if f.state_to_blame():
                return

    def _groups(self) -> list[dict[str, Any]]:
        return self.replay.case.now.optimizer.get("param_groups", [])

    def refused(self, known: Sequence[StateFault]) -> list[StateFault]:
        """Settings that the optimizer's own constructor would not take, beside those that are ``known``."""
        named = {s.name for s in known if s.where == "lr"}
        found: list[StateFault] = []
        if self.facts.symptom == "diverged":
            return found  # what it did may be in the state too: that steps are sound without it is shown first
        for group, kind in zip(self._groups(), classes_of(self.replay.optimizer), strict=False):
            component = group.get("component")
            for key, said in _not_taken(kind, group).items():
                name = f"{key} of {component}"
                if name not in named:
                    found.append(StateFault("lr", name, f"{key} is {group[key]}: {said}", component))
        return found

    def last_possible(self, healthy: Snapshot | None) -> None:
        """Of settings that the scan calls impossible: what a sound step had, else what the class has by itself."""
        f, optimizer = self.facts, self.replay.optimizer
        wrong = {s.name.partition(" of ")[0] for s in f.state if s.where == "lr"}
        groups = healthy.optimizer.get("param_groups", []) if healthy is not None else []
        given = [usual_settings(classes_of(optimizer)[0]), *groups[:1]]
        for key in wrong - {"lr"}:
            values = [g[key] for g in given if key in g]
            bad = [g.get(key) for g in self._groups()]
            sound = [v for v in values if (_are_betas(v) if key == "betas" else is_possible(v)) and v not in bad]
            f.usual.update({key: sound[-1]} if sound else {})
        if "lr" in wrong and f.usual_lr:
            f.usual["lr"] = dict(f.usual_lr)

    def settings(self) -> None:
        """An update of finite numbers that was not finite, with each setting as its class has it by itself."""
        f, optimizer = self.facts, self.replay.optimizer
        kind = type(optimizer).__name__
        halved = [g["eps"] for g in optimizer.param_groups if _lost_in_half(g)]
        tries = [("eps", (halved[0], HALF_EPS))] if halved else []
        for key, (given, usual) in [*tries, *_unusual(optimizer).items()][:SETTINGS]:
            test = f"same batch, same weights, {key} {usual} in place of {given}, and the update"
            outcome = self.replay.update(test, f.lr, settings={key: usual})
            if outcome.finite and not outcome.error and (outcome.moved or 0.0) <= LEAP:
                f.outcomes["settings"], f.usual = outcome, {key: usual}
                what = f"{key} is {given}: the update is not finite, and with {usual} it is"
                f.state.append(StateFault("lr", f"{key} of {kind}", what))
                return
        slower = {component: SLOWER * rate for component, rate in f.lr.items()}
        test = f"same batch, same weights, every learning rate × {SLOWER:g}, and the update"
        f.outcomes["slower"] = self.replay.update(test, slower)


def by_length(replay: Replay, facts: Facts, order: Sequence[str], factors: Sequence[float]) -> LrVerdict | None:
    """Whose rate a refused update is too long for, measured of the update alone; None: it is not the rates' doing.

    A loss that does not feel how long weights are (of angles, behind norms) is as good after it as before. An optimizer
    without a state that puts weights back where they may be (on a ball) takes no step of any length: there it is enough
    that one throws them by more than their norm.
    """

    def taken(lowered: Sequence[str], factor: float) -> tuple[bool, Outcome]:
        lr = {c: v * (factor if c in lowered else 1.0) for c, v in facts.lr.items()}
        test = f"same batch, same weights, and the update, lr of {', '.join(lowered)} × {factor:g}"
        outcome = replay.update(test, lr)
        return outcome.finite and not outcome.error and (outcome.moved or 0.0) <= SOUND_LENGTH, outcome

    anew = replay.update(f"same batch, same weights, {NO_STATE}, and the update", facts.lr, empty=True)
    least = LEAP if replay.optimizer.state else THROWN
    if taken((), 1.0)[0] or (anew.moved or 0.0) <= least:
        return None
    found = lr_search(taken, order, facts.step, factors=factors)
    while found.sufficient and TENFOLD * found.factor < 1.0 and taken(found.components, TENFOLD * found.factor)[0]:
        found.factor *= TENFOLD  # the last factor is for a step as long as the guard thought possible
    return found


def _are_betas(value: Any) -> bool:
    return isinstance(value, tuple) and all(is_possible(b, below=1.0) for b in value)


def _lost_in_half(group: dict[str, Any]) -> bool:
    eps = group.get("eps")
    return isinstance(eps, (int, float)) and eps < HALF_EPS and any(p.dtype is torch.float16 for p in group["params"])


def _unusual(optimizer: Any) -> dict[str, tuple[Any, Any]]:
    """Setting → (as the first group that has its own has it, as the class has it)."""
    found: dict[str, tuple[Any, Any]] = {}
    for group, kind in zip(optimizer.param_groups, classes_of(optimizer), strict=True):
        usual = usual_settings(kind)
        for key in usual.keys() & group.keys() - OF_NO_MATTER:
            given = tuple(group[key]) if isinstance(group[key], list) else group[key]
            if isinstance(given, (int, float, tuple)):
                found.update({key: (given, usual[key])} if given != usual[key] else {})
    return dict(sorted(found.items()))


def _not_taken(kind: type[torch.optim.Optimizer], group: dict[str, Any]) -> dict[str, str]:
    """Setting → what the constructor of ``kind`` says of it; empty where it takes them all, or takes none at all."""
    given = {k: group[k] for k in usual_settings(kind).keys() & group.keys() - OF_NO_MATTER}
    refused: dict[str, str] = {}
    if _said(kind, {}) is None and _said(kind, given) is not None:
        for key in sorted(given):
            said = _said(kind, {key: given[key]})
            refused.update({key: said} if said is not None else {})
    return refused


def _said(kind: type[torch.optim.Optimizer], settings: dict[str, Any]) -> str | None:
    try:
        kind([torch.nn.Parameter(torch.zeros(2, 2))], **settings)
    except ValueError as e:
        return str(e)[:120]
    except Exception:  # a class of somebody's own that wants more than its groups hold
        return None
    return None
