"""Faults inside `optimizer.step()`: what a step of finite gradients may still make non-finite, and how it is undone.

Everything is sound before the step: gradients, weights, state, settings. torch's own optimizers, in single precision
or wider and with an eps that is not lost, then give finite weights: a quotient of finite numbers by at least eps.
Others do not promise it: eps 0 divides 0 by 0, RMSprop with ``centered`` takes the root of a difference that rounding
makes negative, half precision rounds eps to 0. For those the weights and the optimizer's state are copied before the
step, looked at after it, and put back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from maskrcnn_coco.guard.health import LEAP
from maskrcnn_coco.guard.joined import each
from maskrcnn_coco.guard.norms import all_finite, has_fractions, moved_by, nonfinite_at, norms
from maskrcnn_coco.guard.sharding import local
from maskrcnn_coco.guard.verdict import Verdict

if TYPE_CHECKING:
    from maskrcnn_coco.guard.judgement import Instruments

PROVED = ("SGD", "Adam", "AdamW", "NAdam", "RAdam", "Adamax", "RMSprop", "Adagrad", "Adadelta")
"""torch's own optimizers that divide by nothing smaller than eps."""
SMALLEST_EPS = {torch.float32: 1e-30, torch.float64: 1e-200, torch.bfloat16: 1e-30}
"""Below it eps may round to nothing beside a square's root. float16 is absent: 1e-8 is nothing there."""


