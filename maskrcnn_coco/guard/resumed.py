"""A resume that brought back a part of the state: what a guard's own state says of the rest, against what is there."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from maskrcnn_coco.findings.facts import Resumed
from maskrcnn_coco.guard.judgement import Instruments
from maskrcnn_coco.guard.norms import Layout

SAMPLES = 16
"""Weights of each component that a mark holds."""
FAR = 0.01
"""Relative distance of two weights that no rounding to half precision makes."""
LOW, BACK = 0.2, 0.5
"""Shares of the highest rate: one that had fallen below the first and is above the second again began anew."""


def mark_of(parts: Instruments, peaks: dict[str, float]) -> dict[str, Any]:
    """Plain data by which a later guard knows whether weights, optimizer and rates came back with its own state.

    Args:
        peaks: component → the highest rate so far.
    """
    return {
        "values": _values(parts.layout),
        "optimizer": bool(parts.optimizer.state),
        "rates": {n: [rate, max(rate, peaks.get(n, 0.0))] for n, rate in parts.rates().items()},
    }


class Comparison:
    """What of a training is not as it was when ``mark`` was made; `look` before each step, until it is ``over``.

    A scheduler that begins anew sets its first rate at its first step, which may be an epoch away: the rates are judged
    when they change.
    """

    def __init__(self, mark: dict[str, Any], steps: int) -> None:
        self.mark, self.steps = mark, steps
        self.begun = self.over = False

    def look(self, parts: Instruments) -> Resumed:
        """What is known to differ now."""
        found, mark = Resumed(self.steps), self.mark
        if not self.begun:
            self.begun, values = True, _values(parts.layout)
            found.weights = [n for n, before in mark["values"].items() if n in values and _other(before, values[n])]
            found.no_state = bool(mark["optimizer"]) and not parts.optimizer.state
        now = {n: rate for n, rate in parts.rates().items() if rate is not None}
        known = {n: (rate, now[n], peak) for n, (rate, peak) in mark["rates"].items() if n in now}
        self.over = not known or any(a != b for a, b, _ in known.values())
        found.rates = {n: (a, b) for n, (a, b, peak) in known.items() if a < LOW * peak and b >= BACK * peak}
        return found


def _values(layout: Layout) -> dict[str, list[float]]:
    """A few values of each component's largest parameter."""
    largest = {c: max((p for p, o in zip(layout.params, layout.component, strict=True) if o == n), key=Tensor.numel)
               for n, c in enumerate(layout.components)}  # fmt: skip
    return {c: p.detach().flatten()[:: max(1, p.numel() // SAMPLES)][:SAMPLES].tolist() for c, p in largest.items()}


def _other(before: list[float], now: list[float]) -> bool:
    if len(before) != len(now):
        return True
    far = [abs(a - b) > FAR * max(abs(a), abs(b)) for a, b in zip(before, now, strict=True)]
    return sum(far) > len(far) / 2
