"""What a loop of somebody's own does with its gradients, seen without reading one of them.

A gradient that was not cleared is added to: the tensor is the one of the step before, written to exactly once since.
Whoever clears it makes a new tensor, or writes to it twice. So the count of writes of one small gradient tells it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.guard.hooks import Hook
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import Alarm, StepRecord

NEVER = 20
"""Steps in a row whose gradients were added to those of the step before: no slip of one step."""


class _DuringBackward(Hook):
    """A `Hook` that is called within a backward pass, where the others keep still."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        """See the parameter that this hook is on."""
        call: Callable[..., Any] | None = None if torch.compiler.is_compiling() else self._call()
        if call is not None:
            call(*args, **kwargs)


class OwnGradients:
    """Watches one parameter of ``optimizer``, and the scaler that was shown to the guard.

    ``kept``: whether the gradients of the step before were still there when this step's were added; None: unknown.
    ``still_scaled``: the loss scale that this step's gradients were not divided by; None where they were.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, scaler: Any) -> None:
        self.kept: bool | None = None
        self.still_scaled: float | None = None
        self._scaler = scaler
        self._last: Tensor | None = None
        self._writes = 0
        self._first = True
        self._row = 0
        """Steps in a row with ``kept``."""
        self._look: Any = None
        self.there = False
        """Before gradients were added the old ones were seen there, by their values: ``.data`` hides a write."""
        self._handle: Any = None
        found = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad and p.is_leaf and p.numel()]
        self._parameter: nn.Parameter | None = min(found, key=lambda p: p.numel(), default=None)
        if self._parameter is not None:
            self._handle = self._parameter.register_post_accumulate_grad_hook(_DuringBackward(self._added))

    def _added(self, parameter: Tensor) -> None:
        gradient = parameter.grad
        if parameter is not self._parameter or gradient is None:
            return  # a copy of the model
        # The very first gradients of a run, or those of a loop that clears by None, are new tensors.
        added = gradient is self._last and gradient._version == self._writes + 1
        # Further ones are of another micro-batch; or what came first was somebody else's (a generator's loss goes back
        # through its critic), and the loop cleared it before its own.
        self.kept = added and (self._first or self.kept is True)
        self._first = False
        self._last, self._writes = gradient, gradient._version

    def steps(self) -> None:
        """The optimizer is about to step."""
        self.still_scaled, scaler = None, self._scaler
        if scaler is None or scaler._scale is None:
            return  # there is none, or it never scaled a loss
        if all(s["stage"].name == "READY" for s in scaler._per_optimizer_states.values()):
            self.still_scaled = float(scaler.get_scale())

    def stuck(self, refused: bool) -> Verdict | None:
        """The verdict on an overflow, where the gradients of a step that was ``refused`` were still there: no search
        of a loss scale ends that, for what is not finite stays so whatever is added to it."""
        if not (refused and self.kept):
            return None
        return Verdict("grad_nonfinite", "gradients are not finite, and those of the refused step before are in them")

    def _seen(self, _: Tensor) -> None:
        gradient = None if self._parameter is None else self._parameter.grad
        self.there = gradient is not None and bool(gradient.detach().any())
        self._remove_look()

    def tell(self, instruments: Any, record: StepRecord, alarms: deque[Alarm]) -> None:
        """Add to this step's alarm what is known of its gradients; or raise one, of a loop that never clears them.

        Once, and of a step that was taken: what learns from a sum of all steps may learn something all the same.
        """
        if instruments.alarm is None and self.there and self.kept and self._row >= NEVER:
            self.there = False
            text = f"gradients were never cleared in {self._row} steps: each adds to all before it"
            instruments.raise_alarm(record, Verdict("stalled", text, {}))
        if instruments.alarm is not None:
            instruments.alarm.measured.update(self.facts())
            alarms.append(instruments.alarm)

    def step_taken(self) -> None:
        """The step is over, applied or not: the next gradients begin from here."""
        self._row = self._row + 1 if self.kept else 0
        if self._row == NEVER and self._parameter is not None:
            self._look = self._parameter.register_hook(_DuringBackward(self._seen))
        self._last = None if self._parameter is None else self._parameter.grad
        self._writes = 0 if self._last is None else self._last._version
        self._first = True

    def facts(self) -> dict[str, Any]:
        """What an alarm should say of this step."""
        found: dict[str, Any] = {}
        if self.kept is not None:
            found["kept_gradients"] = self.kept
        if self.still_scaled is not None and self.still_scaled > 1:
            found["still_scaled"] = self.still_scaled
        return found

    def _remove_look(self) -> None:
        if self._look is not None:
            self._look.remove()
            self._look = None

    def remove(self) -> None:
        """Take the hooks off."""
        self._remove_look()
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
