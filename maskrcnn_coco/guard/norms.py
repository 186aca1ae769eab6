"""Gradient, weight and optimizer-state norms per component, with one read for all of them."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import components as default_components
from maskrcnn_coco.components import real, times_of
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.sharding import Shares, local

Components = Mapping[str, "Mapping[str, nn.Parameter] | Iterable[nn.Parameter]"]

SMALLEST_RMS = 0.1
"""Weights that start at zero must be able to leave it: their norm counts as at least this root mean square."""

_GRADIENT, _SPARSE, _GROWS = map(operator.attrgetter, ("grad", "is_sparse", "requires_grad"))


class Layout:
    """The optimizer's trainable parameters, flat, each with its component and its name."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer, components: Components | None) -> None:
        given = default_components(model) if components is None else components
        owner = {id(p): name for name, group in given.items() for p in _values(group)}
        names = {id(p): name for name, p in model.named_parameters()}
        self.params: list[nn.Parameter] = []
        self.groups: list[int] = []
        owners: list[str] = []
        for g, group in enumerate(optimizer.param_groups):
            for p in _trainable(group["params"]):
                self.params.append(p)
                self.groups.append(g)
                owners.append(owner.get(id(p), str(group.get("component", "other"))))
        if not self.params:
            raise ConfigError("the optimizer holds no trainable parameters", fix="pass model.parameters() to it")
        order = [n for n in given if n in owners] + [n for n in dict.fromkeys(owners) if n not in given]
        self.names = [names.get(id(p), f"param {i}") for i, p in enumerate(self.params)]
        self.components: list[str] = order
        self.component: list[int] = [order.index(o) for o in owners]
        self._everywhere = list(range(len(self.params)))
        self.position = {id(p): i for i, p in enumerate(self.params)}
        self._ids = [id(p) for p in self.params]
        self._rates: list[Any] = []
        self._lr: dict[str, float] = {}
        first = self.params[0]
        self._plain = first.dtype is torch.float32 and all(_like(p, first) for p in self.params)
        self.shares: Shares | None = None
        """Where each process has a share of every tensor: adds up their gradients' norms."""
        self.spare: list[int] = []
        """Positions of weights that were not finite when they were first seen; no fault where nothing uses them."""
        self.sizes = self.totals([p.numel() * (1 + p.is_complex()) for p in self.params], squared=False)
        self._pairs = list(dict.fromkeys(zip(self.component, self.groups, strict=True)))
        self._times = [times_of(group) for group in optimizer.param_groups]
        times = [max(self._times[g] for c, g in self._pairs if c == i) for i in range(len(order))]
        self._most_times = times if set(times) != {1.0} else None
        inside = {id(p) for p in self.params}
        place = {i: n for n, i in enumerate(names)}
        self.in_model_order = sorted(self.params, key=lambda p: place.get(id(p), len(place)))
        """As the model lists them: about the order in which a backward pass comes to them, from behind. An optimizer's
        groups may hold norms apart from the layers beside them."""
        self.outside = [p for p in model.parameters() if id(p) not in inside]

    def lr(self, optimizer: torch.optim.Optimizer) -> dict[str, float]:
        """Learning rate per component, in their order; the largest, where its groups differ. Absent: not given.

        A group that has a multiple of its component's rate counts with the component's.
        """
        rates = [group.get("lr") for group in optimizer.param_groups]
        if rates == self._rates:
            return dict(self._lr)
        found: dict[str, float] = {}
        for c, g in self._pairs:
            if rates[g] is None:
                continue  # Adafactor and kin work out their own
            name, rate = self.components[c], real(rates[g])
            # A NaN must not lose against a number, so the order of arguments is no detail: keep whichever is NaN.
            known = found.get(name, rate)
            if self._times[g] != 1.0:
                rate = _component_rate(rate, self._times[g], known)
                known = found.get(name, rate)
            found[name] = rate if rate > known or rate != rate else known
        found = {name: found[name] for name in self.components if name in found}
        # A tensor may have another value tomorrow and still be the same.
        self._rates, self._lr = (rates if set(map(type, rates)) <= {float, int} else []), found
        return dict(found)

    def largest(self, lr: Mapping[str, float]) -> list[float]:
        """The largest rate that a group of each component has, where the components' are ``lr``; 0 where not given.

        So with all that grows with the rate.
        """
        known: list[Any] = list(map(lr.get, self.components))
        rates = known if None not in known else [r or 0.0 for r in known]
        return rates if self._most_times is None else [r * t for r, t in zip(rates, self._most_times, strict=True)]

    def outdated(self, optimizer: torch.optim.Optimizer) -> bool:
        """Whether parameters were added to the optimizer, frozen or thawed since: by identity, not by their number."""
        held = [p for g in optimizer.param_groups for p in g["params"]]
        if len(held) == len(self.params) and all(map(operator.is_, held, self.params)) and all(map(_GROWS, held)):
            return False
        return self._ids != [id(p) for p in held if p.requires_grad]

    @property
    def frozen(self) -> bool:
        """Whether nothing is trainable any more."""
        return not any(map(_GROWS, self.params))

    def zero_grad(self) -> None:
        """Drop the gradients of the optimizer's parameters."""
        for p in self.params:
            p.grad = None

    def gradients(self) -> tuple[list[Tensor], list[int]]:
        """The dense gradients that exist, with the flat position of each; a sparse one gives its coalesced values."""
        tensors: list[Any] = list(map(_GRADIENT, self.params))
        if set(map(type, tensors)) == {Tensor} and not any(map(_SPARSE, tensors)):
            return tensors, self._everywhere
        tensors, where = [], []
        for i, p in enumerate(self.params):
            gradient = p.grad
            if gradient is not None:
                if gradient.is_sparse:
                    p.grad = gradient.coalesce()  # the same gradient, its rows added up
                    gradient = p.grad._values()
                tensors.append(gradient)
                where.append(i)
        return tensors, where

    def gradient_norms(self, gradients: list[Tensor], where: list[int]) -> Tensor:
        """`stacked_norms` of the parameters' gradients, which are of the parameters' own kind; of whole ones always."""
        if self.shares is not None:
            return self.shares.whole(stacked_norms(gradients), where, len(self.params))
        if not self._plain or set(map(type, gradients)) != {Tensor} or any(map(_GROWS, gradients)):
            return stacked_norms(gradients)
        return torch.stack(torch._foreach_norm(gradients, 2))  # pyright: ignore[reportPrivateImportUsage]

    def totals(
        self, values: Sequence[float], where: Sequence[int] | None = None, *, squared: bool = True
    ) -> list[float]:
        """2-norms (or plain sums) per component from one value per tensor; tensors listed in ``where``, or all."""
        out, component = [0.0] * len(self.components), self.component
        places = component if where is None or where is self._everywhere else [component[i] for i in where]
        for v, c in zip(values, places, strict=True):
            out[c] += v * v if squared else v
        return [math.sqrt(v) if v == v else v for v in out] if squared else out

    def by_component(self, values: Sequence[float]) -> dict[str, float]:
        """Component → value."""
        return dict(zip(self.components, values, strict=True))

    def weight_norms(self) -> list[float]:
        """2-norm of each parameter, in flat order; 0 for those that are `spare`."""
        found = norms(self.params)
        for i in self.spare:
            found[i] = 0.0
        return found

    def used_spares(self) -> list[int]:
        """Those of `spare` that this step's backward pass reached."""
        return [i for i in self.spare if self.params[i].grad is not None]


