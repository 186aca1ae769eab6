"""The optimizer's step: clipped and taken, a step without a guard, and which optimizers a guard can call."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.forward_backward import Forward, as_terms, backward, read


def clip_coefficient(norm: float, max_norm: float | None) -> float:
    """What the gradients are multiplied by: 1 where nothing is clipped. torch's own formula otherwise."""
    if not max_norm or norm <= max_norm:
        return 1.0
    # In float32, as torch computes it.
    return float(max_norm / (torch.tensor(norm, dtype=torch.float32) + 1e-6))


def apply(optimizer: torch.optim.Optimizer, gradients: Sequence[Tensor], coefficient: float) -> None:
    """Clip and step. A fused optimizer multiplies while it updates; others need a pass over the gradients."""
    if coefficient == 1.0:
        _step(optimizer)
    elif coefficient > 0 and scales_itself(optimizer) and all(t.dtype == torch.float32 for t in gradients):
        # `full` writes the number on the device; `tensor` would send it there, and wait.
        optimizer.grad_scale = torch.full((), 1.0 / coefficient, device=gradients[0].device)  # type: ignore[attr-defined]
        try:
            _step(optimizer)
        finally:
            del optimizer.grad_scale  # type: ignore[attr-defined]
    else:
        torch._foreach_mul_(list(gradients), coefficient)  # pyright: ignore[reportPrivateImportUsage]
        _step(optimizer)


def _step(optimizer: torch.optim.Optimizer) -> None:
    """The step, by gradients alone; an optimizer that misses its closure says so in words of its own, or in none."""
    try:
        optimizer.step()
    except (AssertionError, TypeError) as error:
        wanted = "closure" in str(error) or "'NoneType' object is not callable" in str(error)
        if not wanted or "closure" not in inspect.signature(type(optimizer).step).parameters:
            raise
        raise _wants_closure(optimizer) from error


def scales_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step()`` divides by ``optimizer.grad_scale``: torch's fused kernels do."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def plain(
    forward: Forward,
    batches: Sequence[Any],
    optimizer: torch.optim.Optimizer,
    scaler: Any,
    parameters: Sequence[Tensor],
    max_norm: float | None,
) -> tuple[dict[str, float], float]:
    """A plain PyTorch training step, as tutorials write it: losses, and the gradient norm (nan if not clipped)."""
    optimizer.zero_grad(set_to_none=True)
    kept: list[dict[str, Tensor]] = []
    for batch in batches:
        terms = as_terms(forward(batch))
        kept.append({n: t.detach() for n, t in terms.items()})
        backward(list(terms.values()), len(batches), scaler)
    norm: Tensor | None = None
    if scaler is not None and max_norm:
        scaler.unscale_(optimizer)
    if max_norm:
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    losses: dict[str, float] = {}
    for values in map(read, kept):
        for name, value in values.items():
            losses[name] = losses.get(name, 0.0) + value / len(batches)
    return losses, math.nan if norm is None else float(norm)


def refuse_closures(optimizer: torch.optim.Optimizer) -> None:
    """Raise ConfigError for an optimizer whose step() needs a closure: `Guard.step` has none to give."""
    if needs_closure(optimizer):
        raise _wants_closure(optimizer)


def _wants_closure(optimizer: torch.optim.Optimizer) -> ConfigError:
    return ConfigError(
        f"{type(optimizer).__name__} evaluates the loss several times within a step, which guard.step cannot do",
        expected="an optimizer whose step() needs no closure, such as SGD or AdamW",
        fix="guard = attach(model, optimizer), diagnose=True or not, and keep optimizer.step(closure) in your loop",
    )


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step()`` cannot be called without one, as LBFGS."""
    closure = inspect.signature(type(optimizer).step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def evaluates_once(optimizer: torch.optim.Optimizer) -> bool:
    """Whether ``step(closure)`` calls the closure once, before it does anything: torch's own but LBFGS."""
    kind = type(optimizer)
    return kind.__module__.startswith("torch.optim") and not needs_closure(optimizer)
