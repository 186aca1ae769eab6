"""An attached guard that finds causes, and acts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from maskrcnn_coco.anywhere.last_words import listen
from maskrcnn_coco.anywhere.rig import divisor
from maskrcnn_coco.anywhere.samples import Select
from maskrcnn_coco.anywhere.with_responder import WithResponder, answer, make_responder
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.guard import forward_backward
from maskrcnn_coco.guard.attached import Attached
from maskrcnn_coco.guard.hooks import Deafness
from maskrcnn_coco.guard.immediate import Act, Mode
from maskrcnn_coco.guard.inputs import image_ids
from maskrcnn_coco.guard.norms import Components
from maskrcnn_coco.guard.sharding import refuse_shards
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import Alarm, StepRecord


class Diagnosing(WithResponder, Attached):
    """`Attached`, with a responder; made by `maskrcnn_coco.attach` with ``diagnose=True``."""

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[torch.optim.Optimizer],
        *,
        forward: Callable[..., Any] | None,
        select: Select | None,
        logdir: str | Path | None,
        scaler: torch.amp.GradScaler | None,
        components: Components | None,
        mode: Mode,
        on_alarm: Callable[[Alarm], Any] | None,
        say: bool,
    ) -> None:
        self.responder = None
        refuse_shards(model, optimizers[0])
        super().__init__(model, optimizers, scaler=scaler, components=components, mode=mode, on_alarm=on_alarm, say=say)
        self._shown_forward = forward
        self._shown: tuple[Any, Sequence[int] | None] | None = None
        self.responder = make_responder(self, forward, select, logdir, own_batches=False)
        self._handled: BaseException | None = None
        """What was being handled already as the forward pass began."""
        self._explained: set[str] = set()
        """What forward passes raised so far, first lines."""
        if forward is not None:
            listen(self)

    @property
    def _busy(self) -> bool:
        """Whether a step is being taken again, of this training or of another one beside it."""
        return Deafness.depth > 0

    @property
    def _seen_before(self) -> bool:
        """Whether the optimizer evaluates the loss once more: of the batch that it was evaluated of already."""
        return self._within is not None and self._within.evaluated

    def batch(self, batch: Any, ids: Sequence[int] | None = None) -> Any:
        """Show the batch that the coming forward pass is of, where ``forward`` takes it; returns it unchanged.

        Args:
            ids: of its samples, for verdicts; by default they are numbered through.
        """
        act = self._open([], early=True)
        if self.responder is not None and not self._busy and not self._seen_before:
            if not self.responder.kept.batches(act.record.step):
                act.suspicion = None  # of a rival's pass through this model, which is not trained on it
            self.responder.saw(act.record.step, batch, ids, self._shown_forward)
        return batch

    def see(self, loss: Any) -> Any:
        """As `Attached.see`; a replay that comes past here is not the training."""
        if self._busy:
            return loss
        if self.responder is not None:
            self.responder.divisor = divisor(loss)
        return super().see(loss)

    def _open(self, batches: list[Any], *, early: bool = False) -> Act:
        fresh = self._act is None or self._act.done is not None
        if fresh and self.responder is not None and not self._busy:
            self._close_round()
            self.responder.before(self.next_step)
        return super()._open(batches, early=early)

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._handled = sys.exc_info()[1]
        given = self._without_known(args)
        try:
            instead = super()._before_forward(module, given, kwargs)
        except DataError:
            self._explain((args, kwargs))
            raise
        known = self._shown_forward is not None or self._seen_before
        if self.responder is not None and self._act is not None and not known:
            self.responder.saw(self._act.record.step, (given, kwargs))
        return instead if instead is not None or given is args else (given, kwargs)

    def _without_known(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """``args``, where a sample that was found to be bad comes again with a sound one in its place.

        Its image id alone leaves nothing out, as nobody promised that ids tell images apart: it has to be bad now.
        """
        known = self.responder.left_out if self.responder is not None else set()
        if not known or self.mode != "recover" or known.isdisjoint(image_ids([args])):
            return args
        return self._stand_ins.instead(args, self.instruments.expected, known) or args

    def _after_forward(self, _: nn.Module, out: Any) -> None:
        error, handled = sys.exc_info()[1], self._handled
        self._handled = None  # an error holds the frames that it went through
        if isinstance(error, Exception) and error is not handled:
            self._raised(error)
        else:
            super()._after_forward(_, out)

    def _raised(self, error: Exception) -> None:
        """The model's own forward pass raised, which is for the loop to answer: each such error is explained once."""
        words = forward_backward.in_words(error)
        act, line = self._act, words.splitlines()[0]
        if self.responder is None or act is None or self.mode == "off" or line in self._explained:
            return
        if forward_backward.is_fatal(error):
            return
        self._explained.add(line)
        self._act = None
        measured = {"error": words, "losses": {}, "group_grad_norm": {}}
        self.instruments.raise_alarm(act.record, Verdict("crash", words, measured))
        self._answered(act.record)

    def ended_by(self, error: BaseException) -> None:
        """The loop ends with ``error``: explained where the batch of the step under way brings it about again."""
        act = self._act
        if act is None or act.done is not None or self._busy or not isinstance(error, Exception):
            return
        if self._raises_again(error, act.record.step):
            self._raised(error)

    def _raises_again(self, error: Exception, step: int) -> bool:
        shown = self.responder.kept.batches(step) if self.responder is not None else []
        if not shown or self._shown_forward is None or forward_backward.is_fatal(error):
            return False
        try:
            with Deafness.deaf(), torch.enable_grad():
                terms = forward_backward.as_terms(self._shown_forward(self.model, shown[-1].data)).values()
                weights = [p for p in self.model.parameters() if p.requires_grad]
                # The backward pass too, which is where the error may come from; gradients of the loop's stay its own.
                graphs = [t for t in terms if t.requires_grad]
                torch.autograd.grad(forward_backward.sum_terms(graphs, 1), weights, allow_unused=True)
        except Exception as again:  # as the loop's own code raises it
            return type(again) is type(error) and str(again).splitlines()[:1] == str(error).splitlines()[:1]
        return False

    def _explain(self, data: Any) -> None:
        """The forward pass was refused: the verdict, before the error ends the loop."""
        (record,) = self.completed[-1:]
        if self.responder is not None and self._shown_forward is None:
            self.responder.saw(record.step, data)
        self._answered(record)

    def _keep(self, record: StepRecord) -> None:
        super()._keep(record)
        self._answered(record)

    def _answered(self, record: StepRecord) -> None:
        if self.responder is None:
            return
        self.responder.after(record)
        if self.alarm is not None:
            with Deafness.deaf():
                answer(self, self.responder, self.alarm)
