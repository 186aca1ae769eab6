"""The loss scale of fp16: its search at the start is no incident; a scale under its floor, or a streak of skips, is."""

from __future__ import annotations

import math
from typing import Any

import torch

from maskrcnn_coco.guard.norms import Layout
from maskrcnn_coco.guard.verdict import Verdict

FLOOR = 1.0
"""Below 1 the scale shrinks the very gradients that it exists to save from underflow, and from there it reaches 0."""
CEILING = 2.0**64
"""No search gets here: growth doubles once in 2000 steps, and the largest float32 loss overflows near it."""
SEARCH_SKIPS = 30
"""Overflows in a row allowed before the first applied step; 2^16 reaches the floor after 16."""
SKIPS = 4
"""Overflows in a row allowed later: growth by 2 after long calm costs one, a changed network two or three."""


IN_A_ROW = 6
"""Steps whose scaled gradients have the same typed norm, after which that is no chance."""


def clipped_scaled(norm: float, scale: float) -> float:
    """The bound that somebody clipped gradients of norm ``norm`` to while they were multiplied by ``scale``, or 0.

    A bound is typed: 10, 1, 0.5. A norm that is such a number by itself was clipped after it was divided.
    """
    if not (math.isfinite(norm) and norm > 0 and math.isfinite(scale) and scale > 1):
        return 0.0
    bound = norm * scale
    return float(f"{bound:.2g}") if _typed(bound) and not _typed(norm) else 0.0


def _typed(value: float) -> bool:
    """Whether it has two digits at most; a norm is added up in float32, and torch divides by it and 1e-6 more."""
    return abs(value / float(f"{value:.2g}") - 1) < 2e-5


class Scale:
    """A GradScaler (or none), its floor and its streaks."""

    def __init__(self, scaler: Any) -> None:
        self.scaler = scaler if scaler is not None and scaler.is_enabled() else None
        self.floor = FLOOR
        if self.scaler is not None:
            start = self.scaler.get_scale()
            self.floor = min(FLOOR, start) if math.isfinite(start) and start > 0 else FLOOR
        self.streak = 0
        self.before_streak: float | None = None
        self.onset: int | None = None
        self.found = False

    @property
    def value(self) -> float | None:
        """The present scale; None without a scaler. A host read, free on the CPU."""
        return None if self.scaler is None else float(self.scaler.get_scale())

    def set(self, value: float) -> None:
        """Put ``value`` in the place of a scale that cannot work; whoever updates it goes on from there."""
        owner = self.owner
        if owner is not None and owner._scale is not None:
            # Not update(): that one forgets whose gradients were unscaled, which its owner may be about to ask.
            owner._scale.fill_(value)
        elif owner is not None:
            owner._init_scale = value  # no loss was scaled yet

    @property
    def owner(self) -> Any:
        """The scaler; None without one."""
        return self.scaler

    def check(self) -> Verdict | None:
        """Before the step: a scale that cannot work."""
        value = self.value
        if value is None or self.floor <= value <= CEILING:
            return None
        if 0 <= value < self.floor:
            # No search of ours goes below the floor: somebody set it, and gradients round to zero from here on.
            text = f"the loss scale is {value:.3g}, below its floor {self.floor:g}"
            return Verdict("scale_collapse", text, {"loss_scale": value, "floor": self.floor})
        return Verdict("optimizer_nonfinite", f"the loss scale is {value}", {"loss_scale": value})

    def unscale(self, optimizer: torch.optim.Optimizer, layout: Layout) -> None:
        """Divide the gradients by the scale, where there is one and there are any."""
        if self.scaler is not None and layout.gradients()[0]:
            self.scaler.unscale_(optimizer)

    def applied(self, had_gradients: bool, norm: float, scale: float | None) -> Verdict | None:
        """After an applied step: let the scale grow when it is time.

        Args:
            norm: of the gradients that the optimizer had; ``scale``: the loss scale of this step.
        """
        if self.scaler is not None and had_gradients:
            self.scaler.update()
        self.streak, self.onset, self.found = 0, None, True
        return None

    def refused(self, value: float | None) -> None:
        """After a refusal that is not the scale's fault: as if the step had not been, for scale and growth counter."""
        if self.scaler is not None and self.scaler._scale is not None:
            # Given its own value, update() only forgets that gradients were unscaled.
            self.scaler.update(self.value if value is None else value)

    def overflowed(self, step: int) -> Verdict | None:
        """After finite losses with non-finite gradients: halve, hold at the floor, and say when this is no search."""
        assert self.scaler is not None
        before = float(self.scaler.get_scale())
        self.scaler.update()
        if float(self.scaler.get_scale()) < self.floor:
            self.scaler.update(self.floor)
        return self.judge(step, before)

    def judge(self, step: int, before: float) -> Verdict | None:
        """The verdict on one more overflow, at scale ``before``."""
        if self.streak == 0:
            self.onset, self.before_streak = step, before
        self.streak += 1
        limit = SKIPS if self.found else SEARCH_SKIPS
        at_floor = before <= self.floor
        if not at_floor and self.streak <= limit:
            return None
        measured = {
            "loss_scale": before,
            "floor": self.floor,
            "skips_in_a_row": self.streak,
            "loss_scale_before": self.before_streak,
        }
        why = f"reached its floor {self.floor:g}" if at_floor else f"fell {self.streak} times in a row"
        text = f"the loss scale {why}, from {self.before_streak:g}; gradients overflow at every scale tried"
        verdict = Verdict("scale_collapse", text, measured, self.onset)
        self.streak = 0
        return verdict

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"streak": self.streak, "onset": self.onset, "found": self.found, "before": self.before_streak}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave."""
        self.streak, self.onset, self.found = state["streak"], state["onset"], state["found"]
        self.before_streak = state["before"]


class OthersScale(Scale):
    """A loss scale that its owner unscales with and updates."""

    def __init__(self, scaler: Any) -> None:
        super().__init__(None)
        self.watched = scaler if scaler is not None and scaler.is_enabled() else None
        self._bound, self._bounded = 0.0, 0

    def applied(self, had_gradients: bool, norm: float, scale: float | None) -> Verdict | None:
        """As above; and whether its owner clips what is still scaled, which leaves next to nothing of it."""
        super().applied(had_gradients, norm, scale)
        bound = clipped_scaled(norm, scale or 1.0)
        self._bounded = self._bounded + 1 if bound and bound == self._bound else int(bound > 0)
        self._bound = bound
        if self._bounded != IN_A_ROW:  # said once
            return None
        text = (
            f"gradients are clipped to {bound:g} before they are divided by the loss scale: {norm:.3g} is left of them"
        )
        return Verdict("stalled", text, {"clipped_scaled": bound, "loss_scale": scale, "norm": norm})

    @property
    def owner(self) -> Any:
        """The scaler that somebody else unscales with."""
        return self.watched

    @property
    def value(self) -> float | None:
        """The present scale."""
        return None if self.watched is None else float(self.watched.get_scale())
