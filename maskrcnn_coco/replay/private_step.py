"""The optimizer's step on the private copy: from the gradients as they stand, or with a closure as the run has one.

An optimizer that is handed a closure evaluates the loss within its step as often as it likes (LBFGS, SAM): each time
the forward and backward pass of the step's own batch, clipped as the run clips.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.guard import optimizer_step
from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.replay.outcome import Outcome


class _NotFinite(Exception):
    """An evaluation within the step was not finite: the run's guard refuses such a step, whatever comes of it."""


def take_step(
    optimizer: torch.optim.Optimizer,
    layout: Layout,
    outcome: Outcome,
    max_grad_norm: float | None,
    again: Callable[[], Outcome] | None = None,
) -> None:
    """Take the step whose forward and backward pass gave ``outcome``; what is not finite on the way is written there.

    Args:
        again: forward and backward pass once more, on the weights as they are then; None: the step needs no closure.
    """
    gradients, _ = layout.gradients()
    try:
        if again is None:
            coefficient = optimizer_step.clip_coefficient(outcome.unclipped, max_grad_norm)
            optimizer_step.apply(optimizer, gradients, coefficient)
        else:
            _clip(gradients, outcome, max_grad_norm)
            closure: Any = _Closure(layout, outcome, max_grad_norm, again)
            optimizer.step(closure)
    except _NotFinite:
        outcome.finite = False
    except RuntimeError as e:
        if "overflow" not in str(e):
            raise
        # A rate that the weights' type cannot hold: torch refuses what any other would make infinite.
        outcome.finite, outcome.error = False, str(e).splitlines()[0][:160]


class _Closure:
    def __init__(
        self, layout: Layout, outcome: Outcome, max_grad_norm: float | None, again: Callable[[], Outcome]
    ) -> None:
        self._layout, self._outcome, self._most, self._again = layout, outcome, max_grad_norm, again
        self._made = self._marks()

    def _marks(self) -> list[tuple[int, Tensor | None, int]]:
        return [(p._version, p.grad, -1 if p.grad is None else p.grad._version) for p in self._layout.params]

    def _as_made(self) -> bool:
        """Whether weights and gradients are those of the pass that was made for this step already."""
        pairs = zip(self._marks(), self._made, strict=True)
        return all(v == w and g is h and m == n for (v, g, m), (w, h, n) in pairs)

    @torch.enable_grad()
    def __call__(self) -> Tensor:
        if self._as_made():
            self._made = [(-1, None, -1)] * len(self._made)  # once: a second call draws other random numbers
            return torch.tensor(self._outcome.loss)
        found = self._again()
        if not found.finite or found.error:
            self._outcome.within = found.describe()
            raise _NotFinite
        _clip(self._layout.gradients()[0], found, self._most)
        return torch.tensor(found.loss)


def _clip(gradients: list[Tensor], outcome: Outcome, most: float | None) -> None:
    coefficient = optimizer_step.clip_coefficient(outcome.unclipped, most)
    if coefficient != 1.0 and math.isfinite(coefficient):
        torch._foreach_mul_(list(gradients), coefficient)  # pyright: ignore[reportPrivateImportUsage]
