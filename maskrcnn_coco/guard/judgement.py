"""What both ways of taking a step share: the instruments, one judge, and how a step is refused.

Made once by `Guard` and handed to the way that reads at once and to the one that reads late (`deferred`).
"""

from __future__ import annotations

import contextlib
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.components import real
from maskrcnn_coco.errors import GuardStop, GuardWarning
from maskrcnn_coco.guard.buffers import Buffers
from maskrcnn_coco.guard.divergence import ABSURD, ABSURD_OTHER, Divergence
from maskrcnn_coco.guard.forward_backward import DETACHED, SWITCHED_OFF
from maskrcnn_coco.guard.health import Health
from maskrcnn_coco.guard.inputs import Expected
from maskrcnn_coco.guard.loss_scale import Scale
from maskrcnn_coco.guard.loss_weight import LossWeight, last_length, too_far
from maskrcnn_coco.guard.lowered import Lowered
from maskrcnn_coco.guard.norms import Components, Layout
from maskrcnn_coco.guard.planned_rates import PlannedRates
from maskrcnn_coco.guard.regimes import Regimes
from maskrcnn_coco.guard.senseless import Senseless
from maskrcnn_coco.guard.sharding import Shares
from maskrcnn_coco.guard.steep import Steep
from maskrcnn_coco.guard.unlearnt import Unlearnt
from maskrcnn_coco.guard.updates import Haste, Stall, fits_losses, of_one_size, shrink
from maskrcnn_coco.guard.uphill import Uphill
from maskrcnn_coco.guard.verdict import Looks, Verdict
from maskrcnn_coco.records import GRAPH_ERRORS, Alarm, StepRecord


@dataclass
class Measured:
    """What is known of one forward and backward pass when it is judged. Numbers only, from whichever way measured them.

    ``groups`` and ``bound`` are per component, in the layout's order and by name; ``norms`` of the gradients of the
    tensors at ``where`` (none: not known); ``clipped``: the gradient was longer than the limit. ``buffers`` and
    ``parameters`` name what is not finite (functions: only asked for where it matters).
    """

    record: StepRecord
    groups: list[float]
    bound: dict[str, float]
    clipped: bool = False
    without_gradient: list[str] = field(default_factory=list)
    micro_batch: int | None = None
    error: str | None = None
    suspicion: Verdict | None = None
    states: bool = False
    where: Sequence[int] = ()
    norms: list[float] = field(default_factory=list)
    gradients: Sequence[Tensor] = ()
    buffers: Callable[[], list[str]] = list
    parameters: Callable[[], tuple[list[str], int]] = lambda: ([], 0)