def _component_rate(rate: float, times: float, known: float) -> float:
    """What gave ``rate`` when multiplied by ``times``, to the bit: ``known``, if it does."""
    near = rate / times
    guesses = (known, near, math.nextafter(near, 0.0), math.nextafter(near, math.inf))
    return next((guess for guess in guesses if guess * times == rate), near)


def norms(tensors: Sequence[Tensor]) -> list[float]:
    """2-norm of each tensor in at least single precision; one host read for all.

    Finite values whose squares overflow float32 (above about 1e19) give inf.
    """
    return stacked_norms(tensors).tolist()


def stacked_norms(tensors: Sequence[Tensor]) -> Tensor:
    """The same, (len(tensors),), left on the device of the first tensor that has one.

    Any mixture: half and double precision, complex, float8, sparse (its values), sharded (the local part); a meta
    tensor holds nothing and counts as 0.
    """
    if not tensors:
        return torch.zeros(0)
    with torch.no_grad():
        first = tensors[0]
        if first.dtype in (torch.float32, torch.float64) and all(_like(t, first) for t in tensors):
            plain = [t.detach() for t in tensors] if any(t.requires_grad for t in tensors) else list(tensors)
            return torch.stack(torch._foreach_norm(plain, 2))  # pyright: ignore[reportPrivateImportUsage]
        return _stacked_mixed([_measurable(t.detach()) for t in tensors])


