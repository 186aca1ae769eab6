"""An exponential moving average of a model's weights: what is evaluated and saved beside the weights that train.

It moves only after a step that was applied, goes back when the run goes back, and its horizon fits the run: an average
that reaches further back than the run is long still holds the weights that training started from.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HORIZON = 0.07
"""Of the planned steps, as "auto"; published recipes that work on short runs lie between 5 and 10 %."""


def decay_for(setting: str | float, total_steps: int) -> float | None:
    """The decay of ``--ema``: None for "none", from the length of the run for "auto", else the number itself."""
    if setting == "none":
        return None
    if setting == "auto":
        return 1.0 - 1.0 / max(2.0, HORIZON * total_steps)
    return float(setting)


class Ema:
    """The average of every floating-point weight and buffer of ``model``; other entries follow as they are.

    Args:
        decay: share that stays at each step; at the start (1 + t) / (10 + t) where that is less, so that the first
            steps are not held on to.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._older: dict[int, tuple[int, dict[str, Tensor]]] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards the weights of ``model``, after a step was applied."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        ours, theirs = [], []
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                ours.append(self.weights[name])
                theirs.append(value.detach())
            else:
                self.weights[name].copy_(value)
        torch._foreach_lerp_(ours, theirs, 1.0 - decay)  # pyright: ignore[reportPrivateImportUsage]

    def remember(self, step: int, alive: Iterator[int] | list[int]) -> None:
        """Copy the average before planned step ``step``; copies of steps that are not ``alive`` are let go."""
        kept = {*alive, step}
        self._older = {s: v for s, v in self._older.items() if s in kept}
        self._older[step] = (self.updates, {k: v.clone() for k, v in self.weights.items()})

    def go_back(self, step: int, model: nn.Module) -> None:
        """The average as it was before planned step ``step``; where nobody copied it, the weights of ``model``."""
        if step in self._older:
            self.updates, held = self._older[step]
            self.weights = {k: v.clone() for k, v in held.items()}
        else:
            self.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self._older = {s: v for s, v in self._older.items() if s <= step}

    @contextmanager
    def in_place(self, model: nn.Module) -> Iterator[None]:
        """``model`` has the averaged weights inside the block, and its own after it, bit for bit."""
        own = {k: v.detach().clone() for k, v in model.state_dict().items()}
        _copy_into(model, self.weights)
        try:
            yield
        finally:
            _copy_into(model, own)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors, for a checkpoint."""
        return {"decay": self.decay, "updates": self.updates, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave; the decay stays that of this run.

        Raises:
            KeyError: it is of another model.
        """
        self.updates = int(state["updates"])
        held = state["weights"]
        self.weights = {k: held[k].detach().to(v.device).clone() for k, v in self.weights.items()}
        self._older.clear()


@torch.no_grad()
def _copy_into(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    # In place: the optimizer, the guard and compiled code hold these very tensors.
    for name, value in model.state_dict().items():
        value.copy_(weights[name])
