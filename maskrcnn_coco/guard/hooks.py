"""What a guard puts into somebody else's training: hooks on modules, a method on the optimizer.

All of it survives `pickle`, `copy.deepcopy` (averaged copies of a model are made so) and `torch.compile`: a copy
carries hooks that do nothing, a copied optimizer has its own plain `step` again, and inside a compiled graph there is
no hook.
"""

from __future__ import annotations

import functools
import types
import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.errors import GuardWarning


class Inert:
    """What a copy of a hooked module carries."""

    def __call__(self, *_: Any, **__: Any) -> None:
        """Nothing happens."""


class Deafness:
    """While any guard takes steps again, no guard listens: a replay may call the networks of others (a GAN's)."""

    depth = 0

    @classmethod
    @contextmanager
    def deaf(cls) -> Iterator[None]:
        """Within it forward passes are no training, whoever's they are."""
        cls.depth += 1
        try:
            yield
        finally:
            cls.depth -= 1


class Hook:
    """Calls a method of a guard, as long as there is one; outside of compiled graphs only."""

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = weakref.WeakMethod(call)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """See the module that this hook is on."""
        if torch.compiler.is_compiling() or Deafness.depth or _of_no_interest():
            return None
        call = self._call()
        return None if call is None else call(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Inert:
        return Inert()

    def __reduce__(self) -> tuple[type[Inert], tuple[()]]:
        return Inert, ()


def _of_no_interest() -> bool:
    """Where a module runs, but no training step enters the model.

    Inside `torch.func.vmap` and kin, or while traced, tensors have no values that could be looked at; during a
    backward pass a module only runs to have again what was not kept (checkpoints), and no other operation must come in.
    """
    engine: Any = torch._C
    if engine._current_graph_task_id() != -1 or engine._functorch.peek_interpreter_stack() is not None:
        return True
    return engine._get_tracing_state() is not None


OTHERS = 10
"""Changes of the weights between forward passes, and no step of the guarded optimizer, after which it is said."""
ANOTHER = (
    "weights change from one forward pass to the next, and the optimizer that was given to attach has taken no step: "
    "the loop steps another one, which nothing guards. attach(model, optimizer) with the one whose step() it calls"
)


class Entrances:
    """Finds out through which modules a training enters the model, and watches those.

    A trainer may call the model, or a part of it (a LightningModule's ``self.net``). For the first steps every module
    is watched; then only those that were called from outside, so that a step of a deep model costs two hooks.
    """

    LEARN = 3

    def __init__(
        self,
        model: nn.Module,
        before: Callable[..., Any],
        after: Callable[..., Any],
        *,
        weight: nn.Parameter | None = None,
    ) -> None:
        """``weight``: one of the guarded optimizer's; that another optimizer steps it is said."""
        self.model = model
        self._before, self._after = before, after
        self._inside: nn.Module | None = None
        self._seen: set[int] = set()
        self._handles: dict[int, list[Any]] = {}
        self._steps = 0
        self._weight = weight
        self._versions: set[int] = set()
        for module in {id(m): m for m in (model, *model.modules())}.values():
            self._watch(module)

    def _watch(self, module: nn.Module) -> None:
        enter = module.register_forward_pre_hook(Hook(self._enter), with_kwargs=True)
        leave = module.register_forward_hook(Hook(self._leave), always_call=True)
        self._handles[id(module)] = [enter, leave]

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the module is given instead, (args, kwargs), or None: as it was called."""
        if self._inside is not None or not (module.training and torch.is_grad_enabled()):
            return None
        self._inside = module
        if self._weight is not None:
            self._look_for_others(self._weight)
        self._seen.add(id(module))
        return self._before(module, args, kwargs)

    def _leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        if self._inside is module:
            self._inside = None
            self._after(module, out)

    def _look_for_others(self, weight: nn.Parameter) -> None:
        self._versions.add(weight._version)
        if len(self._versions) > OTHERS:
            self._weight = None
            warnings.warn(ANOTHER, GuardWarning, stacklevel=2)

    def step_begins(self) -> None:
        """The guarded optimizer is the one that steps; it may run the model as often as it likes."""
        self._weight = None

    def step_taken(self) -> None:
        """After each optimizer step: when enough was seen, leave only the entrances watched."""
        self._weight = None
        self._inside = None  # a pass that raised never left
        self._steps += 1
        if self._steps != self.LEARN or not self._seen:
            return
        for key in [k for k in self._handles if k not in self._seen and k != id(self.model)]:
            for handle in self._handles.pop(key):
                handle.remove()

    def remove(self) -> None:
        """Take every hook off again."""
        for handles in self._handles.values():
            for handle in handles:
                handle.remove()
        self._handles.clear()


def replace_step(optimizer: torch.optim.Optimizer, stepped: Callable[..., Any]) -> Callable[..., Any]:
    """Put ``stepped(inner, args, kwargs)`` in front of this optimizer's ``step``; returns the one that was there.

    The replacement is a bound method, because torch's schedulers look for its ``__func__``.
    """
    inner = optimizer.step

    @functools.wraps(getattr(inner, "__func__", inner))
    def step(_: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        return stepped(inner, args, kwargs)

    # A scheduler that was made before must not take this for somebody's mistake.
    for mark in ("_wrapped_by_lr_sched", "_with_counter"):
        if hasattr(inner, mark):
            setattr(step, mark, True)
    optimizer.step = types.MethodType(step, optimizer)
    return inner
