"""What a guard is given, refused in a sentence where nothing can be guarded with it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, get_args

import torch
from torch import nn

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.immediate import Mode


def refuse_other(model: Any, optimizer: Any, mode: Any) -> None:
    """Refuse what is no model, no optimizer or no mode; what only looks like an optimizer may be one of others.

    Raises:
        ConfigError: it says which, and in what order they come.
    """
    order = "the model first, then its optimizer: (model, optimizer)"
    if not isinstance(model, nn.Module):
        raise ConfigError("the model to be guarded is no nn.Module", got=type(model).__name__, expected=order)
    if isinstance(optimizer, nn.Module) or not hasattr(optimizer, "param_groups"):
        raise ConfigError("the optimizer to be guarded is none", got=type(optimizer).__name__, expected=order)
    if mode not in get_args(Mode):
        raise ConfigError("no such mode of a guard", got=repr(mode), expected=", ".join(map(repr, get_args(Mode))))


def whole_numbers(ids: Iterable[Any]) -> list[int]:
    """``ids`` as int: whole numbers of any type, tensors and numpy's too.

    Raises:
        ConfigError: one is something else, such as a file's name.
    """
    found = list(ids)
    try:
        return [int(i) for i in found]
    except (TypeError, ValueError, RuntimeError):
        odd = next((i for i in found if not _is_number(i)), found)
        raise ConfigError(
            "ids of samples are whole numbers",
            got=f"{odd!r:.60} ({type(odd).__name__})",
            fix="give each sample's index in the data set; a verdict then names the index",
        ) from None


def _is_number(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.numel() == 1
    return isinstance(value, (int, float)) or hasattr(value, "__index__")
