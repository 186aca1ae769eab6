"""A loss that is weighed anew on purpose, told from one that diverges.

Where a loss rises because the weights moved, the way that they moved must be long enough for it: along each step the
loss can rise by no more than the step's length times the gradient (the mean value theorem). Measured at the first wild
step of diverging runs that product is 2 to 100 times the rise; where a loss was only multiplied, 0.0005 to 0.7 times.
So it is with a weight that rises step by step, all lengths taken together. What is left is a change of the loss or of
its data, and a factor before the loss, or before one term of it, has a sign of its own: every gradient that it reaches
is multiplied by that factor, biases like weights. Inputs or targets of another size do not do that, and one bad batch
is gone with the next.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import Tensor

from maskrcnn_coco.components import real
from maskrcnn_coco.guard.norms import Layout, as_real, norms, real_parts

KEPT = 20
"""Calm steps that loss and gradients are compared with."""
NEEDED = 5
"""Calm steps without which nothing is known."""
AGAIN = 3
"""Steps in a row that must tell the same: one batch may do anything."""
LOOKED_AT, LATEST = 6, 24
"""Steps of a run that are looked at: the first, and while it is not longer than this the last `AGAIN` of it: a weight
may go on rising. Later ones are of weights that the new loss has moved."""
JUMP = math.log(2.5)
"""A loss that jumps by less from one step to the next begins no run of its own."""
REACH = 0.7
"""Length of the updates times the gradient, as a share of the loss's rise: at least this where they are the reason."""
ALIKE = 0.7
"""Gradients may be off the loss's own factor by so much (as a logarithm), or by a quarter of the factor's; noise."""
SPREAD = 2.0
"""Tensors may differ by so much among themselves, as a logarithm; inputs of another size make it 3 and more."""
SMALLER = -1.5
"""No gradient may be smaller than usual by more, as a logarithm, where a term has a new weight."""
OF_A_LAYER = 1.2
"""Tensors of one layer may differ by so much, or by a fifth of the loss's factor: the mean error may be near 0."""
REACH_CLIPPED, SPREAD_CLIPPED = 0.35, 1.0
"""The same of a gradient that was clipped before it was seen: how long it had been is not known then."""
REACH_CRISP, CRISP = 0.95, 0.6
"""And of gradients that all have the loss's factor to within so much (as a logarithm): no divergence does that."""
SAME_LENGTH = 1e-3
"""Gradients of several steps that are as alike in length, relatively, were clipped."""
FURTHEST = 2.0
"""Next update times gradient, as a share of the loss: beyond it the learning rate does not stand the new weight."""
DOWNHILL, LED, STEPS = -0.1, 0.5, 4
"""Where a loss creeps up and the weights' steps are not the reason: the median cosine between a step and the gradient
after it, which is above 0 in every divergence, as a step that goes too far ends where the slope leads back; or the sum
of step times gradient after it, as a share of the rise. It is no less than the rise where the steps lead there. Of at
least so many steps."""
LEVEL = math.log(3)
"""A run may rise by so much above its first step."""
LARGEST = math.log(1e7)
"""Nobody weighs a loss by more: a mean that becomes a sum over batch and pixels is 1e6."""

ADAM = ("adam", "adamw")
"""Optimizers whose state tells the last update to the digit, as SGD's does."""
LIKE_ADAM = (*ADAM, "radam", "nadam")
SQUARES = {"rmsprop": "square_avg", "adagrad": "sum", "nadam": "exp_avg_sq"}
"""Optimizers that divide the gradient by the root of this part of their state."""
MARGIN, SPREAD_ALIKE = 2.0, 1.5
"""An update may be so many times as long as another that was measured; as one that sums over a tensor tell of."""

Found = tuple[float, dict[int, float]]
"""Factor of the loss, and position of a tensor → factor of its gradient."""


