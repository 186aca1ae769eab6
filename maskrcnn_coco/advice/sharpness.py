"""How far one update may go: the critical learning rate along it, and exact curvature of a component.

The critical learning rate is where the loss after the update exceeds the loss before it; 2 divided by it is the
critical sharpness (arXiv 2601.16979), here for one component at a time. It costs a few forward passes and no second
derivative. It leaves out momentum's build-up, noise between batches and time, so `limits` uses it only as the place to
start. Exact Hessian-vector products need double backward, which torchvision's ``roi_align`` does not have: they work
for ``rpn``, ``box_head`` and ``mask_head``, whose gradients do not pass through it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from maskrcnn_coco.advice.trials import Trials
from maskrcnn_coco.replay.snapshot import Snapshot


@dataclass(frozen=True)
class Critical:
    """``lr``: largest learning rate at which one update does not raise the loss. ``sharpness`` is 2 / ``lr``."""

    lr: float
    forwards: int

    @property
    def sharpness(self) -> float:
        """Critical sharpness, 2 / lr."""
        return 2.0 / self.lr if self.lr > 0 else math.inf


def line_search(
    loss_at: Callable[[float], float], start: float, *, ratio: float = 1.3, max_forwards: int = 12, top: float = 1e4
) -> Critical:
    """Largest ``t`` with ``loss_at(t) <= loss_at(0)``, to within ``ratio``: doubling or halving, then bisection.

    ``loss_at`` may return a non-finite number: that counts as a raised loss. 0 if no step tried lowers the loss;
    ``top`` if none raises it.
    """
    before = loss_at(0.0)
    forwards = 1

    def lowers(t: float) -> bool:
        nonlocal forwards
        forwards += 1
        return loss_at(t) <= before

    good, bad, t = 0.0, math.inf, start
    while forwards < max_forwards and (good == 0.0 or bad > good * ratio) and good < top:
        if lowers(t):
            good = t
        else:
            bad = t
        if math.isinf(bad):
            t = good * 4
        elif good == 0.0:
            t = bad / 4
        else:
            t = math.sqrt(good * bad)
    if good == 0.0 or math.isinf(bad):
        return Critical(good, forwards)
    return Critical(math.sqrt(good * bad), forwards)


def real_update(trials: Trials, component: str, step: int, *, fresh: bool) -> list[Tensor]:
    """What the optimizer would subtract at learning rate 1 from each parameter of ``component``.

    It is taken from the optimizer itself, so clipping, weight decay, momentum and Adam's scaling are in it. ``fresh``
    empties the momentum first: the update along this batch's gradient alone. Weights, buffers and state are put back.
    """
    state = trials.save(step)
    parameters = trials.parameters_of(component)
    if fresh:
        for value in trials.optimizer.state.values():
            for name in ("momentum_buffer", "exp_avg"):
                if isinstance(value.get(name), Tensor):
                    value[name].zero_()
    before = [p.detach().clone() for p in parameters]
    trials.set_lr(dict.fromkeys(trials.components, 0.0) | {component: 1.0})
    trials.step(step)
    update = [b - p.detach() for b, p in zip(before, parameters, strict=True)]
    trials.load(state)
    return update


def critical_lr(
    trials: Trials,
    state: Snapshot,
    component: str,
    *,
    start: float,
    losses: Sequence[str] = (),
    fresh: bool = True,
    max_forwards: int = 12,
) -> Critical:
    """`line_search` along the real update of ``component`` from ``state``, on the batch of that step.

    ``losses`` names the component's own (none: all). An update of the RPN moves the proposals, so the losses of the
    heads change by chance with it, which hides where its own begin to rise.
    """
    trials.load(state)
    parameters = trials.parameters_of(component)
    update = real_update(trials, component, state.step, fresh=fresh)
    origin = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def loss_at(lr: float) -> float:
        for p, o, u in zip(parameters, origin, update, strict=True):
            p.copy_(o - lr * u)
        return trials.loss(state.step, losses)

    try:
        return line_search(loss_at, start, max_forwards=max_forwards)
    finally:
        trials.load(state)
