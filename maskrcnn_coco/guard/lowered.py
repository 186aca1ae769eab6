"""What recovery changed of an optimizer's settings: in force during a step alone, never seen by the loop."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from maskrcnn_coco.components import is_possible, sound_value, times_of


def hold_kept_rates(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Let no rate that ASGD worked out for this step, at the one before, be above that of its group."""
    if isinstance(optimizer, torch.optim.ASGD):
        for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
            state["eta"].clamp_(max=float(group["lr"]))


class Lowered:
    """Rates and settings of an optimizer's parameter groups that were decided on, by the groups' names.

    Attributes:
        factors: group → what its learning rate is multiplied by at each step.
        limits: group → setting ("lr", "weight_decay", "momentum") → the most that it may be, after the factor; of a
            group that has a multiple of its component's rate, that multiple of it.
        usual: setting → what each group that has it gets in place of its own, which was proved wrong; a mapping: by
            the groups' names. "lr": only while a group's own is impossible: a schedule may come to its senses.
    """

    def __init__(self) -> None:
        self.factors: dict[str, float] = {}
        self.limits: dict[str, dict[str, float]] = {}
        self.usual: dict[str, Any] = {}

    def __bool__(self) -> bool:
        """Whether anything was decided on."""
        return bool(self.factors or self.limits or self.usual)

    def limit(self, name: str, setting: str, most: float) -> None:
        """Let ``setting`` of group ``name`` be at most ``most`` from here on, or less where it was limited to less."""
        known = self.limits.setdefault(name, {})
        known[setting] = min(most, known.get(setting, most))

    def share(self, name: str, rate: float) -> float:
        """What is in force of the ``rate`` that group ``name`` has of its own, in (0, 1]."""
        most = self.limits.get(name, {}).get("lr", rate)
        return min(rate * self.factors.get(name, 1.0), most) / rate if rate > 0 else 1.0

    def give_back(self, name: str) -> None:
        """Let group ``name`` have the rate of its own again."""
        self.factors.pop(name, None)
        self.limits.get(name, {}).pop("lr", None)

    @contextlib.contextmanager
    def in_force(self, optimizer: torch.optim.Optimizer, names: list[str]) -> Iterator[None]:
        """Inside, the groups of ``optimizer``, named ``names`` in order, have what was decided on."""
        changed: list[tuple[dict[str, Any], dict[str, Any]]] = []
        for group, name in zip(optimizer.param_groups, names, strict=False):
            keys = ("lr", *self.usual, *self.limits.get(name, {}))
            before = {k: group[k] for k in keys if group.get(k) is not None}
            now = {k: sound_value(self.usual.get(k, v), name, v) for k, v in before.items()}
            if "lr" in before:
                held = self.usual.get("lr", {}).get(name, before["lr"])
                now["lr"] = (before["lr"] if is_possible(before["lr"]) else held) * self.factors.get(name, 1.0)
            share = {"lr": times_of(group)}
            limits = {k: most * share.get(k, 1.0) for k, most in self.limits.get(name, {}).items()}
            now = {k: min(v, limits.get(k, v)) for k, v in now.items()}
            if now != before:
                changed.append((group, before))
                group.update(now)
                hold_kept_rates(optimizer, group)
        try:
            yield
        finally:
            for group, before in changed:
                group.update(before)