@dataclass
class _Run:
    """Wild steps in a row: the loss's and each tensor's factor, as logarithms; gradient norms.

    ``begin``: the loss before them; ``way``: the most that the weights' moves may have raised it by; ``unexplained``:
    the most that it was above both together.
    """

    usual: float
    begin: float
    way: float = 0.0
    unexplained: float = 0.0
    losses: list[float] = field(default_factory=list)
    gradients: list[dict[int, float]] = field(default_factory=list)
    lengths: list[float] = field(default_factory=list)
    crept: bool = False
    """It did not begin with a jump; after one it takes longer until the steps tell."""
    cosines: list[float] = field(default_factory=list)
    led: float = 0.0
    """The sum of step times gradient after it."""

    def follows(self) -> bool:
        """Whether the loss crept up although the steps do not lead there: what it is to fit runs away from it."""
        if len(self.cosines) < (STEPS if self.crept else LATEST):
            return False
        rise = self.usual * (math.exp(min(self.losses[-1], LARGEST)) - math.exp(min(self.losses[0], LARGEST)))
        apart = rise > 0 and abs(self.led) < LED * rise and not _clipped(self.lengths)
        return apart or median(self.cosines[-LOOKED_AT:]) < DOWNHILL

    def reach(self, factor: float) -> float:
        """Share of the rise to ``factor`` (as a logarithm) that the weights' moves may be the reason of."""
        rise = self.usual * math.exp(min(factor, LARGEST)) - self.begin
        return 1 - self.unexplained / rise if rise > 0 and math.isfinite(rise) else math.inf

    def windows(self, steps: int) -> list[slice]:
        """Steps to be looked at together, of at least ``steps``."""
        count = len(self.losses)
        found = [slice(0, LOOKED_AT)] if count >= steps else []
        return [*found, slice(count - AGAIN, count)] if LOOKED_AT < count <= LATEST and steps >= AGAIN else found


class LossWeight:
    """Watches losses that leave the healthy ones; costs two appends at a calm step. No tensors are kept."""

    def __init__(self) -> None:
        self._losses: deque[float] = deque(maxlen=KEPT)
        self._norms: deque[tuple[Sequence[int], list[float]]] = deque(maxlen=KEPT)
        self._last = 0.0
        self._run: _Run | None = None
        self.rates: list[Any] = []
        """Learning rates of the parameter groups at the last update."""
        self.measured: tuple[float, float] | None = None
        """Length of an update that was measured, and the largest learning rate at it."""
        self.moved: float | None = None
        """Length of the last update, where it was measured; None: to be worked out."""
        self.stepped = True
        """Whether the weights were moved since the last step was looked at."""
        self.gradient: dict[int, float] = {}
        """Position of a tensor → norm of the gradient that the last update was made of."""
        self.back: list[Tensor] = []
        """The weights before the last update less those after it; empty: it was not measured."""

    @property
    def under_way(self) -> bool:
        """Whether losses are not healthy, so that the coming update is to be measured."""
        return self._run is not None

    def reset(self) -> None:
        """Forget the run-up, after a rollback or a repair."""
        self._run, self.moved, self.back = None, None, []

    def calm(self, loss: float, where: Sequence[int], values: list[float]) -> None:
        """An applied step with a healthy loss: ``values`` are the gradient norms of the tensors at ``where``."""
        self._losses.append(abs(loss))
        self._norms.append((where, values))
        self._last, self._run, self.back = abs(loss), None, []

    def wild(
        self,
        loss: float,
        where: Sequence[int],
        values: list[float],
        length: Callable[[], float],
        gradients: Sequence[Tensor] = (),
    ) -> None:
        """A step whose loss is not healthy, applied or not.

        Args:
            length: at most how far the last update moved all weights.
            gradients: of the tensors at ``where``; of a sparse one its rows alone, which no way back is beside.
        """
        size, before, self._last = abs(loss), self._last, abs(loss)
        usual = median(self._losses) if len(self._losses) >= NEEDED else 0.0
        if not usual or not size or not values:
            self._run = _Run(0.0, math.inf)
            return
        factor, run = math.log(size / usual), self._run
        if run is None or factor - max(run.losses, default=0.0) > JUMP:
            run = self._run = _Run(usual, max(before, usual), crept=size < math.exp(JUMP) * max(before, usual))
        back = [self.back[i] for i in where] if self.stepped and self.back else []
        if back and [g.shape for g in gradients] == [b.shape for b in back]:
            along, cosine = _along(gradients, back)
            run.cosines.append(cosine)
            run.led += along
        if self.stepped:
            calm = median(math.hypot(*held) for _, held in self._norms)
            run.way += length() * max(math.hypot(*values), calm * size / usual)
        self.stepped = False
        run.unexplained = max(run.unexplained, size - run.begin - run.way)
        run.losses.append(factor)
        run.gradients.append(self._factors(where, values))
        run.lengths.append(math.hypot(*values))

    def _factors(self, where: Sequence[int], values: list[float]) -> dict[int, float]:
        """Position → logarithm of its gradient's norm over the usual one; only of what has a gradient worth a look."""
        known: dict[int, list[float]] = {}
        for places, held in self._norms:
            for place, value in zip(places, held, strict=True):
                known.setdefault(place, []).append(value)
        usual = {place: median(held) for place, held in known.items()}
        least = 1e-6 * max(usual.values(), default=0.0)
        return {
            place: math.log(max(value, 1e-30) / usual[place])
            for place, value in zip(where, values, strict=True)
            if usual.get(place, 0.0) > least
        }

    def follows(self) -> bool:
        """Whether what the loss is to fit runs away from it, though the steps do what they should."""
        return self._run is not None and self._run.follows()

    def found(self, layout: Layout, *, steps: int = AGAIN) -> Found | None:
        """The factors, where a new weight of the loss is what happened.

        Args:
            layout: of the tensors whose gradients were shown.
            steps: that must tell the same; of fewer it is no more than likely.
        """
        run = self._run
        if run is None:
            return None
        for window in run.windows(steps):
            found = _found_in(run, window, layout)
            if found is not None:
                return found
        return None

    def adopt(self, found: Found) -> None:
        """What is usual is so many times as large from here on."""
        loss, gradients = found
        self._losses = deque([v * loss for v in self._losses], KEPT)
        self._norms = deque(
            [(w, [v * gradients.get(p, 1.0) for p, v in zip(w, held, strict=True)]) for w, held in self._norms], KEPT
        )
        self._run = None


