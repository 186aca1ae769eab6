"""What a loop is given: a guard or none, and the fault of this run at one step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco import attach

AT = 40
"""The step at which a fault comes."""
ROW = 5
"""The sample of the batch that is the bad one."""
FASTER = 1000.0
"""Times the learning rates, from `AT` on, for a divergence."""
HUGE = 1e5
"""Times the values of the bad sample, all of them finite."""
WILD = 1e6
"""Times all of the optimizer's state."""
FAULTS = ("none", "nan_sample", "huge_sample", "nan_gradient", "nan_loss", "fast", "nan_state", "wild_state")


@dataclass
class Watched:
    """One guard of a loop, and what was true of its model when it refused."""

    guard: Any
    model: nn.Module
    optimizers: list[torch.optim.Optimizer]
    before: list[Tensor] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    """Steps that the guard had seen at the begin of each of the loop's."""

    def turn(self, step: int) -> int:
        """The first step of the loop from ``step`` on in which this guard's optimizer was asked to step."""
        later = range(step, len(self.turns) - 1)
        return next((s for s in later if self.turns[s + 1] > self.turns[s]), step)


class Run:
    """One run of a loop: ``guard`` puts a guard behind it, ``steps`` counts, ``data`` and ``see`` bring the fault.

    Args:
        fault: one of `FAULTS`.
        system: "attach", "diagnose", or "plain".
        steps: how many steps the loop takes.
    """

    def __init__(self, fault: str, *, system: str = "attach", steps: int = 80) -> None:
        self.fault, self.system, self.count = fault, system, steps
        self.step = -1
        self.watched: list[Watched] = []
        self.models: list[tuple[nn.Module, list[torch.optim.Optimizer]]] = []
        self.losses: list[float] = []
        self.poisoned = False
        self.id: int | None = None
        self._seen = itertools.count()
        self._hooks: list[Any] = []
        self._rates: dict[int, Any] = {}

    # --- called by a loop

    def guard(
        self,
        model: nn.Module,
        optimizer: Any,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        **options: Any,
    ) -> Any:
        """The guard behind ``optimizer``; None where the loop runs plain."""
        optimizers = [optimizer] if isinstance(optimizer, torch.optim.Optimizer) else list(optimizer)
        self.models.append((model, optimizers))
        if self.system == "plain":
            return None
        if self.system == "diagnose" and forward is not None and len(optimizers) == 1:
            options |= {"diagnose": True, "forward": forward, "logdir": None}
        holder: list[Watched] = []
        guard = attach(model, optimizer, on_alarm=lambda alarm: self._refused(holder[0], alarm), **options)
        holder.append(Watched(guard, model, optimizers))
        self.watched.append(holder[0])
        return guard

    def steps(self) -> Iterator[int]:
        """The steps of the run; a fault is prepared at `AT`."""
        for step in range(self.count):
            self.step = step
            self._begin()
            yield step
            for hook in self._hooks:
                hook.remove()
            self._hooks = []

    def data(self, guard: Any, batch: Any) -> Any:
        """``batch`` as the loop gets it: one bad sample where that is the fault. Shown to a guard that diagnoses."""
        first = next(self._seen)
        if self.step == AT and self.fault in ("nan_sample", "huge_sample") and not self.poisoned:
            batch, self.poisoned = _poison(batch, math.nan if self.fault == "nan_sample" else HUGE)
        if guard is not None and hasattr(guard, "batch"):
            size = len(batch[0] if isinstance(batch, (tuple, list)) else next(iter(batch.values())))
            ids = [1000 * first + i for i in range(size)]
            if self.poisoned and self.id is None and self.step == AT:
                self.id = ids[ROW]
            guard.batch(batch, ids)
        return batch

    def see(self, guard: Any, loss: Any) -> Any:
        """The loss as it is trained on."""
        if self.step == AT and self.fault == "nan_loss" and isinstance(loss, Tensor):
            loss, self.poisoned = loss * math.nan, True
        if isinstance(loss, Tensor):
            self.losses.append(float(loss.detach().float().mean()))
        return loss if guard is None else guard.see(loss)

    # --- what is looked at

    def _begin(self) -> None:
        if self.step == AT and self.fault == "nan_state":
            held = [v for _, optimizers in self.models[-1:] for v in _states(optimizers) if v.ndim and v.numel() > 1]
            for v in held[:1]:
                v[(0,) * v.ndim], self.poisoned = math.nan, True
        if self.step == AT and self.fault == "wild_state":
            for v in (v for _, os in self.models[-1:] for v in _states(os) if v.is_floating_point() and v.numel() > 1):
                v.mul_(WILD)
                self.poisoned = True
        for each in self.watched:
            each.turns.append(len(each.guard.records))
            each.before = state_of(each.model, each.optimizers) if self.step >= AT or self.fault == "none" else []
        if self.step == AT and self.fault == "nan_gradient":
            for model, _ in self.models:
                first = next(p for p in model.parameters() if p.requires_grad and not getattr(p, "unused", False))
                self._hooks.append(first.register_hook(self._spoilt))
        if self.step >= AT and self.fault == "fast":
            for group in (g for _, os in self.models for o in os for g in o.param_groups):
                rate = group["lr"]
                if rate is not None and self._rates.get(id(group)) != float(rate):
                    if isinstance(rate, Tensor):
                        rate.mul_(FASTER if id(group) not in self._rates else 1.0)
                    else:
                        group["lr"] = rate * FASTER
                    self._rates[id(group)] = float(group["lr"])

    def _spoilt(self, gradient: Tensor) -> Tensor:
        self.poisoned = True
        return gradient * math.nan

    def _refused(self, watched: Watched, alarm: Any) -> None:
        watched.refused.append((self.step, alarm.symptom))
        if watched.before and not same(watched.before, state_of(watched.model, watched.optimizers)):
            watched.touched.append(self.step)

    @property
    def finite(self) -> bool:
        """Whether every weight, buffer meant to be finite and optimizer state is, now."""
        states = self.fault != "nan_state"  # what was made NaN from outside stays so where nobody goes back
        return all(
            bool(torch.isfinite(t).all())
            for model, optimizers in self.models
            for t in (
                *(p for p in model.parameters() if not getattr(p, "unused", False)),
                *(_states(optimizers) if states else ()),
            )
            if t.is_floating_point() or t.is_complex()
        )


