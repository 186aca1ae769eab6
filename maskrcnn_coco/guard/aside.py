"""What modules keep beside their buffers: numbers and small tensors in plain attributes, put back after a refused step.

A running mean that is ``self.mean = …``, a normaliser that is a Python float, the last features in a deque: once they
are NaN, so is every batch after them, and no scan of buffers finds it. Nobody judges what such attributes hold:
features that were put aside may be anything. They are only what they were before a step that does not count.
"""

from __future__ import annotations

import copy
import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

FIRST, RARELY = 5, 50
"""All attributes are kept before the first forward passes, and before one in so many; else those seen to change."""
MOST, ENTRIES = 2**17, 256
"""Numbers of tensors, and entries of a nest, that are kept: a centre of outputs is; a feature map that is put aside to
look at is not."""
GONE = object()
Plain = list[tuple[dict[str, Any], str, Any]]
"""(the module's attributes, a name, what it is)."""
_TORCHS = frozenset(vars(nn.Module()))
"""What every module has."""


class Aside:
    """Numbers, small tensors, flat nests of both and Nones in the attributes of ``model``'s modules.

    Tensors with a graph are left alone: to hold one would hold the step that made it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._saves = 0
        self._seen: dict[tuple[int, str], Any] = {}
        self._moving: dict[tuple[int, str], dict[str, Any]] = {}
        self._held: list[tuple[dict[str, Any], str, Any, Any]] = []
        """(the module's attributes, a name, what it is, its mark) as of `save`."""
        self._copies: dict[tuple[int, str], tuple[Any, Any]] = {}
        """The mark of a tensor or nest, and what it held then."""
        self._left: list[tuple[dict[str, Any], str, Any]] = []
        """(the module's attributes, a name, what a refused pass had made of it)."""

    def save(self) -> None:
        """Hold what the coming forward pass may change."""
        look = self._saves < FIRST or self._saves % RARELY == 0
        self._saves += 1
        self._held = []
        if not (look or self._moving):
            return
        places = self._look() if look else self._moving
        for (_, name), home in places.items():
            value = home.get(name, GONE)
            if not _kept(value):
                continue
            mark = _mark(value)
            self._held.append((home, name, value, mark))
            known = self._copies.get((id(home), name))
            if value is not None and type(value) is not float and (known is None or known[0] != mark):
                self._copies[id(home), name] = mark, _copied(value)

    def _look(self) -> dict[tuple[int, str], dict[str, Any]]:
        """Every attribute that can be kept; those that are not what they were at the last look are said to move."""
        places = {}
        for module in self.model.modules():
            home = vars(module)
            for name, value in home.items():
                if name in _TORCHS or not _kept(value):
                    continue
                place, mark = (id(home), name), _mark(value)
                places[place] = home
                if self._seen.get(place, mark) != mark:
                    self._moving[place] = home
                self._seen[place] = mark
        return places

    def restore(self) -> None:
        """Put back what is not what it was, bit for bit and with the identity it had."""
        left = [(home, name, home.get(name, GONE)) for home, name, *_ in self._held]
        self._left = [(home, name, _copied(value)) for home, name, value in left if _kept(value)]
        for home, name, value, mark in self._held:
            now = home.get(name, GONE)
            if value is not None and type(value) is not float and _mark(value) != mark:
                held = self._copies[id(home), name][1]
                _fill(value, held)
                self._copies[id(home), name] = _mark(value), held
            if now is not value and (isinstance(now, Tensor) or _kept(now)):
                home[name] = value

    def pass_on(self) -> None:
        """After `restore`: what the refused pass had made of them, after all."""
        for home, name, value in self._left:
            home[name] = value
        self._left = []

    def plain(self) -> Plain:
        """What is no tensor among them, as of `save`."""
        return [(home, name, value) for home, name, value, _ in self._held if value is None or type(value) is float]

    def restore_where(self, bad: Tensor) -> None:
        """The same for tensors alone, without a host read: selected by the flag ``bad`` (bool, ())."""
        self._left = []
        with torch.no_grad():
            for home, name, value, _ in self._held:
                now, kept = home.get(name), self._copies.get((id(home), name))
                if not isinstance(value, Tensor) or not isinstance(now, Tensor) or kept is None or now.requires_grad:
                    continue
                if now.shape == kept[1].shape and now.dtype == kept[1].dtype and not now.is_meta:
                    now.copy_(torch.where(bad.to(now.device), kept[1].to(now.device), now))


def put_back(plain: Plain) -> None:
    """What is not finite now and was before a step that turned out bad, although others followed. Reads tensors."""
    for home, name, value in plain:
        now = home.get(name)
        bad = not _sound(now) if isinstance(now, (float, Tensor)) else False
        if bad and (value is None or math.isfinite(value)):
            home[name] = value


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)


def _sound(value: float | Tensor) -> bool:
    return bool(value.isfinite().all()) if isinstance(value, Tensor) else math.isfinite(value)


def _kept(value: Any) -> bool:
    if isinstance(value, Tensor):
        plain = value.grad_fn is None and not value.requires_grad and not isinstance(value, nn.Parameter)
        return plain and not value.is_meta and not value.is_inference() and value.numel() <= MOST
    if type(value) in (list, dict, deque):
        inside = list(value.values()) if isinstance(value, dict) else list(value)
        flat = len(inside) <= ENTRIES and all(isinstance(v, Tensor) or type(v) is float for v in inside)
        if not (flat and all(map(_kept, inside))):
            return False
        return sum(v.numel() for v in inside if isinstance(v, Tensor)) <= MOST
    return value is None or type(value) is float


def _mark(value: Any) -> Any:
    """Changes with the object or, where autograd sees it, its content; of a nest, with any entry."""
    if isinstance(value, Tensor):
        return id(value), value._version
    if isinstance(value, dict):
        return id(value), [(k, _mark(v)) for k, v in value.items()]
    return (id(value), [_mark(v) for v in value]) if isinstance(value, (list, deque)) else value


def _fill(value: Any, held: Any) -> None:
    """Make ``value`` hold what ``held`` does; of the tensors in a nest, which ones they were."""
    if isinstance(value, Tensor):
        with torch.no_grad():
            value.copy_(held)
        return
    value.clear()
    if isinstance(value, dict):
        value.update(held)
    else:
        value.extend(held)