def _found_in(run: _Run, window: slice, layout: Layout) -> Found | None:
    losses, seen, lengths = run.losses[window], run.gradients[window], run.lengths[window]
    loss = median(losses)
    reach = run.reach(loss)
    if reach >= REACH_CRISP or loss > LARGEST or max(losses) > losses[0] + LEVEL:
        return None
    places = set.intersection(*map(set, seen))
    # Noise of single batches cancels; the weights are still nearly those of the first of them.
    gradients = {p: median(g[p] for g in seen) for p in places}
    if not gradients:
        return None
    off = [median(g[p] - f for g, f in zip(seen, losses, strict=True)) for p in places]
    if not (_of_all(loss, reach, off, lengths) or (reach < REACH and _of_a_term(loss, gradients, layout))):
        return None
    return math.exp(loss), {p: math.exp(v) for p, v in gradients.items()}


def _of_all(loss: float, reach: float, off: list[float], lengths: list[float]) -> bool:
    """Whether every gradient has the loss's own factor; ``off`` it by so much, as logarithms."""
    by, spread = median(off), _spread(off)
    if _clipped(lengths):
        return by <= ALIKE and spread <= SPREAD_CLIPPED and reach < REACH_CLIPPED
    if reach >= REACH:
        return len(off) >= AGAIN and abs(by) <= CRISP / 2 and spread <= CRISP
    return abs(by) <= max(ALIKE, 0.25 * loss) and spread <= SPREAD


def _of_a_term(loss: float, gradients: dict[int, float], layout: Layout) -> bool:
    """Whether some layers have a factor of at least the loss's, and none a smaller gradient, each as a whole.

    A single number (the bias of one output) is left out: its gradient is a mean error, which may be near 0 by chance.
    """
    layers: dict[str, list[float]] = {}
    for place, value in gradients.items():
        if layout.params[place].numel() > 1:
            layers.setdefault(layout.names[place].rpartition(".")[0], []).append(value)
    reached = [v for v in layers.values() if len(v) > 1 and median(v) >= loss - ALIKE]
    whole = all(max(v) - min(v) <= max(OF_A_LAYER, 0.2 * loss) for v in layers.values())
    return bool(reached) and whole and min(gradients.values()) >= SMALLER


def _along(gradients: Sequence[Tensor], back: Sequence[Tensor]) -> tuple[float, float]:
    """A step, given as the way back, times the gradient after it; and the cosine between them (0: there is none)."""
    with torch.no_grad():
        dot = -sum(float((as_real(g) * as_real(b)).sum()) for g, b in zip(gradients, back, strict=True))
    size = math.hypot(*norms(list(gradients))) * math.hypot(*norms(list(back)))
    return (dot, dot / size) if size > 0 and math.isfinite(size) and math.isfinite(dot) else (0.0, 0.0)


def _clipped(lengths: list[float]) -> bool:
    """Whether gradients of several steps are all of one length."""
    return len(lengths) > 1 and max(lengths) - min(lengths) <= SAME_LENGTH * max(lengths)


def _spread(values: list[float]) -> float:
    """Largest less smallest; of many without the outer twentieths."""
    ordered, cut = sorted(values), len(values) // 20
    return ordered[-1 - cut] - ordered[cut]