def _poison(value: Any, by: float) -> tuple[Any, bool]:
    """The nest with sample `ROW` of its first floating tensor times ``by``; whether there was one."""
    if isinstance(value, dict):
        pairs = list(value.items())
        done, found = _poison([v for _, v in pairs], by)
        return dict(zip([k for k, _ in pairs], done, strict=True)), found
    made, found = list(value), False
    for i, t in enumerate(made):
        if isinstance(t, Tensor) and (t.is_floating_point() or t.is_complex()) and t.ndim and len(t) > ROW:
            made[i] = t.clone()
            made[i][ROW] *= by
            found = True
            break
    return tuple(made) if isinstance(value, tuple) else made, found


def _states(optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    return [
        v
        for o in optimizers
        for e in o.state.values()
        if isinstance(e, dict)
        for v in e.values()
        if isinstance(v, Tensor)
    ]


def state_of(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[Tensor]:
    """Copies of every tensor that a step may change."""
    held = [*model.parameters(), *model.buffers(), *_states(optimizers)]
    held += [v for o in optimizers for g in o.param_groups for v in g.values() if isinstance(v, Tensor)]
    return [t.detach().clone() for t in held]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    """Bit for bit, NaN where NaN was."""
    return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if not (a.is_floating_point() or a.is_complex()):
        return torch.equal(a, b)
    return bool(((a == b) | (a.isnan() & b.isnan())).all())
