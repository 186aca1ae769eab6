"""An optimizer for a private copy of the model: of the run's class and settings, and with nothing of the run's own.

Its weights are the copy's wherever it names them: in its groups, in a list of its own (LBFGS), in an optimizer that it
steps itself (SAM). It has no state.
"""

from __future__ import annotations

import copy
import functools
import types
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.replay.private_copy import around


def private_optimizer(live: torch.optim.Optimizer, twins: dict[int, Any]) -> torch.optim.Optimizer:
    """See the module's text.

    Args:
        twins: id of a part of the run's model → the same part of the copy.

    Raises:
        ValueError: it trains weights that the copy does not have.
    """
    return _Maker(twins).optimizer(live)


class _Maker:
    def __init__(self, twins: dict[int, Any]) -> None:
        self._made = dict(twins)
        """What stands for what, by ids; lists and dicts too, as an optimizer shares its groups with the one inside."""

    def optimizer(self, live: torch.optim.Optimizer) -> torch.optim.Optimizer:
        kind: Any = type(live)
        made = self._made[id(live)] = kind.__new__(kind)
        for name, value in vars(live).items():
            if name == "state":
                made.__dict__[name] = defaultdict(dict)
            elif name != "step":  # a guard's, or a schedule's, around the run's own
                made.__dict__[name] = self._of(value)
        return made

    def _of(self, value: Any) -> Any:
        if id(value) in self._made:
            return self._made[id(value)]
        if isinstance(value, torch.optim.Optimizer):
            return self.optimizer(value)
        if isinstance(value, Tensor):
            if value.requires_grad and value.is_leaf:
                raise ValueError("the optimizer holds parameters that are not the model's")
            made = self._made[id(value)] = value.detach().clone()
            return made
        if isinstance(value, dict):
            held = self._made[id(value)] = copy.copy(value)
            held.clear()
            held.update((self._made.get(id(k), k), self._of(v)) for k, v in value.items())
            return held
        if isinstance(value, list):
            listed = self._made[id(value)] = copy.copy(value)
            listed[:] = [self._of(v) for v in value]
            return listed
        if type(value) is tuple:
            return tuple(map(self._of, value))
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            return around(value, self._made)
        return value