class Instruments:
    """Layout, health, buffers, loss scale and alarms of one guarded model."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        scaler: torch.amp.GradScaler | None,
        max_grad_norm: float | None,
        components: Components | None,
        measure_every: int,
        check_every: int,
        max_crashes: int,
        say: bool,
    ) -> None:
        self.model, self.optimizer, self.max_grad_norm = model, optimizer, max_grad_norm
        self.measure_every, self.check_every, self.max_crashes, self.say = measure_every, check_every, max_crashes, say
        self._components = components
        self.shares: Shares | None = None
        self.lowered = Lowered()
        """What recovery lowered, by the names in ``groups``."""
        self.lay_out()
        self.scale = Scale(scaler)
        self.buffers = Buffers(model)
        self.expected, self.plan = Expected.of(model), PlannedRates()
        self.only_refuses = False
        """Nobody goes back, lowers a rate or stops after an alarm."""
        self.new_regime()
        self.alarm: Alarm | None = None
        self.on_alarm: Callable[[Alarm], Any] | None = None
        self.looks: Looks | None = None
        self.completed: list[StepRecord] = []
        self.seconds, self.taken, self.crashes = 0.0, 0, 0
        self.said: set[str] = set()
        """Kinds of what is said once."""
        self.weights_may_change = False
        """Whether a loss weighed anew without a word is taken for that; where the loss is ours it is a fault."""
        self.regimes: list[dict[str, Any]] = []
        """Where the loss was weighed anew without a word, and was taken for that: step and factor."""
        self.holes = False
        """Inputs with NaN or infinities were trained on soundly: from then on they are no suspicion."""
        self.groups: list[str] = []
        self.warns = say

    def measures(self, step: int) -> bool:
        """Whether this step's update is measured: now and then, and once early, where short runs have warmed up."""
        return step % self.measure_every == 0 or step == EARLY

    def lay_out(self) -> None:
        """Look at the optimizer's parameters anew. That all were frozen under way is for the step to say."""
        known = getattr(self, "layout", None) is not None
        if known and not any(p.requires_grad for g in self.optimizer.param_groups for p in g["params"]):
            return
        self.layout = Layout(self.model, self.optimizer, self._components)
        self.layout.shares = self.shares
        self.health = Health(self.layout, self.optimizer, every=self.check_every)
        self.health.replaced = self.lowered.usual

    def lowered_rates(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the optimizer has the learning rates that were decided on; the training's schedule never sees it."""
        if self.lowered:
            return self.lowered.in_force(self.optimizer, self.groups)
        return NOTHING

    def hold(self, lr: Mapping[str, float], settings: Mapping[str, float], usual: Mapping[str, Any]) -> None:
        """Let no parameter group have more than this, or another ``usual``, within a step, until called again.

        Args:
            lr: most learning rate by the groups' "component".
            settings: setting of the optimizer → the most of it in any group.
            usual: setting of the optimizer → what every group that has it gets.
        """
        self.groups = [str(group["component"]) for group in self.optimizer.param_groups]
        names = dict.fromkeys(self.groups)
        self.lowered.usual.clear()
        self.lowered.usual.update(usual)
        self.lowered.limits = {n: {**settings, **({"lr": lr[n]} if n in lr else {})} for n in names}

    def rates(self) -> dict[str, float]:
        """Learning rate per component, as the next step has it."""
        if not self.lowered:
            return self.health.lr()
        with self.lowered_rates():
            return self.health.lr()

    def serve_any_loop(self) -> None:
        """The loss is somebody else's and may mean another thing from some step on; nobody goes back after an alarm."""
        self.weights_may_change = self.only_refuses = True
        self.new_regime()

    def by_groups(self, components: Components) -> None:
        """Take the optimizer's groups for components: what is diagnosed is what a learning rate belongs to.

        From here on somebody else says what happened; see ``warns``.
        """
        self._components = components
        self.shares: Shares | None = None
        self.lay_out()
        self.say = self.only_refuses = False
        self.new_regime()

    def new_regime(self) -> None:
        """Forget what is healthy: the loss means something else from here on."""
        absurd = ABSURD_OTHER if self.expected.num_classes is None else ABSURD
        self.divergence, self.stall, self.haste = Divergence(absurd, once=self.only_refuses), Stall(), Haste()
        self.loss_weight, self.unlearnt, self.steep, self.uphill = LossWeight(), Unlearnt(), Steep(), Uphill()
        self.senseless, self._shrink = Senseless(), shrink(self.optimizer)

    def reset(self) -> None:
        """After a rollback, a load or a repair: forget the run-up, look at the whole state before the next step."""
        self.alarm, self.crashes = None, 0
        parts = (self.divergence, self.stall, self.haste, self.unlearnt, self.health, self.loss_weight, self.uphill)
        for part in parts:
            part.reset()
        self.layout.zero_grad()

    def inspect(self) -> Verdict | None:
        """Look at the whole state now, between steps; None: it is sound."""
        return self.scale.check() or self.health.check(whole=True, aside=True) or self.buffers.verdict(whole=True)

    def judge(self, seen: Measured) -> Verdict | None:
        """The verdict on one pass; None for a sound one, for an overflow of scaled gradients, for a loss of nothing.

        The order is the order in which one fault hides behind another: a crash leaves nothing to measure; a loss that
        is not finite makes every gradient so; gradients that are not finite make the update so. Only where all of it
        is finite can sizes be compared.
        """
        record = seen.record
        measured: dict[str, Any] = {"losses": record.losses, "group_grad_norm": record.group_grad_norm}
        measured |= {} if seen.micro_batch is None else {"micro_batch": seen.micro_batch}
        if seen.error is not None:
            return self.crash(seen.error, measured)
        self.crashes = 0
        bad = [n for n, v in record.losses.items() if not math.isfinite(v) and n not in seen.without_gradient]
        if seen.micro_batch is not None or bad:
            text = f"{', '.join(bad) or 'the total loss'} is not finite"
            return seen.suspicion or Verdict("loss_nonfinite", text, measured)
        if seen.states:
            # Only the late way meets this here; the other looked before it ran the model.
            return Verdict("optimizer_nonfinite", "optimizer state is not finite", measured)
        if not math.isfinite(record.grad_norm):
            return self._nonfinite_gradient(seen, measured)
        buffers = seen.buffers()
        if buffers:
            text = f"the forward pass made {buffers[0]} non-finite or enormous"
            return seen.suspicion or Verdict("buffer_nonfinite", text, measured | {"buffers": buffers})
        leap = self.health.leap(seen.bound) or self.plan.judge(seen.bound, self.rates)
        if leap is not None or math.isnan(record.loss):
            return leap  # a loss that nobody showed us, or of nothing at all, cannot be compared with others
        found = self.compared(record, record.grad_norm, seen.where, seen.norms, seen.gradients)
        # Of SGD, Adam and kin it is known how far a step may go; Adafactor's are a share of the weights by design.
        bounded = seen.clipped or "betas" in self.optimizer.param_groups[0] or of_one_size(self.optimizer)
        bound = seen.bound if bounded or isinstance(self.optimizer, torch.optim.SGD) else {}
        first, waits = self.divergence.first_loss, self.unlearnt.waits
        found = found or self.haste.judge(record.step, record.loss, first, bound, bounded=bounded and not self._shrink)
        return found or (self.unlearnt.judge(record.losses, record.loss, first, bounded=bounded) if waits else None)

    def compared(
        self,
        record: StepRecord,
        norm: float,
        where: Sequence[int],
        norms: list[float],
        gradients: Sequence[Tensor] = (),
    ) -> Verdict | None:
        """The verdict on the sizes of a finite loss and gradient, beside those of the run's healthy steps."""
        if norms and self.weights_may_change and not self.divergence.is_calm(record.loss, norm):
            self.loss_weight.wild(record.loss, where, norms, self._last_length, gradients)
        taken = min(norm, self.max_grad_norm or norm)
        fits = fits_losses(self.optimizer, record.loss, taken)
        found = self.divergence.judge(record.step, record.loss, norm, record.group_grad_norm, fits=fits)
        if found is None:
            return self._looked_at(record, taken) if self.looks else None
        regimes = Regimes(self)
        if "row" in found.measured and self.loss_weight.follows() and not regimes.led_up(found, record):
            regimes.runs_after(record, norm)
            return None
        weighed = self.loss_weight.found(self.layout)
        far = too_far(self.optimizer, record.loss, taken)
        if weighed is not None and not far:
            regimes.weighed_anew(record, norm, weighed)
            return None
        if regimes.are_others(found, record, norm):
            regimes.others_now(record, norm, "row" in found.measured)
            return None
        weighed = weighed or self.loss_weight.found(self.layout, steps=1)
        if weighed is not None:
            found.measured["weighed_anew"] = weighed[0]
            found.message += f"; loss and gradients count about {weighed[0]:.2g} times as much" + (
                ", which this learning rate does not stand" if far else ", for good if it comes again"
            )
        return found

    def _looked_at(self, record: StepRecord, taken: float) -> Verdict | None:
        """The verdict on a step whose sizes are healthy, where replays can be asked."""
        steep = self.steep.judge(self.looks, record, taken, self.divergence.norm_reference)
        found = steep or self.uphill.judge(self.looks, record)
        with self.lowered_rates():
            return found or self.senseless.judge(self.optimizer, record)

    def learn(self, record: StepRecord, norm: float, where: Sequence[int], norms: list[float], moved: float) -> None:
        """From an applied step."""
        if norms and self.weights_may_change:
            self.loss_weight.rates = [group.get("lr") for group in self.optimizer.param_groups]
            self.loss_weight.stepped, self.loss_weight.gradient = True, dict(zip(where, norms, strict=True))
            if self.divergence.is_calm(record.loss, norm):
                self.loss_weight.calm(record.loss, where, norms)
                if record.update_ratio:
                    sizes = zip(record.update_ratio.values(), self.health.weight_norms(), strict=True)
                    length = math.hypot(*(share * size for share, size in sizes))
                    self.loss_weight.measured = length, max(real(r or 0.0) for r in self.loss_weight.rates)
        far = max(record.update_ratio.values(), default=moved) if record.update_ratio else moved
        self.divergence.accept(record.loss, norm, record.group_grad_norm, moved, far, record.lr)

    def updated(self, record: StepRecord) -> Verdict | None:
        """From the measured update of an applied step; the verdict where weights stand still."""
        self.haste.measured(record.step, record.update_ratio)
        self.unlearnt.measured(record.step, record.update_ratio, self.health.bound)
        self.health.usual.add(record.update_ratio, record.lr)
        return self.stall.judge(record.step, record.update_ratio, record.lr, record.group_grad_norm)

    def _last_length(self) -> float:
        known = self.loss_weight
        if known.moved is not None:
            return known.moved
        return last_length(self.optimizer, self.layout, known.rates, known.gradient, known.measured)

    def _nonfinite_gradient(self, seen: Measured, measured: dict[str, Any]) -> Verdict | None:
        record = seen.record
        wild = self.divergence.wild(record.step, record.loss)
        if wild is not None or self.scale.scaler is not None:
            return wild  # with a scaler and a healthy loss an overflow is part of the search for a scale
        if seen.suspicion is not None:
            return seen.suspicion
        bad, count = seen.parameters()
        measured |= {"parameters": bad, "buffers": seen.buffers()}
        some = f"{len(bad)} of {count} gradients" if bad else "the gradient's norm"
        first = f", first {bad[:1]}" if bad else ""
        losses = "with finite losses" if record.losses else "the loss is not known"
        return Verdict("grad_nonfinite", f"{some} not finite{first}; {losses}", measured)

    def crash(self, error: str, measured: dict[str, Any]) -> Verdict:
        """The verdict on a forward or backward pass that raised ``error``."""
        self.crashes += 1
        if self.crashes >= self.max_crashes:
            raise GuardStop(
                f"the forward or backward pass failed {self.crashes} times in a row: {error}",
                fix="this is more than one bad batch: run the step once outside the guard and read the traceback",
            )
        # Nothing of a batch: no parameter to train, a detector left in evaluation mode, a graph kept between steps.
        evaluating = error.startswith("LossForm") and not self.model.training
        untrained = self.layout.frozen or any(w in error for w in NOTHING_TRAINED)
        kept = self.crashes > 1 and any(w in error for w in GRAPH_ERRORS)
        everywhere = {"every_batch": True} if untrained or evaluating or kept else {}
        return Verdict("crash", error, measured | {"error": error} | everywhere)

    def refuse(self, record: StepRecord, verdict: Verdict | None, began: float, *, ran: bool = True) -> StepRecord:
        """Put everything back. ``ran``: the forward pass was begun. ``verdict`` None: no incident."""
        if ran:
            self.buffers.restore()
            self.scale.refused(record.loss_scale)
        if verdict is not None:
            self.raise_alarm(record, verdict)
        self.seconds += time.perf_counter() - began
        return record

    def raise_alarm(self, record: StepRecord, verdict: Verdict) -> None:
        """Raise the alarm for ``record``; said once per symptom where nobody else says it."""
        record.symptom = verdict.symptom
        onset = record.step if verdict.onset_step is None else verdict.onset_step
        self.alarm = Alarm(verdict.symptom, record.step, record.epoch, onset, verdict.message, verdict.measured)
        if self.on_alarm is not None:
            self.on_alarm(self.alarm)
        elif self.say and verdict.symptom not in self.said:
            self.said.add(verdict.symptom)
            done = "applied all the same" if record.applied else "refused"
            kept = "" if record.applied else "; weights, buffers and optimizer are as before it"
            hint = REGIME if verdict.symptom == "diverged" else ""
            text = f"step {record.step} {done} ({verdict.symptom}): {verdict.message}{kept}. Said once a kind{hint}"
            warnings.warn(text, GuardWarning, stacklevel=3)


NOTHING: contextlib.nullcontext[None] = contextlib.nullcontext()
NOTHING_TRAINED = (SWITCHED_OFF, DETACHED.split("{}")[0])
EARLY = 20
"""Step whose update is measured besides: a run of a hundred steps has no other after its warm-up."""
REGIME = ". If the loss was changed on purpose: guard.new_regime()"
