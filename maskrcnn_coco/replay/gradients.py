"""Norms and digest of the gradients of a replay."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import plain_name
from maskrcnn_coco.guard.forward_backward import Pass
from maskrcnn_coco.guard.norms import Layout, as_real, stacked_norms
from maskrcnn_coco.replay.outcome import Outcome

ROUNDED = 1e-3
"""Gradients of one step, twice computed, differ by less of their norm."""


def read_norms(layout: Layout, outcome: Outcome, scale: float) -> None:
    """Per-component norms, computed as the guard does: clipping must come out the same to the last bit."""
    gradients, where = layout.gradients()
    if scale != 1.0 and gradients:
        torch._foreach_div_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage]
    if not gradients:
        outcome.finite = outcome.finite and not outcome.bad_losses
        return
    stacked = stacked_norms(gradients)
    *each, outcome.grad_norm = torch.cat([stacked, stacked.norm().reshape(1)]).tolist()
    for i in [i for i, v in enumerate(each) if not math.isfinite(v)]:
        if _finite(gradients[i]):
            # Only the square of a huge norm overflowed.
            each[i] = _norm(gradients[i])
        else:
            outcome.bad_grads.append(layout.names[where[i]])
    outcome.bad_grad_count = len(outcome.bad_grads)
    outcome.group_grad_norm = layout.by_component(layout.totals(each, where))
    if not math.isfinite(outcome.grad_norm):
        outcome.grad_norm = _total(outcome.group_grad_norm.values())
    outcome.finite = outcome.finite and not outcome.bad_losses and outcome.bad_grad_count == 0


def _total(values: Iterable[float]) -> float:
    squares = sum(v * v for v in values)
    return math.sqrt(squares) if squares == squares else squares


def _norm(tensor: Tensor) -> float:
    """2-norm of finite numbers whose squares overflow float32. Not in float64, which not every device has."""
    tensor = as_real(tensor)
    largest = float(tensor.abs().max())
    return largest * float((tensor.float() / largest).norm())


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())


def gradient_digest(model: nn.Module, outcome: Outcome) -> str:
    h = hashlib.sha256(repr(sorted(outcome.losses.items())).encode())
    for parameter in model.parameters():
        if parameter.grad is not None:
            for dense in _dense(parameter.grad.detach()):
                h.update(dense.cpu().contiguous().numpy().tobytes())
    return h.hexdigest()


def _dense(gradient: Tensor) -> list[Tensor]:
    """The numbers of a gradient; of a sparse one where they are, and which."""
    if not gradient.is_sparse:
        return [as_real(gradient).float()]
    gradient = gradient.coalesce()
    return [gradient.indices(), as_real(gradient.values()).float()]


def times_of(live: Mapping[str, Tensor], model: nn.Module) -> float | None:
    """The one number that every gradient of ``model`` is multiplied by in ``live``; None: there is none. Below 0 they
    point up the loss.

    A gradient clipped by value, a hook on one weight or a bit that flipped is no such number.
    """
    own = {plain_name(n): p.grad.detach() for n, p in model.named_parameters() if p.grad is not None}
    if not own or own.keys() != live.keys() or any(g.is_sparse for g in (*own.values(), *live.values())):
        return None
    pairs = [(as_real(own[n]).double(), as_real(live[n].detach()).double().to(own[n].device)) for n in own]
    square = sum(float(a.square().sum()) for a, _ in pairs)
    if not 0 < square < math.inf:
        return None
    times = sum(float((a * b).sum()) for a, b in pairs) / square
    off = sum(float((b - times * a).square().sum()) for a, b in pairs)
    return times if times and math.sqrt(off) <= ROUNDED * abs(times) * math.sqrt(square) else None


def by_another(out: Pass, layout: Layout) -> bool:
    """Whether what was gone backward from is of a model that is not this copy: a forward pass that names the run's."""
    return not out.losses.keys() <= set(out.without_gradient) and all(p.grad is None for p in layout.params)
