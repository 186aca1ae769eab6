"""An optimizer's whole state, as it is kept and looked at: of one that steps another, of both."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.guard.joined import Joined, nested, state_dict_of
from maskrcnn_coco.guard.undo import tensors_in

KNOWN = {"state", "param_groups", "defaults", "step"}
"""Attributes of an optimizer that hold its state and settings already, or none."""


def saved_state(optimizer: torch.optim.Optimizer | Joined) -> dict[str, Any]:
    """The optimizer's `state_dict`; of one that steps another (SAM's base) with that one's under "inside".

    What the outer one keeps in attributes (weights of some steps ago, a count) is under "beside".
    """
    within = nested(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else []
    if isinstance(optimizer, Joined):
        return optimizer.state_dict()
    if not within:
        return state_dict_of(optimizer)
    # Not its own `state_dict`, which may have any layout.
    saved = state_dict_of(optimizer, torch.optim.Optimizer.state_dict) | {"inside": [saved_state(o) for o in within]}
    return saved | {"beside": {k: v for k, v in vars(optimizer).items() if k not in KNOWN and _is_numbers(v)}}


def _is_numbers(value: Any) -> bool:
    """Whether a value is of numbers that are nobody else's: no weights, no names."""
    if isinstance(value, (list, tuple, dict)):
        held = list(value.values() if isinstance(value, dict) else value)
        return bool(held) and all(map(_is_numbers, held))
    if isinstance(value, Tensor):
        return not value.requires_grad
    return isinstance(value, (int, float))


def entries_of(saved: dict[str, Any]) -> Iterator[tuple[Any, dict[str, Tensor]]]:
    """(position of the weight, tensors by name) of each entry of a saved state, of the optimizers inside too.

    Of a list of tensors (LBFGS's directions) each counts, under the name of the list and its place.
    """
    for index, entry in saved.get("state", {}).items():
        found = {}
        for key, value in entry.items():
            tensors = list(tensors_in(value))
            found |= {key if isinstance(value, Tensor) else f"{key}[{i}]": t for i, t in enumerate(tensors)}
        yield index, found
    for inside in saved.get("inside", ()):
        yield from entries_of(inside)


def forget(optimizer: torch.optim.Optimizer | Joined) -> None:
    """Drop all state, of the optimizers inside too."""
    optimizer.state.clear()
    for inside in nested(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else ():
        forget(inside)


def states_of(optimizer: torch.optim.Optimizer | Joined) -> list[Tensor]:
    """The tensors of all states, of the optimizers inside too."""
    within = nested(optimizer) if isinstance(optimizer, torch.optim.Optimizer) else []
    own = [t for entry in optimizer.state.values() for t in tensors_in(entry)]
    return [*own, *(t for inside in within for t in states_of(inside))]


def sound_states(optimizer: torch.optim.Optimizer | Joined) -> bool:
    """Whether no state holds a NaN or an infinity."""
    return all(bool(t.isfinite().all()) for t in states_of(optimizer) if t.is_floating_point() or t.is_complex())
