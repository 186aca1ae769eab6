"""An optimizer's state and settings, put in place."""

from __future__ import annotations

import copy
import functools
import inspect
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import TIMES, is_possible, real, sound_value, times_of
from maskrcnn_coco.guard.joined import Joined, nested
from maskrcnn_coco.guard.lowered import hold_kept_rates

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


SETTINGS = ("momentum", "dampening", "nesterov", "weight_decay", "betas", "eps", "alpha", "rho", "momentum_decay")
"""What schedules and hooks change beside the rate."""
HOW = frozenset(("params", "lr", "foreach", "fused", "capturable", "differentiable"))
"""What is no setting of a step, or says how its numbers are computed, not what they are."""
PLAIN = {int, float, bool, str, type(None)}


def optimizer_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    names = {id(p): n for n, p in model.named_parameters()}
    return [names.get(id(p), "?") for group in optimizer.param_groups for p in group["params"]]


@functools.cache
def _given(kind: type) -> frozenset[str]:
    return frozenset(inspect.signature(kind).parameters) - HOW


def setting_names(optimizer: torch.optim.Optimizer | Joined) -> frozenset[str]:
    """What the optimizer's constructor takes beside the rate, and of those that it steps itself.

    Not all of a group: some optimizers count their steps in it.
    """
    parts = optimizer.optimizers if isinstance(optimizer, Joined) else [optimizer, *nested(optimizer)]
    return frozenset(SETTINGS).union(*(_given(type(part)) for part in parts))


def classes_of(optimizer: torch.optim.Optimizer | Joined) -> list[type]:
    """The class of the optimizer that holds each group."""
    parts = optimizer.optimizers if isinstance(optimizer, Joined) else [optimizer]
    return [type(part) for part in parts for _ in part.param_groups]


def usual_settings(kind: type) -> dict[str, Any]:
    """What an optimizer of class ``kind`` has if nobody asks for anything else: its defaults, beside the rate."""
    given = inspect.signature(kind).parameters.values()
    return {p.name: p.default for p in given if p.default is not p.empty and p.name not in HOW}


def settings_of(groups: Sequence[dict[str, Any]], names: Iterable[str] = SETTINGS) -> list[dict[str, Any]]:
    """The settings of each parameter group that a step depends on, no tensors, without the learning rate."""
    return [{k: group[k] for k in names if k in group and _is_plain(group[k])} for group in groups]


def _is_plain(value: Any) -> bool:
    return PLAIN.issuperset(map(type, value) if isinstance(value, (tuple, list)) else (type(value),))


def set_again(optimizer: torch.optim.Optimizer, settings: Sequence[dict[str, Any]] | None) -> None:
    """Put what `settings_of` gave in place; None, or settings of other groups: nothing."""
    if settings is not None and len(settings) == len(optimizer.param_groups):
        for group, kept in zip(optimizer.param_groups, settings, strict=True):
            group.update({k: v for k, v in kept.items() if k in group})


def set_rates(
    optimizer: torch.optim.Optimizer, lr: Mapping[str, float], factors: Mapping[str, float], most: Mapping[str, float]
) -> None:
    """Learning rates by component, times ``factors``, and no more than ``most``; where ``lr`` has none: as they are."""
    for group in optimizer.param_groups:
        component, times = group.get("component", ""), times_of(group)
        rate = float(lr[component] or 0.0) * times if component in lr else real(group["lr"] or 0.0)
        group["lr"] = min(rate * factors.get(component, 1.0), most.get(component, math.inf) * times)
        if group["lr"] < rate:
            hold_kept_rates(optimizer, group)


def lower_settings(optimizer: torch.optim.Optimizer, most: Mapping[str, float]) -> None:
    """Set each named setting of every group that has more of it to its value in ``most``."""
    for group in optimizer.param_groups:
        group.update({k: min(group[k], v) for k, v in most.items() if group.get(k) is not None})


