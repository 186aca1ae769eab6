"""Weights that stand still, or are thrown about; rates that fit losses of any size."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

import torch
from torch import Tensor

from maskrcnn_coco.components import real
from maskrcnn_coco.guard.norms import Layout, norms
from maskrcnn_coco.guard.unlearnt import DIPS, LEARNT
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.guard.window import WINDOW

STILL = 1e-9


STILL_STEPS = 20


class Stall:
    """Weights that stand still although their gradients and learning rate do not."""

    def __init__(self) -> None:
        self._count: dict[str, int] = {}
        self._lr: dict[str, float] = {}
        self._norms: dict[str, deque[float]] = {}
        self._onset: dict[str, int] = {}

    @property
    def watching(self) -> bool:
        """Whether a component was seen standing still, so that the next step must be measured too."""
        return any(self._count.values())

    def judge(
        self, step: int, ratio: dict[str, float], lr: dict[str, float], groups: dict[str, float]
    ) -> Verdict | None:
        """The verdict on a step whose update-to-weight ratio was measured."""
        found = None
        for name, value in ratio.items():
            rate, norm = lr.get(name, 0.0), groups.get(name, 0.0)
            self._lr[name] = max(self._lr.get(name, 0.0), rate)
            known = self._norms.setdefault(name, deque(maxlen=WINDOW))
            usual = median(known) if known else norm
            still = value < STILL and rate >= 1e-3 * self._lr[name] > 0 and norm > 1e-3 * usual and norm > 1e-8
            if not still:
                if value >= STILL:
                    self._count[name] = 0
                # Without a gradient (no object in the batch) standing still says nothing, neither for nor against.
                known.append(norm)
                continue
            self._count[name] = self._count.get(name, 0) + 1
            self._onset[name] = step if self._count[name] == 1 else self._onset[name]
            if self._count[name] >= STILL_STEPS and found is None:
                text = f"weights of {name} stand still for {STILL_STEPS} measured steps (update {value:.3g} of weight)"
                measured = {"update_ratio": ratio, "group_grad_norm": groups, "lr": lr, "component": name}
                found = Verdict("stalled", text, measured, self._onset[name])
        if found is not None:
            self._count.clear()
        return found

    def reset(self) -> None:
        """Start counting anew."""
        self._count.clear()


HASTE_STEPS, HASTE, HASTY = 5, 1.0, 0.1
"""(steps in a row, times its own norm in all that they moved a component's weights) that nothing learns at.

Healthy steps stay below 0.12 each. A step that cannot move any component by a tenth of its norm ends the row.
"""
ABOVE = 2.0
"""The median loss of such a row over the first, where an update is as large as the gradient makes it."""


TOUCHES = 1.001
"""A loss of weights so small that they say nothing may be this many times the start's."""


class Haste:
    """Updates that keep throwing a component's weights about.

    Clipping keeps the loss from exploding, and so do losses that saturate and units that die: no loss is ever extreme;
    but few fall below where the run began.
    What counts is a row of such steps: a loss from before it was earned by other updates,
    and the run's first, which is the start itself, is no sign of learning either.
    """

    def __init__(self) -> None:
        self._moved: deque[tuple[int, dict[str, float]]] = deque(maxlen=HASTE_STEPS)
        self._losses: deque[float] = deque(maxlen=HASTE_STEPS)
        self._bound: dict[str, float] = {}
        self._first, self._start = True, -1
        self.watching = False

    def judge(
        self, step: int, loss: float, first_loss: float, bound: dict[str, float], *, bounded: bool = True
    ) -> Verdict | None:
        """The verdict on a step.

        Args:
            bound: component → most that it can move by, empty where that says nothing.
            bounded: steps are of a size whatever the gradient. Where not, noise around an optimum throws small weights
                about too, and losses have to be well above the start.
        """
        self._bound = bound
        self._losses.append(loss)
        # Noise around an optimum throws small weights about too, where an update is as large as the gradient makes it.
        start = LEARNT * first_loss if bounded else first_loss
        dips = sum(v <= start for v in self._losses)
        if self._first and first_loss == math.inf:  # none was accepted yet: this is the run's first
            self._start = step
        learns = dips > DIPS or (dips and len(self._losses) <= DIPS and step != self._start)
        self._first = False
        self.watching = not learns and max(bound.values(), default=0.0) > HASTY
        if not self.watching:
            self.reset()
        if len(self._moved) < HASTE_STEPS or loss <= start:
            return None
        # The first step of a run is large where nothing warms it up: what it led to has to be much worse.
        if (not bounded or self._moved[0][0] == self._start) and median(self._losses) <= ABOVE * first_loss:
            return None
        first, second, *_, before, last = self._losses
        if max(self._losses) <= TOUCHES * first_loss and before + last < first + second:
            return None  # small weights that have far to go, and go there: never above the start, and falling
        # Components may have come or gone since: a group was added.
        total = {name: sum(ratio.get(name, 0.0) for _, ratio in self._moved) for name in self._moved[-1][1]}
        worst = max(total, key=total.__getitem__)
        if total[worst] <= HASTE:
            return None
        onset, last = self._moved[0][0], self._moved[-1][1]
        text = (
            f"{worst} moved by {total[worst]:.2g} times its weights in {HASTE_STEPS} steps from {onset} on, "
            f"and the loss stayed near its start of {first_loss:.3g}, or above: {loss:.4g}"
        )
        self.reset()
        return Verdict("diverged", text, {"update_ratio": last, "moved": total, "component": worst}, onset)

    def measured(self, step: int, ratio: dict[str, float]) -> None:
        """The exact update-to-weight ratios of a step that was watched."""
        if self.watching:
            # The bound knows that weights which start at zero must be able to leave it.
            self._moved.append((step, {c: min(v, self._bound.get(c, v)) for c, v in ratio.items()}))

    def reset(self) -> None:
        """Start counting anew."""
        self._moved.clear()
        self._losses.clear()
        self.watching = False


FITS = 2.0
"""Rate times gradient squared, as a share of the loss: what one step along it takes away. 0.7 in runs that learn."""


def fits_losses(optimizer: torch.optim.Optimizer, loss: float, gradient: float) -> bool:
    """Whether SGD's rates are so low that a loss of this size is meant: a sum over a whole set, say.

    The gradient counts as at least the loss: a model that is broken has one as large, before a loop clips it. Adam's
    steps have one size whatever the loss, and tell nothing.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return False
    size = max(abs(loss), gradient)
    return max(real(g["lr"]) for g in optimizer.param_groups) * size * size <= FITS * abs(loss)


LONGEST = 1 - 1e-12
"""An average of squares that forgets nothing has no width."""


def widest(optimizer: torch.optim.Optimizer) -> float:
    """How many learning rates a step may move each weight by: of RMSprop more, as its average begins at zero."""
    if not isinstance(optimizer, torch.optim.RMSprop):
        return 1.0
    taken = max((real(s.get("step", 0)) for s in optimizer.state.values()), default=0.0) + 1
    # One that somebody set outside of that makes an update that is not finite, or none of that size.
    kept = [min(max(real(g["alpha"]), 0.0), LONGEST) for g in optimizer.param_groups]
    return max(1 / math.sqrt(1 - alpha**taken) for alpha in kept)


def of_one_size(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step has one length whatever the gradient's, as those of Adam and kin have: RMSprop, Adagrad."""
    return isinstance(optimizer, (torch.optim.RMSprop, torch.optim.Adagrad))


def update_ratio(before: list[Tensor], layout: Layout, weights: list[float]) -> dict[str, float]:
    """‖update‖ / ‖weights‖ per component, exactly, from a copy of the weights before the step (which it uses up)."""
    with torch.no_grad():
        torch._foreach_sub_(before, [p.detach() for p in layout.params])  # pyright: ignore[reportPrivateImportUsage]
    update = layout.totals(norms(before))
    return layout.by_component([u / max(w, 1e-30) for u, w in zip(update, weights, strict=True)])


def shrink(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the first steps are the longest by far, at a sound rate too: they throw small weights about, for once."""
    return isinstance(optimizer, torch.optim.Adagrad)
