"""Several optimizers of one model that step once each for one backward pass, looked at as one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


def state_dict_of(optimizer: torch.optim.Optimizer, own: Callable[[Any], State] | None = None) -> State:
    """The optimizer's ``state_dict()``, without the state of parameters that are in none of its groups any more.

    A loop that puts other weights into a group leaves it behind, and torch's own raises KeyError then.

    Args:
        own: what makes it, in place of the optimizer's method.
    """
    make = own or (lambda o: o.state_dict())
    held = {id(p) for g in optimizer.param_groups for p in g["params"]}
    everything = dict(optimizer.state)
    stray = [k for k in everything if isinstance(k, Tensor) and id(k) not in held]
    if not stray:
        return make(optimizer)
    try:
        for key in stray:
            del optimizer.state[key]
        return make(optimizer)
    finally:
        optimizer.state.clear()
        optimizer.state.update(everything)


def nested(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    """The optimizers that ``optimizer`` steps itself."""
    return [v for v in vars(optimizer).values() if isinstance(v, torch.optim.Optimizer)]


def each(optimizer: Any) -> list[torch.optim.Optimizer]:
    """The optimizers that a step may change: those that are looked at as one, and those inside one (SAM's base)."""
    outer = getattr(optimizer, "optimizers", None) or [optimizer]
    return [o for one in outer for o in (one, *nested(one))]


class Joined:
    """Has of an optimizer what a guard, a snapshot and a replay ask for. Of a run's own, only the parts are stepped."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self.optimizers = list(optimizers)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of all, in order."""
        return [group for o in self.optimizers for group in o.param_groups]

    @property
    def state(self) -> States:
        """Parameter → its optimizer's state of it."""
        return States(self.optimizers)

    def state_dict(self) -> dict[str, Any]:
        """In the layout of an optimizer's own: parameters are numbered through over all of them."""
        state: dict[Any, Any] = {}
        groups: list[dict[str, Any]] = []
        for optimizer in self.optimizers:
            start = sum(len(g["params"]) for g in groups)
            own = state_dict_of(optimizer)
            state |= {start + i: held for i, held in own["state"].items()}
            groups += [{**g, "params": [start + i for i in g["params"]]} for g in own["param_groups"]]
        return {"state": state, "param_groups": groups}

    def step(self) -> None:
        """Each takes its step, as on a private copy of the model."""
        for optimizer in self.optimizers:
            optimizer.step()


class States(MutableMapping[Any, State]):
    """The states of several optimizers as one mapping. As of one, the state of a parameter is made when asked for."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._optimizers = optimizers

    def _holder(self, key: Any) -> Any:
        return next((o.state for o in self._optimizers if key in o.state), None)

    def _owner(self, key: Any) -> MutableMapping[Any, State]:
        holder = self._holder(key)
        if holder is None:
            owns = (o.state for o in self._optimizers for g in o.param_groups if any(p is key for p in g["params"]))
            holder = next(owns, None)
        if holder is None:
            raise KeyError(key)
        return holder

    def __contains__(self, key: object) -> bool:
        return self._holder(key) is not None

    def get(self, key: Any, default: Any = None) -> Any:
        """Makes none."""
        holder = self._holder(key)
        return default if holder is None else holder[key]

    def pop(self, key: Any, *default: Any) -> Any:
        """Makes none."""
        holder = self._holder(key)
        return {}.pop(key, *default) if holder is None else holder.pop(key)

    def __getitem__(self, key: Any) -> State:
        return self._owner(key)[key]

    def __setitem__(self, key: Any, value: State) -> None:
        self._owner(key)[key] = value

    def __delitem__(self, key: Any) -> None:
        del self._owner(key)[key]

    def __iter__(self) -> Iterator[Any]:
        return (key for o in self._optimizers for key in o.state)

    def __len__(self) -> int:
        return sum(len(o.state) for o in self._optimizers)

    def clear(self) -> None:
        """Of all."""
        for optimizer in self._optimizers:
            optimizer.state.clear()