def put_sound(optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]) -> None:
    """Both: ``settings`` that are numbers are the most of it, mappings by component are in its place."""
    by_name = {k: v for k, v in settings.items() if isinstance(v, dict)}
    lower_settings(optimizer, {k: v for k, v in settings.items() if k not in by_name})
    put_usual(optimizer.param_groups, names_of(optimizer), by_name)


def names_of(optimizer: torch.optim.Optimizer) -> list[str]:
    """The component of each group of a private optimizer."""
    return [str(g.get("component", "")) for g in optimizer.param_groups]


def begin_anew(optimizer: torch.optim.Optimizer | Joined) -> bool:
    """Have one of torch's own forget what it remembers of former steps; whether that can be done."""
    if isinstance(optimizer, Joined):
        begun = [begin_anew(part) for part in optimizer.optimizers]
        return all(begun)
    if not type(optimizer).__module__.startswith("torch.optim") or isinstance(optimizer, torch.optim.LBFGS):
        return False
    if not isinstance(optimizer, torch.optim.Adagrad):  # the one that makes its state before its first step
        optimizer.state.clear()
        return True
    for group in optimizer.param_groups:
        for state in (optimizer.state[p] for p in group["params"] if p in optimizer.state):
            state["step"].zero_()
            state["sum"].fill_(group["initial_accumulator_value"])
    return True


def put_usual(groups: Sequence[dict[str, Any]], names: Sequence[str], usual: Mapping[str, Any]) -> None:
    """Give each of ``groups`` that has a setting of ``usual`` the value that it has there, "lr" by its name."""
    for group, name in zip(groups, names, strict=False):
        rate = usual.get("lr", {}).get(name, group.get("lr"))
        group.update({k: sound_value(v, name, group[k]) for k, v in usual.items() if k in group and k != "lr"})
        group.update({} if is_possible(group.get("lr")) else {"lr": rate})


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put a saved optimizer state back in place, bit for bit.

    Not `load_state_dict`: that one casts state to the parameters' dtype and gives every tensor a new identity and
    the file's memory layout. Fused kernels walk parameter and momentum side by side in memory: with weights in
    channels_last and momentum as it came from the file, they would pair the wrong numbers.

    Raises:
        KeyError: the state is of an optimizer with other groups.
    """
    groups: Sequence[dict[str, Any]] = saved["param_groups"]
    if [len(g["params"]) for g in groups] != [len(g["params"]) for g in optimizer.param_groups]:
        raise KeyError("not the optimizer of this snapshot: its parameter groups differ")
    for group, kept in zip(optimizer.param_groups, groups, strict=True):
        # A private optimizer's groups are named, whether or not those of the run are; and what a group's rate is of its
        # component's is a setting of now, not of then.
        for key in [k for k in group if k not in kept and k not in ("component", TIMES)]:
            del group[key]
        for key, value in kept.items():
            # A loop may name several of its groups alike, or by something else.
            if key not in ("params", TIMES) and not (key == "component" and key in group):
                group[key] = _put(group.get(key), value)
        for parameter, index in zip(group["params"], kept["params"], strict=True):
            entry = saved["state"].get(index)
            if entry is None:
                optimizer.state.pop(parameter, None)
                continue
            state = optimizer.state[parameter]
            for key in [k for k in state if k not in entry]:
                del state[key]
            for key, value in entry.items():
                state[key] = _put(state.get(key), value, parameter)
    for inside, held in zip(nested(optimizer), saved["inside"], strict=True) if "inside" in saved else ():
        restore_optimizer(inside, held)
    for name, value in saved.get("beside", {}).items():
        setattr(optimizer, name, _put(getattr(optimizer, name, None), value))


def _put(live: Any, value: Any, like: Tensor | None = None) -> Any:
    """``value`` in the place of ``live``; a new tensor of the shape of ``like`` is laid out in memory as that is."""
    if isinstance(value, Tensor):
        if isinstance(live, Tensor) and live.shape == value.shape and live.dtype == value.dtype:
            return live.copy_(value)
        if like is not None and like.shape == value.shape:
            return torch.empty_like(like, dtype=value.dtype, requires_grad=False).copy_(value)
        return value.clone()
    return copy.deepcopy(value)
