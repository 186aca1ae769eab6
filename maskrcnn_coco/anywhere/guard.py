"""The public `Guard`: the one of the guard wing, and with ``diagnose=True`` causes, proofs and recovery."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.anywhere.rig import takes_model
from maskrcnn_coco.anywhere.samples import Select, size_of
from maskrcnn_coco.anywhere.with_responder import WithResponder, answer, make_responder
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import ConfigError, GuardWarning
from maskrcnn_coco.guard.arguments import refuse_other
from maskrcnn_coco.guard.guard import Guard as BaseGuard
from maskrcnn_coco.guard.immediate import Mode
from maskrcnn_coco.guard.norms import Components
from maskrcnn_coco.records import Alarm, StepRecord
from maskrcnn_coco.system.backends import faults_under

_NONE: Any = object()


class Guard(WithResponder, BaseGuard):
    """A guard for a loop that takes its steps through it::

        guard = Guard(model, optimizer, forward=loss_of, diagnose=True)    # loss_of(model, batch)
        for batch, ids in loader:
            guard.step(batch, ids)

    Args:
        forward: (model, batch) → the loss, in any form that `step` takes; then `step` is called with the batch alone.
        diagnose: at each alarm take steps again on a private copy of the model, with one thing changed, until the
            cause is proved; then act: leave the sample out, go back, lower one group's rate, keep a module in float32.
            It keeps two to four copies of the state, and the batches of the last steps.
        select: (batch, positions) → the batch with these samples only; by default tensors and lists are cut along
            their first dimension.
        logdir: folder for incident files; None: none are written.

    All other arguments are those of `maskrcnn_coco.guard.guard.Guard`, which this is without ``diagnose``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        forward: Callable[[nn.Module, Any], Any] | None = None,
        diagnose: bool = False,
        select: Select | None = None,
        logdir: str | Path | None = "runs/guard",
        scaler: torch.amp.GradScaler | None = None,
        max_grad_norm: float | None = 10.0,
        components: Components | None = None,
        mode: Mode = "recover",
        measure_every: int = 50,
        check_every: int = 10,
        max_crashes: int = 5,
        deferred: bool = False,
        on_alarm: Callable[[Alarm], Any] | None = None,
        say: bool = True,
        ranks: Ranks | None = None,
    ) -> None:
        refuse_other(model, optimizer, mode)
        if diagnose and deferred:
            raise ConfigError("a guard that reads late cannot diagnose", fix="deferred=False")
        for sentence in faults_under(model) if say and mode != "off" else []:
            warnings.warn(sentence, GuardWarning, stacklevel=2)
        super().__init__(
            model,
            optimizer,
            scaler=scaler,
            max_grad_norm=max_grad_norm,
            components=components,
            mode=mode,
            measure_every=measure_every,
            check_every=check_every,
            max_crashes=max_crashes,
            deferred=deferred,
            on_alarm=on_alarm,
            say=say,
            ranks=ranks,
        )
        self.instruments.weights_may_change = True
        self._forward = forward
        self.responder = make_responder(self, forward, select, logdir) if diagnose else None

    def step(
        self,
        forward: Any,
        batch: Any = _NONE,
        ids: Sequence[int] | None = None,
        *,
        step: int | None = None,
        epoch: int = 0,
        micro_batches: bool = False,
    ) -> StepRecord:
        """Take one planned step, or refuse it; with ``diagnose`` find out why, and act.

        ``step(forward, batch, ids)``, or ``step(batch, ids)`` where the guard was given its ``forward``.

        Raises:
            GuardStop: the training cannot go on; the incident says why.
        """
        if self._forward is not None and not callable(forward):
            batch, ids, forward = forward, ids if batch is _NONE else batch, self._forward
        elif batch is _NONE or not callable(forward):
            got = f"got {type(forward).__name__} for forward: " if not callable(forward) else ""
            raise TypeError(f"{got}step(forward, batch, ids), or Guard(…, forward=…) and step(batch, ids)")
        if self.responder is None:
            bound = forward if self._forward is None else self._bound(forward)
            return super().step(bound, batch, ids, step=step, epoch=epoch, micro_batches=micro_batches)
        number = self.next_step if step is None else step
        batches = list(batch) if micro_batches else [batch]
        left = [self.responder.suspects.without(b, i) for b, i in zip(batches, self._ids_of(batches, ids), strict=True)]
        if any(kept for *_, kept in left):
            left = [part for part in left if part[2]]
        self.responder.before(number)
        rest = iter(left)
        bound = self._bound(forward)

        def watched(data: Any) -> Any:
            assert self.responder is not None
            self.responder.saw(number, data, next(rest)[1], forward)
            return bound(data)

        given = [i for _, own, _ in left for i in own or []] or None
        record = super().step(watched, [data for data, _, _ in left], given, step=step, epoch=epoch, micro_batches=True)
        if not self.responder.kept.batches(number):  # refused before the model ran: the batch is wanted all the same
            for data, own, _ in left:
                self.responder.saw(number, data, own, forward)
        self.responder.after(record)
        if self.alarm is not None:
            answer(self, self.responder, self.alarm)
        return record

    def _bound(self, forward: Callable[..., Any]) -> Callable[[Any], Any]:
        return (lambda batch: forward(self.model, batch)) if takes_model(forward) else forward

    @staticmethod
    def _ids_of(batches: list[Any], ids: Sequence[int] | None) -> list[Sequence[int] | None]:
        """The ids of each micro-batch, from those of all."""
        if ids is None or len(batches) == 1:
            return [ids] * len(batches)
        out: list[Sequence[int] | None] = []
        at = 0
        for batch in batches:
            size = size_of(batch)
            out.append(list(ids[at : at + size]))
            at += size
        return out
