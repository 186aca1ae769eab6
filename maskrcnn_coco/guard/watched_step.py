"""A step that evaluates the loss as often as it likes (LBFGS, SAM): copied, taken, looked at, put back."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from maskrcnn_coco.guard.forward_backward import Pass
from maskrcnn_coco.guard.immediate import Act, Immediate
from maskrcnn_coco.guard.norms import all_finite, moved_by, nonfinite_at
from maskrcnn_coco.guard.verdict import Verdict


class WatchedStep:
    """One such step. What is measured is of its first evaluation, which is where every other optimizer's step begins.

    Args:
        note: told what each evaluation gave.
    """

    def __init__(self, immediate: Immediate, act: Act, note: Callable[[Any], None]) -> None:
        self.immediate, self.act, self._note = immediate, act, note
        self.evaluated = False
        """Whether one evaluation is over."""
        self._bad: list[str] = []
        self._began = time.perf_counter()
        act.norms = []
        immediate.undo.take()
        if act.seen:  # the loop went backward once before the step, as some SAMs ask for
            self._measure()

    def closure(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """``closure``, watched."""

        def evaluated() -> Any:
            loss = closure()
            self._note(loss)
            if not self.act.norms:
                self._measure()
            self.evaluated = True
            return loss

        return evaluated

    def _measure(self) -> None:
        act, layout = self.act, self.immediate.parts.layout
        act.gradients, where = layout.gradients()
        act.groups = self.immediate.measure(act, where)
        if not math.isfinite(act.record.grad_norm):  # another evaluation will write over them
            bad = (i for i in nonfinite_at(act.norms) if not all_finite(act.gradients[i]))
            self._bad = [layout.names[where[i]] for i in bad]

    def broken_off(self) -> None:
        """Something was raised on the way: all is as it was."""
        self.immediate.undo.put_back()
        self.immediate.parts.buffers.restore()
        self.act.seen, self.act.certain = [], False

    def end(self, done: Pass) -> None:
        """The step is over: learn from it, or put everything back. ``done``: of all its evaluations."""
        act, record, parts, undo = self.act, self.act.record, self.immediate.parts, self.immediate.undo
        act.done = done
        first = float(act.seen[0]) if act.seen else math.nan
        record.losses, record.loss = {"loss": first}, first
        norm = record.grad_norm if act.norms else 1.0
        record.grad_norm = record.grad_norm if act.norms else 0.0
        verdict = act.before or self._verdict(done, norm)
        verdict = verdict if self.immediate.team is None else self.immediate.team.worst(verdict)
        if verdict is None or self.immediate.mode == "observe":
            record.applied = True
            parts.taken += 1
            parts.health.finished(due=True)
            parts.learn(record, norm, act.where, act.norms, 0.0)
            parts.loss_weight.moved = undo.moved
            if verdict is not None:
                parts.raise_alarm(record, verdict)
        else:
            undo.put_back()
            parts.refuse(record, verdict, self._began)

    def _verdict(self, done: Pass, norm: float) -> Verdict | None:
        act, parts, record = self.act, self.immediate.parts, self.act.record
        measured: dict[str, Any] = {"losses": record.losses, "group_grad_norm": record.group_grad_norm}
        if done.micro_batch == 0:
            return act.suspicion or Verdict("loss_nonfinite", "the loss is not finite", measured)
        if self._bad:
            text = f"{len(self._bad)} of {len(act.where)} gradients not finite, first {self._bad[:1]}; the loss is"
            return act.suspicion or Verdict("grad_nonfinite", text, measured | {"parameters": self._bad})
        fault = self.immediate.undo.fault()
        if done.micro_batch is not None or fault is not None:
            return self._thrown(fault)
        parts.buffers.changed()
        bad = parts.buffers.wrong()
        if bad:
            return Verdict("buffer_nonfinite", f"the step made {bad[0]} non-finite or enormous", {"buffers": bad})
        return None if math.isnan(record.loss) else parts.compared(record, norm, act.where, act.norms)

    def _thrown(self, fault: Verdict | None) -> Verdict:
        """Loss and gradient were sound where the step began: it went where they are not, or left weights that are not.

        How far it went is its bound: no formula says it beforehand.
        """
        layout, kind = self.immediate.parts.layout, type(self.immediate.parts.optimizer).__name__
        ratios = moved_by(self.immediate.undo.weights, layout)[1]
        bound = {n: v if math.isfinite(v) else math.inf for n, v in zip(layout.components, ratios, strict=True)}
        if fault is None:
            text = f"a loss that {kind} evaluated within its step is not finite, and its first was; the step is undone"
            fault = Verdict("diverged", text, {"by_update": kind, "component": max(bound, key=bound.__getitem__)})
        fault.measured.setdefault("update_bound", bound)
        return fault
