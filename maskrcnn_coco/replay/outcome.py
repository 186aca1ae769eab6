"""What one replay gave."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

IN_HALF = " in float16"
"""In the name of an op whose result overflowed there, as a watched replay gives it."""

NOTHING = " over nothing"
"""Said of an average of no numbers."""
CONSTANT = ", of a number that came in not finite"
"""In the name of an op of the losses' own: an operand is not finite and comes neither from the model nor the batch."""


@dataclass
class Outcome:
    """One replay: what was changed and what came out. Norms are true 2-norms, unscaled, before clipping."""

    test: str
    finite: bool
    losses: dict[str, float] = field(default_factory=dict)
    loss: float = math.nan
    grad_norm: float = math.nan
    unclipped: float = math.nan
    """``grad_norm`` before the run's own clipping, where the run records norms after it."""
    group_grad_norm: dict[str, float] = field(default_factory=dict)
    bad_losses: list[str] = field(default_factory=list)
    bad_grads: list[str] = field(default_factory=list)
    bad_grad_count: int = 0
    bad_buffers: list[str] = field(default_factory=list)
    """Buffers that the pass made non-finite, or threw beyond any bound."""
    error: str | None = None
    first_bad_module: str | None = None
    first_bad_op: str | None = None
    took: float | None = None
    """The largest number among what that op took; None: not known."""
    max_abs: float | None = None
    inside: float | None = None
    """Of a watched replay: the largest finite magnitude that any module took or gave, losses apart."""
    met: bool | None = None
    """Of a watched replay: whether any module took numbers that are not finite."""
    grown: tuple[str, float] | None = None
    """Of a watched replay: the first op whose numbers are beyond what squares of those that it took could be, and the
    largest of them."""
    phase: str = "forward"
    digest: str | None = None
    times: float | None = None
    """Where every gradient of the run is that of the replay, times one number, to the digit: that number."""
    steps: float = 1.0
    moved: float | None = None
    """Where an update was taken: ‖update‖ / ‖weights‖ of the component that it moved furthest. ``first_bad_op`` is then
    the optimizer's, and ``bad_grads`` are the weights that it made non-finite."""
    within: str = ""
    """What an evaluation of the loss within the optimizer's step gave, where that was not finite."""
    moved_last: dict[str, float] = field(default_factory=dict)
    """Component → ‖update‖ of the last step of a walk that goes past the failing one / ‖weights‖ before the first."""
    path: list[tuple[int, float, float]] = field(default_factory=list)
    """(step, loss, grad_norm) of each step of a walk over the tape."""
    terms: list[dict[str, float]] = field(default_factory=list)
    """The losses of each step of a walk by name, as long as ``path``."""
    longer: dict[int, float] = field(default_factory=dict)
    """Of a walk: step → how many times its gradient the recorded one was, where loss and weights are those of then."""
    loss_scale: float | None = None
    """The loss scale that was needed, where the recorded one was too large for the gradients."""

    def describe(self) -> str:
        """One phrase for the evidence table."""
        if self.error:
            return f"raised {self.error}"
        if not self.finite:
            if self.bad_losses:
                return "non-finite: " + ", ".join(self.bad_losses)
            if self.bad_buffers and not self.bad_grad_count:
                return f"loss {self.loss:.4g} finite, buffer {self.bad_buffers[0]} non-finite or enormous"
            if self.within:
                return f"loss {self.loss:.4g} and gradients finite, an evaluation within the step: {self.within}"
            if self.moved is not None and not self.bad_grad_count:
                bad = ", ".join(self.bad_grads[:3]) or "the optimizer's state"
                return f"loss {self.loss:.4g} and gradients finite, after the update non-finite: {bad}"
            return f"loss {self.loss:.4g} finite, {self.bad_grad_count} gradients non-finite"
        if self.grad_norm == 0.0 and self.loss:
            return f"finite, loss {self.loss:.4g}"
        if self.moved is not None:
            return f"finite, loss {self.loss:.4g}, weights moved by {self.moved:.3g} times their norm"
        at = "" if self.loss_scale is None else f" at loss scale {self.loss_scale:g}"
        return f"finite, loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}{at}"