class Undo:
    """Copies of weights and optimizer state from before a step, kept only where a step may fail."""

    def __init__(self, instruments: Instruments) -> None:
        self.parts = instruments
        self._weights: list[Tensor] = []
        self._asked: Any = None
        self._settings: list[Any] = []
        self._wanted = True
        self.moved = 0.0
        """How far the last step that was looked at moved all weights."""
        self._optimizers: list[tuple[torch.optim.Optimizer, dict[Any, Any], list[dict[str, Any]]]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of the copies held."""
        entries = (e for _, states, _ in self._optimizers for e in states.values() if isinstance(e, dict))
        states = (t for e in entries for t in tensors_in(e))
        return sum(t.numel() * t.element_size() for t in (*self._weights, *states))

    @property
    def weights(self) -> list[Tensor]:
        """The weights as they were copied, in the layout's order."""
        return self._weights

    def wanted(self) -> bool:
        """Whether the coming step must be watched."""
        groups = self.parts.optimizer.param_groups
        settings = [
            (g.get("eps"), g.get("centered"), len(g["params"]), g["params"][0].dtype) for g in groups if g["params"]
        ]
        if self._asked is not self.parts.layout or settings != self._settings:
            self._asked, self._settings = self.parts.layout, settings
            self._wanted = may_fault(self.parts.optimizer)
        return self._wanted

    def take(self) -> None:
        """Copy weights, states and settings."""
        live = [p.detach() for p in self.parts.layout.params]
        if len(live) == len(self._weights) and all(map(_fits, self._weights, live)):
            with torch.no_grad():
                # Of shards each process copies its own: torch knows no such copy of several at once.
                torch._foreach_copy_(list(map(local, self._weights)), list(map(local, live)))  # pyright: ignore[reportPrivateImportUsage]
        else:
            self._weights = [t.clone() for t in live]
        self._optimizers = []
        for optimizer in each(self.parts.optimizer):
            states = {key: _copied(value) for key, value in optimizer.state.items()}
            settings = [{k: _copied(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
            self._optimizers.append((optimizer, states, settings))

    def fault(self, most: dict[str, float] | None = None) -> Verdict | None:
        """The verdict on the state that the step left; ``most``: as `leap` takes it."""
        layout, optimizer = self.parts.layout, self.parts.optimizer
        values = layout.weight_norms()
        bad = [i for i in nonfinite_at(values) if not all_finite(layout.params[i])]
        kind = type(optimizer).__name__
        if bad:
            names = [layout.names[i] for i in bad]
            component = layout.components[layout.component[bad[0]]]
            measured = {"parameters": names, "component": component, "by_update": kind}
            text = f"{kind} made weights non-finite from finite gradients: {', '.join(names[:3])}; the step is undone"
            return Verdict("param_nonfinite", text, measured)
        tensors, names = [], []
        known = {id(p): name for p, name in zip(layout.params, layout.names, strict=True)}
        for key, entry in ((k, e) for o in each(optimizer) for k, e in o.state.items() if isinstance(e, dict)):
            for what, value in ((w, t) for w, v in entry.items() for t in tensors_in(v)):
                if has_fractions(value) and value.numel():
                    tensors.append(value)
                    names.append(f"{what} of {known.get(id(key), 'the optimizer')}")
        wrong = [names[i] for i in nonfinite_at(norms(tensors)) if not all_finite(tensors[i])]
        if wrong:
            text = f"{kind} made its own state non-finite: {', '.join(wrong[:3])}; the step is undone"
            return Verdict("optimizer_nonfinite", text, {"optimizer_state": wrong, "by_update": kind})
        return self.leap(most)

    def leap(self, most: dict[str, float] | None = None) -> Verdict | None:
        """An optimizer whose rates nobody knows has no bound beforehand, so what it did is measured.

        Args:
            most: component → the most that it may move by, as a share of its weights.
        """
        layout, kind = self.parts.layout, type(self.parts.optimizer).__name__
        moved, ratios = moved_by(self._weights, layout)
        self.moved = math.hypot(*moved)
        for name, ratio in zip(layout.components, ratios, strict=True):
            limit = min(LEAP, (most or {}).get(name, LEAP))
            if ratio > limit:
                text = f"the update of {name} was {ratio:.3g} times its weights; the step is undone"
                measured = {"update_ratio": {name: ratio}, "most": limit, "component": name, "by_update": kind}
                return Verdict("diverged", text, measured)
        return None

    def put_back(self) -> None:
        """Weights, states and settings as they were, bit for bit; state that the step made is dropped."""
        with torch.no_grad():
            for p, kept in zip(self.parts.layout.params, self._weights, strict=True):
                p.detach().copy_(kept)
        for optimizer, states, settings in self._optimizers:
            for key in [k for k in optimizer.state if k not in states]:
                del optimizer.state[key]
            for key, kept in states.items():
                optimizer.state[key] = _put_back(kept, optimizer.state.get(key))
            for group, kept in zip(optimizer.param_groups, settings, strict=True):
                group.update({k: _copied(v) for k, v in kept.items()})


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of an entry of an optimizer's state: LBFGS keeps lists of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for v in value:
            yield from tensors_in(v)
    elif isinstance(value, dict):
        for v in value.values():
            yield from tensors_in(v)


def _put_back(kept: Any, live: Any) -> Any:
    """``kept`` once more, in ``live``'s own tensors where they fit: graphs and other holders keep their tensor."""
    if isinstance(kept, dict) and isinstance(live, dict):
        for key in [k for k in live if k not in kept]:
            del live[key]
        for key, value in kept.items():
            live[key] = _put_back(value, live.get(key))
        return live
    if isinstance(kept, Tensor) and isinstance(live, Tensor) and _fits(kept, live):
        with torch.no_grad():
            live.copy_(kept)
        return live
    return _copied(kept)


def may_fault(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step of finite gradients on a finite state may give anything non-finite."""
    inside = getattr(optimizer, "optimizers", None)
    if inside is not None:
        return any(map(may_fault, inside))
    kind = type(optimizer)
    if kind.__module__.split(".")[0] != "torch" or kind.__name__ not in PROVED:
        return True
    return any(_group_may_fault(kind.__name__, group) for group in optimizer.param_groups)


def _group_may_fault(kind: str, group: dict[str, Any]) -> bool:
    dtypes = {p.dtype for p in group["params"]}
    if torch.float16 in dtypes or not dtypes <= {*SMALLEST_EPS, torch.complex64, torch.complex128}:
        return True  # float16 ends at 65504, whatever the optimizer
    if kind == "SGD":
        return False
    eps = group.get("eps", 0.0)
    smallest = max(SMALLEST_EPS.get(d, 1e-30) for d in dtypes) if dtypes else 0.0
    known = isinstance(eps, (int, float)) and math.isfinite(eps) and eps >= smallest
    return not known or bool(group.get("centered"))


def _fits(kept: Tensor, live: Tensor) -> bool:
    return kept.shape == live.shape and kept.dtype == live.dtype and kept.device == live.device


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        return type(value)(_copied(v) for v in value)
    return value