def _like(tensor: Tensor, first: Tensor) -> bool:
    plain = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return plain and tensor.dtype is first.dtype and tensor.device == first.device and not tensor.is_meta


def _measurable(tensor: Tensor) -> Tensor:
    """A dense real tensor of the same norm, in a precision that has one."""
    tensor = local(tensor)
    if tensor.layout is torch.sparse_coo:
        tensor = tensor.coalesce()._values()
    elif tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    tensor = as_real(tensor)
    if tensor.is_meta:
        return torch.zeros(1)
    small = tensor.is_floating_point() and tensor.element_size() < 2  # float8 has no arithmetic
    return tensor.float() if small or not tensor.is_floating_point() else tensor


def _stacked_mixed(tensors: list[Tensor]) -> Tensor:
    """Norms of tensors of several kinds, in their order; double precision where one of them has it."""
    places: dict[tuple[torch.dtype, torch.device], list[int]] = {}
    for i, t in enumerate(tensors):
        places.setdefault((t.dtype, t.device), []).append(i)
    device = tensors[0].device
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    out = torch.zeros(len(tensors), dtype=wide, device=device)
    for (dtype, _), where in places.items():
        precise = None if dtype in (torch.float32, torch.float64) else torch.float32
        found = torch._foreach_norm([tensors[i] for i in where], 2, precise)  # pyright: ignore[reportPrivateImportUsage]
        values = torch.stack(found).to(device, wide)
        if len(places) == 1:
            return values
        out[torch.tensor(where).to(device)] = values
    return out


def float_states(optimizer: torch.optim.Optimizer, layout: Layout) -> tuple[list[Tensor], list[int], list[str]]:
    """The optimizer's floating state tensors of more than bookkeeping size, flat positions, and their keys."""
    tensors, where, keys = [], [], []
    for i, p in enumerate(layout.params):
        state = optimizer.state.get(p)
        if not state:
            continue
        for key, value in state.items():
            if key != "step" and isinstance(value, Tensor) and has_fractions(value) and value.numel():
                tensors.append(value)
                where.append(i)
                keys.append(key)
    return tensors, where, keys


def has_fractions(tensor: Tensor) -> bool:
    """Whether ``tensor`` can hold a NaN: real or complex floating point."""
    return tensor.is_floating_point() or tensor.is_complex()


def as_real(tensor: Tensor) -> Tensor:
    """A complex tensor's real and imaginary parts, (…, 2); any other as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def real_parts(state: Mapping[str, Any]) -> dict[str, Any]:
    """What an optimizer holds of a weight, its tensors `as_real`: so steps of complex weights are computed."""
    return {key: as_real(value) if isinstance(value, Tensor) else value for key, value in state.items()}


def all_finite(tensor: Tensor) -> bool:
    """Whether every element is finite, whatever the tensor's layout and precision."""
    return bool(_measurable(tensor.detach()).isfinite().all())


def nonfinite_at(values: Sequence[float]) -> list[int]:
    """Positions of the values that are NaN or infinite."""
    return [i for i, v in enumerate(values) if v - v != 0.0]


def _trainable(params: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [p for p in params if p.requires_grad]


def _values(group: Mapping[str, nn.Parameter] | Iterable[nn.Parameter]) -> Iterable[nn.Parameter]:
    return group.values() if isinstance(group, Mapping) else group


def moved_by(before: list[Tensor], layout: Layout, sizes: list[float] | None = None) -> tuple[list[float], list[float]]:
    """‖update‖ per component since the copy ``before`` of its weights, and as a share of ``sizes``, or of theirs."""
    moved = layout.totals(norms([p.detach() - old for p, old in zip(layout.params, before, strict=True)]))
    return moved, [far / size for far, size in zip(moved, sizes or sizes_of(before, layout), strict=True)]


def sizes_of(weights: list[Tensor], layout: Layout) -> list[float]:
    """‖weights‖ per component; small ones count as at least `SMALLEST_RMS`."""
    least = [SMALLEST_RMS * math.sqrt(count) for count in layout.sizes]
    return list(map(max, layout.totals(norms(weights)), least))