def last_length(
    optimizer: torch.optim.Optimizer,
    layout: Layout,
    rates: Sequence[Any],
    gradient: dict[int, float],
    measured: tuple[float, float] | None = None,
) -> float:
    """At most how far the last update moved all weights (2-norm); infinite where nobody can know.

    Args:
        rates: learning rates of the parameter groups when it was taken.
        gradient: norms of the gradients that it was made of, by position of their tensors.
        measured: length of an earlier update, and the largest rate at it. Updates of optimizers that nobody knows are
            of one size, as far as can be told.
    """
    total, largest = 0.0, 0.0
    kind = type(optimizer).__name__.lower()
    sizes = norms(layout.params)
    for g, group in enumerate(optimizer.param_groups):
        given = group.get("lr")
        if given is None:
            return math.inf
        rate = max(real(given), real(rates[g] or 0.0) if g < len(rates) else 0.0)
        places = [i for i, of in enumerate(layout.groups) if of == g]
        weights = math.hypot(*(sizes[i] for i in places))
        total += (rate * (_stretch(kind, optimizer, group, layout, places, gradient) + _decay(group) * weights)) ** 2
        largest = max(largest, rate)
    if measured is None or measured[1] <= 0 or isinstance(optimizer, torch.optim.SGD) or kind in ADAM:
        return math.sqrt(total)
    return min(math.sqrt(total), MARGIN * measured[0] * largest / measured[1])


def too_far(optimizer: torch.optim.Optimizer, loss: float, gradient: float) -> bool:
    """Whether steps along such a gradient would undo more than all of the loss: only SGD's grow with the gradient."""
    if not isinstance(optimizer, torch.optim.SGD):
        return False
    rate = max(real(g["lr"]) / max(1 - float(g["momentum"]), 1e-3) for g in optimizer.param_groups)
    return rate * gradient * gradient > FURTHEST * abs(loss)


def _decay(group: dict[str, Any]) -> float:
    given = group.get("weight_decay")
    return float(given) if isinstance(given, (int, float)) else 0.0


def _stretch(
    kind: str,
    optimizer: torch.optim.Optimizer,
    group: dict[str, Any],
    layout: Layout,
    places: list[int],
    gradient: dict[int, float],
) -> float:
    """Norm of one group's last update at a rate of 1, without weight decay."""
    states = {i: real_parts(optimizer.state.get(layout.params[i]) or {}) for i in places}
    length = math.hypot(*(gradient.get(i, 0.0) for i in places))
    widest = math.sqrt(sum(as_real(layout.params[i]).numel() for i in places))
    heavy = group.get("momentum")
    if isinstance(optimizer, torch.optim.SGD):
        buffers = [s["momentum_buffer"] for s in states.values() if isinstance(s.get("momentum_buffer"), Tensor)]
        if not buffers:
            return length
        return math.hypot(*norms(buffers)) + (length if group.get("nesterov") else 0.0)
    with torch.no_grad():
        if kind in LIKE_ADAM:
            own = math.hypot(*norms([_of_adam(s, group) for s in states.values() if "exp_avg_sq" in s]))
            if kind != "nadam":
                return own
            taken = max((float(s["step"]) for s in states.values() if "step" in s), default=1.0)
            return own + _by_squares(kind, states, gradient) * math.sqrt(1 - float(group["betas"][1]) ** taken)
        if kind == "adamax":
            return math.hypot(*norms([_of_adamax(s, group) for s in states.values() if "exp_inf" in s]))
        if kind == "adadelta":
            return min(
                widest, SPREAD_ALIKE * math.hypot(*(float(s["acc_delta"].sum().sqrt()) for s in states.values() if s))
            )
        if kind == "adagrad":
            return min(widest, SPREAD_ALIKE * _by_squares(kind, states, gradient))
    steps = max((float(s["step"]) for s in states.values() if "step" in s), default=1.0)
    if kind == "rmsprop":
        widest /= math.sqrt(1 - float(group["alpha"]) ** max(steps, 1.0))  # its average begins at zero
        if not heavy and not group.get("centered"):
            widest = min(widest, SPREAD_ALIKE * _by_squares(kind, states, gradient))
    return widest / (1 - heavy) if isinstance(heavy, float) and 0 < heavy < 1 else widest


def _by_squares(kind: str, states: dict[int, dict[str, Any]], gradient: dict[int, float]) -> float:
    """Norm of gradients over the root of their squares' sums or means, as if both were spread alike in a tensor."""
    total = 0.0
    for place, state in states.items():
        squares = state.get(SQUARES[kind])
        if isinstance(squares, Tensor) and float(squares.sum()) > 0:
            total += gradient.get(place, 0.0) ** 2 * squares.numel() / float(squares.sum())
    return math.sqrt(total)


def _of_adam(state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    steps = float(state["step"])
    first, second = (float(b) for b in group["betas"])
    mean = state["exp_avg"] / (1 - first**steps)
    return mean.abs() / ((state["exp_avg_sq"] / (1 - second**steps)).sqrt() + float(group["eps"]))


def _of_adamax(state: dict[str, Tensor], group: dict[str, Any]) -> Tensor:
    mean = state["exp_avg"] / (1 - float(group["betas"][0]) ** float(state["step"]))
    return mean.abs() / state["exp_inf"].clamp(min=float(group["eps"]))
