"""A private copy of a model that does what the model does: with its hooks, and nothing that points back into the run.

`copy.deepcopy` drops the hooks of parameters, and it keeps functions as they are: a ``forward`` that was replaced by a
closure over the model, or a hook over one of its modules, would go on working on the run's own weights. Nor does it
copy a tensor with a graph, which modules put aside: a term for later, features to look at. Here hooks are
carried over, and such functions are made again around the copy. What cannot be is named, so that a verdict can say it.
"""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

DEPTH = 4
"""Functions within functions, or nests within nests, that are looked into."""
_TORCHS = frozenset(vars(nn.Module()))
"""What every module has."""


@dataclass
class PrivateCopy:
    """``missing``: what the copy could not take over, in words."""

    model: nn.Module
    missing: list[str] = field(default_factory=list)


def private_copy(source: nn.Module) -> PrivateCopy:
    """A deep copy of ``source`` with its hooks; see the module's text."""
    made = PrivateCopy(deep_copy(source))
    _take_hooks(source, made)
    return made


def deep_copy(source: nn.Module) -> nn.Module:
    """As `copy.deepcopy`, and of models too that keep what it refuses.

    Tensors with a graph (a loss or features that a module has put aside) are copied without it; what cannot be copied
    at all (a writer of logs, a lock) is the copy's as well.
    """
    kept = {id(t): t.detach().clone() for module in source.modules() for t in _with_graph(_own(module))}
    try:
        return copy.deepcopy(source, dict(kept))
    except Exception:  # whatever is in there
        shared = [v for module in source.modules() for v in _own(module).values() if not _copies(v, kept)]
        if not shared:
            raise
        return copy.deepcopy(source, {**kept, **{id(v): v for v in shared}})


def _own(module: nn.Module) -> dict[str, Any]:
    """What a module keeps beside its parameters, buffers, modules and hooks."""
    return {k: v for k, v in vars(module).items() if k not in _TORCHS and not isinstance(v, nn.Module)}


def _with_graph(value: Any, depth: int = DEPTH) -> Iterator[Tensor]:
    """Tensors that autograd has made, in a nest."""
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif depth and isinstance(value, Mapping):
        for v in value.values():
            yield from _with_graph(v, depth - 1)
    elif depth and isinstance(value, (list, tuple, set)):
        for v in value:
            yield from _with_graph(v, depth - 1)


def _copies(value: Any, kept: dict[int, Tensor]) -> bool:
    try:
        copy.deepcopy(value, dict(kept))
    except Exception:  # whatever it is
        return False
    return True


def moved_copy(source: nn.Module, move: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """The same, through ``move``, which may exchange parameters (another device or dtype) and lose their hooks."""
    made = PrivateCopy(move(deep_copy(source)))
    for parameter in made.model.parameters():
        parameter._backward_hooks = None
    _take_hooks(source, made)
    return made.model


def _take_hooks(source: nn.Module, made: PrivateCopy) -> None:
    # The memo also keeps temporaries alive; what matters are the parts of the model itself.
    twins = twins_of(source, made.model)
    for module in made.model.modules():
        _own_functions(module, twins)
    for name, parameter in source.named_parameters():
        _hooks_of_parameter(name, parameter, twins, made.missing)


def twins_of(source: nn.Module, copied: nn.Module) -> dict[int, Any]:
    """id of each module, parameter and buffer of ``source`` → the part of ``copied`` that has its name."""
    twins: dict[int, Any] = {}
    for kind in (nn.Module.named_modules, nn.Module.named_parameters, nn.Module.named_buffers):
        copies = dict(kind(copied, remove_duplicate=False))
        twins.update((id(t), copies[n]) for n, t in kind(source, remove_duplicate=False) if n in copies)
    return twins


def _own_functions(module: nn.Module, twins: dict[int, Any]) -> None:
    """Functions kept on the module itself (a patched ``forward``) and its hooks, around the copy."""
    for name, value in list(module.__dict__.items()):
        if isinstance(value, (types.FunctionType, types.MethodType, functools.partial)):
            module.__dict__[name] = around(value, twins)
        elif name.endswith("_hooks") and isinstance(value, dict):
            for key, hook in list(value.items()):
                value[key] = around(hook, twins)


def _hooks_of_parameter(name: str, parameter: Tensor, twins: dict[int, Any], missing: list[str]) -> None:
    twin = twins.get(id(parameter))
    if twin is None:
        return
    for hook in list((parameter._backward_hooks or {}).values()):
        _register(twin.register_hook, hook, twins, f"a gradient hook of {name}", missing)
    for hook in list((getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values()):
        _register(twin.register_post_accumulate_grad_hook, hook, twins, f"a gradient hook of {name}", missing)


def _register(register: Callable[[Any], Any], hook: Any, twins: dict[int, Any], what: str, missing: list[str]) -> None:
    try:
        register(around(hook, twins))
    except Exception as e:  # whatever the hook is
        missing.append(f"{what} ({type(e).__name__})")


def around(value: Any, twins: dict[int, Any], depth: int = DEPTH) -> Any:
    """``value`` with every part of the model that it holds on to exchanged for its twin.

    Looks into bound methods, closures, defaults, partials and the globals that a function names; everything else is
    handed back as it is.
    """
    if id(value) in twins:
        return twins[id(value)]
    if depth == 0:
        return value
    if isinstance(value, types.MethodType):
        held = around(value.__self__, twins, depth - 1)
        return value if held is value.__self__ else types.MethodType(value.__func__, held)
    if isinstance(value, functools.partial):
        args = tuple(around(a, twins, depth - 1) for a in value.args)
        keywords = {k: around(v, twins, depth - 1) for k, v in value.keywords.items()}
        return functools.partial(around(value.func, twins, depth - 1), *args, **keywords)
    if isinstance(value, types.FunctionType):
        return _function_around(value, twins, depth)
    return value


def _function_around(function: types.FunctionType, twins: dict[int, Any], depth: int) -> types.FunctionType:
    cells, changed = [], False
    for cell in function.__closure__ or ():
        try:
            held = cell.cell_contents
        except ValueError:  # a variable that was not set yet
            cells.append(cell)
            continue
        new = around(held, twins, depth - 1)
        changed |= new is not held
        # Cells that hold nothing of the model stay shared: counters in them go on counting together.
        cells.append(cell if new is held else types.CellType(new))
    defaults = tuple(around(d, twins, depth - 1) for d in function.__defaults__ or ())
    changed |= any(a is not b for a, b in zip(defaults, function.__defaults__ or (), strict=True))
    known = function.__globals__
    named = {n: twins[id(known[n])] for n in function.__code__.co_names if n in known and id(known[n]) in twins}
    if not changed and not named:
        return function
    given = {**known, **named} if named else known  # a script's own names: its model is one of them
    made = types.FunctionType(function.__code__, given, function.__name__, defaults or None, tuple(cells) or None)
    made.__kwdefaults__ = function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made
