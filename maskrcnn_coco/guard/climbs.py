"""Weights that a loop itself moves between the forward pass and the optimizer's step, and that the step moves back.

Sharpness-aware minimisation in two calls climbs to a worse point nearby, takes the gradient there, and only its last
call goes back. Where that call is refused nobody goes back: the weights would stay where they were taken to. Such a
loop is known by its tensors' versions, which count what is written in place, and by a step that ends nearer to where
the weights began than to where it found them; from then on weights and state are copied when a step begins, and a
refusal puts them back. A loop that puts its own weights back before the step (binary weights in the forward pass) is
none of these.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from maskrcnn_coco.guard.undo import Undo

if TYPE_CHECKING:
    from maskrcnn_coco.guard.judgement import Instruments

_VERSION = operator.attrgetter("_version")


class Climbs:
    """Sees whether weights move within a step before the optimizer's own step, and keeps them where they do."""

    def __init__(self, instruments: Instruments) -> None:
        self.parts = instruments
        self._copies = Undo(instruments)
        self._versions: list[int] | None = None
        self._known: Literal["no", "perhaps", "yes", "never"] = "no"
        self._held = False
        self._found: list[Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the copies held."""
        return self._copies.nbytes

    def begin(self) -> None:
        """Before the first forward pass of a step."""
        if self._known == "never":
            return
        self._versions, self._held, self._found = self._now(), self._known != "no", []
        if self._held:
            self._copies.take()

    def step_comes(self) -> None:
        """Before the step's judgement."""
        if self._known == "never" or self._versions is None or self._versions == self._now():
            self._held = False
        elif self._known == "no":
            self._known = "perhaps"
        elif self._known == "perhaps" and self._held:
            self._found = [p.detach().clone() for p in self.parts.layout.params]

    def applied(self) -> None:
        """After the optimizer's own step, with which it becomes known what it starts from."""
        if self._found and len(self._found) == len(self.parts.layout.params):
            params = [p.detach() for p in self.parts.layout.params]
            from_begin, from_there = (_distance(params, old) for old in (self._copies.weights, self._found))
            self._known = "yes" if from_begin < from_there else "never"
        self._versions, self._found, self._held = None, [], False

    def refused(self) -> None:
        """Put back what the loop moved."""
        if self._held and self._known == "yes" and len(self._copies.weights) == len(self.parts.layout.params):
            self._copies.put_back()
        self._versions, self._found, self._held = None, [], False

    def _now(self) -> list[int] | None:
        try:
            return list(map(_VERSION, self.parts.layout.params))
        except RuntimeError:  # tensors of inference mode have no version
            return None


def _distance(one: list[Tensor], other: list[Tensor]) -> float:
    return float(torch.stack([(a - b).norm().float().cpu() for a, b in zip(one, other, strict=True)]).norm())
