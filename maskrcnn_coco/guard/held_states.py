"""An optimizer's floating states, found again at each step for next to nothing."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.components import forgets_squares
from maskrcnn_coco.guard.norms import Layout, as_real, float_states
from maskrcnn_coco.guard.sharding import local
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.wording import listed

LIKE_WEIGHTS = ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "grad_avg")
"""State that torch's own optimizers keep in the shape of the weight it belongs to."""
States = tuple[list[Tensor], list[int], list[str]]
"""What `float_states` gives."""
ZEROED = 0.01
"""Share of Adam's entries with a first but no second moment that no healthy run has; a trip through fp16: 80 %."""
ABOVE_MEAN = 1e6
"""The root of a mean of squares may be so many times the largest mean of the same weight's gradients."""


def fits_its_mean(i: int, found: States) -> bool:
    """Whether state ``i`` is a mean of squares that fits the mean beside it: of gradients of 1e11 they have no norm."""
    tensors, where, keys = found
    mean = next((t for t, w, k in zip(tensors, where, keys, strict=True) if w == where[i] and k == "exp_avg"), None)
    if keys[i] != "exp_avg_sq" or mean is None or not mean.numel():
        return False
    square, most = float(as_real(tensors[i].detach()).max()), float(as_real(mean.detach()).abs().max())
    return math.isfinite(square) and math.sqrt(max(square, 0.0)) <= ABOVE_MEAN * most


def zeroed_moments(layout: Layout, optimizer: Any) -> Verdict | None:
    """Adam's second moments, zeroed by a trip through half precision, make the next update enormous but finite."""
    zeroed = {}
    pairs = zip(layout.params, layout.names, strict=True)
    for p, name in () if any(map(forgets_squares, optimizer.param_groups)) else pairs:
        state = optimizer.state.get(p, {})
        first, second = state.get("exp_avg"), state.get("exp_avg_sq")
        if not isinstance(first, Tensor) or not isinstance(second, Tensor) or not first.numel():
            continue
        # Squares below float32's range are 0 in good health too, so only moments that had a square count.
        count = int(((local(second) == 0) & (local(first).abs() > 1e-15)).sum())
        if count > ZEROED * first.numel():
            zeroed[name] = count
    if not zeroed:
        return None
    text = f"second moments are zero where first moments are not: {listed(list(zeroed), 3)}"
    return Verdict("optimizer_nonfinite", text, {"zeroed_moments": zeroed})


class HeldStates:
    """The optimizer's floating states, looked up anew only where its entries are not what they were.

    Nothing is looked up by parameter in between: the hash of a tensor costs more than all comparisons here.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, layout: Layout) -> None:
        self.optimizers: list[Any] = getattr(optimizer, "optimizers", None) or [optimizer]
        self.optimizer, self.layout = optimizer, layout
        self._found: States = ([], [], [])
        self._entries: list[Any] = []
        self._sizes: list[int] = []
        self._homes: list[dict[str, Any]] = []
        self.seconds: list[Tensor] = []
        """Adam's second moments among them."""
        self.misfits: list[int] = []
        """Positions of those that cannot belong to their weight."""
        self._plain = all(type(o).__module__.startswith("torch.optim") for o in self.optimizers)

    def states(self) -> States:
        """What `float_states` gives."""
        entries = [e for o in self.optimizers for e in o.state.values()]
        if (
            len(entries) != len(self._entries)
            or any(map(operator.is_not, entries, self._entries))
            or list(map(len, entries)) != self._sizes
            or any(map(operator.is_not, map(dict.get, self._homes, self._found[2]), self._found[0]))
        ):
            self._look(entries)
        return self._found

    def _look(self, entries: list[Any]) -> None:
        state, params = self.optimizer.state, self.layout.params
        self._found = tensors, where, keys = float_states(self.optimizer, self.layout)
        self._homes = [state[params[i]] for i in where]
        self.seconds = [t for t, k in zip(tensors, keys, strict=True) if k == "exp_avg_sq"]
        shapes = ((i, t.shape, params[w].shape) for i, (t, w) in enumerate(zip(tensors, where, strict=True)))
        self.misfits = [i for i, own, like in shapes if self._plain and keys[i] in LIKE_WEIGHTS and own != like]
        self._entries, self._sizes = entries, list(map(len, entries))
