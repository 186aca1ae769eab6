"""One step of anybody's training as a case for replays; and a look at a loud one before it is called a divergence."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from maskrcnn_coco.anywhere.last_words import beside
from maskrcnn_coco.anywhere.rig import make_rig, number_divided_by, own_clip
from maskrcnn_coco.anywhere.unlike_others import named
from maskrcnn_coco.components import plain_name, real
from maskrcnn_coco.diagnosis.experiments import Experiments
from maskrcnn_coco.diagnosis.limits import ALIKE
from maskrcnn_coco.guard.hooks import Deafness
from maskrcnn_coco.records import Alarm, Finding, StepRecord, Symptom
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.isolation import untouched
from maskrcnn_coco.replay.optimizer import put_usual
from maskrcnn_coco.replay.outcome import Outcome


def case_of(known: Any, alarm: Alarm) -> Case:
    """All that it takes to take the step of ``alarm`` again, of what an `AlarmResponder` knows."""
    guard = known.guard
    # Of losses that the loop divides by the number of micro-batches, the sum is one of a whole step.
    scale = _scale(known, alarm.step)
    clip = guard.instruments.max_grad_norm if known.own_batches else own_clip(known.history)
    rig = make_rig(
        known.groups,
        known.forwards,
        max_grad_norm=clip,
        fp32_modules=known.fp32_modules,
        norms_clipped=not known.own_batches,
        evaluates=guard.immediate.evaluates,
    )
    now = known.snapshot(alarm.step)
    put_usual(now.optimizer["param_groups"], known.groups.names, guard.instruments.lowered.usual)
    if "loss_scale" in alarm.measured:
        now.scaler = {"scale": guard.instruments.scale.value}
    return Case(
        alarm=alarm,
        now=now,
        earlier=[s for s in known.ring.items if s.step <= alarm.step],
        tape=[replace(e, record=_times(e.record, scale)) for e in known.tape],
        batches=list(known.kept.batches(alarm.step)) or None,
        history=[_times(r, scale) for r in known.history],
        # A loop of somebody's own clears gradients itself, or forgets to.
        settings={
            "by_design": sorted(guard.buffers.by_design),
            "own_gradients": not known.own_batches,
            "takes_again": False,  # a loop goes on with its next batch: each step further back is one lost
            "rivals": beside(guard),
            "highest_momentum": max(real(g.get("momentum") or 0.0) for g in now.optimizer["param_groups"]),
            "went_back": any(i.action.kind in ("rollback", "lower_lr") for i in known.incidents),
            "glitches": [i.step for i in known.incidents if i.cause == "TRANSIENT" or "multiplied" in i.detail],
        },
        rig=rig,
        gradients={} if known.own_batches else _live_gradients(known.model),
    )


def _live_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {plain_name(n): p.grad for n, p in model.named_parameters() if p.grad is not None}


HALF = 0.5
"""A batch that costs less than this share of a loss does not make that loss what it is."""
NEARLY = 1e-3
"""Share of a loss that it may be off another by, where one of them is a replay's."""
STEEPER = 100.0
"""A gradient so many times that of the same step, taken again, is no gradient of its loss."""


class Looks:
    """What replays tell of a step before it is refused; see `guard.verdict.Looks`.

    Args:
        known: an `AlarmResponder`.
    """

    def __init__(self, known: Any) -> None:
        self.known = known

    def as_loud_before(self, record: StepRecord, onset: int) -> bool:
        """Then it is the data, the rewards or a rival that are others now: no step of this model has led there.

        Not where a scan finds anything, or one sample is far out of scale: those are faults of their own.
        """
        alarm = Alarm("diverged", record.step, record.epoch, onset, "", {})

        def older(case: Case) -> bool:
            snapshot = next((s for s in case.earlier if s.step <= onset), None)
            if snapshot is None:
                return False
            tests = Experiments(case)
            scanned = tests.scan_all()
            before = tests.replay.run("same batch, older weights", snapshot=snapshot)
            sound = not (scanned.suspects() or scanned.state or scanned.anchors)
            alone = named(Finding("UNKNOWN", 0.0), alarm, self.known.kept).cause != "UNKNOWN"
            loss = abs(record.loss) * _scale(self.known, record.step)
            return sound and not alone and before.finite and loss <= ALIKE * abs(before.loss) < math.inf

        return self._asked(alarm, older)

    def calm_before(self, record: StepRecord, onset: int) -> bool:
        """Then the steps since have led there."""
        alarm = Alarm("diverged", record.step, record.epoch, onset, "", {})

        def older(case: Case) -> bool:
            snapshot = next((s for s in case.earlier if s.step <= onset), None)
            if snapshot is None:
                return False
            before = Experiments(case).replay.run("same batch, older weights", snapshot=snapshot)
            return before.finite and abs(before.loss) < HALF * abs(record.loss) * _scale(self.known, record.step)

        return self._asked(alarm, older)

    def climbs(self, record: StepRecord) -> bool:
        """Gradients that are a number below 0 times those taken again, at the same loss."""

        def up(same: Outcome) -> bool:
            loss = record.loss * _scale(self.known, record.step)
            return same.finite and (same.times or 0.0) < 0 and abs(same.loss - loss) <= NEARLY * abs(loss)

        on_purpose = not self.known.own_batches and self.known.guard.goes_up
        return not on_purpose and self._again("diverged", record, up, digest=True)

    def turned_around(self, record: StepRecord) -> bool:
        """This loss, or one on record with the other sign, is -1 times what it is when taken again."""
        alarm = Alarm("diverged", record.step, record.epoch, record.step, "", {})

        def again(case: Case) -> bool:
            replay = Experiments(case).replay
            same = replay.run("same batch, same weights")
            if opposite(same.loss, record.loss * _scale(self.known, record.step)):
                return True
            known = ((s, e) for s in case.earlier if (e := case.entry(s.step)) is not None and e.step < record.step)
            for state, entry in known:
                if entry.record is not None and entry.record.loss * record.loss < 0:
                    then = replay.run("then", snapshot=state, batches=replay.batches_of(entry), step=entry.step)
                    return opposite(then.loss, entry.record.loss)
            return False

        return self._asked(alarm, again)

    def steep_once(self, record: StepRecord) -> bool:
        """Then it is none of the loss's: a glitch, or a hook's doing."""
        return self._again(
            "diverged", record, lambda same: same.finite and 0 < same.grad_norm < record.grad_norm / STEEPER
        )

    def steep_at_first(self, record: StepRecord, first: StepRecord) -> bool:
        """From the state that the run began with."""
        alarm = Alarm("diverged", record.step, record.epoch, first.step, "", {})

        def again(case: Case) -> bool:
            replay = Experiments(case).replay
            state = next((s for s in case.earlier if s.step == first.step), None)
            entry = case.entry(first.step)
            if state is None or entry is None:
                return False
            batches = replay.batches_of(entry)
            same = replay.run("the first step", snapshot=state, batches=batches, step=first.step)
            return same.finite and 0 < same.grad_norm < first.grad_norm / STEEPER

        return self._asked(alarm, again)

    def of_nothing(self, record: StepRecord) -> bool:
        """The same step, taken again: what is NaN there has no gradient, and the others are finite."""
        return self._again(
            "loss_nonfinite",
            record,
            lambda same: same.finite and math.isnan(same.loss) and math.isfinite(same.grad_norm),
        )

    def _again(
        self, symptom: Symptom, record: StepRecord, holds: Callable[[Outcome], bool], *, digest: bool = False
    ) -> bool:
        """Whether ``holds`` of the same step, taken again. ``digest``: its gradients are held against the run's."""
        alarm, test = Alarm(symptom, record.step, record.epoch, record.step, "", {}), "same batch, same weights"
        return self._asked(alarm, lambda case: holds(Experiments(case).replay.run(test, digest=digest)))

    def _asked(self, alarm: Alarm, ask: Callable[[Case], bool]) -> bool:
        known = self.known
        if known.guard.immediate.team is not None:
            return False  # all processes have to agree
        try:
            case = case_of(known, alarm)
            if not case.batches:
                return False
            with Deafness.deaf(), untouched(known.model, case.now):
                return ask(case)
        except Exception:  # what cannot be asked is judged without
            return False


def opposite(one: float, other: float) -> bool:
    """Whether one loss is the other times -1."""
    return other != 0 and abs(one + other) <= NEARLY * abs(other)


def _scale(known: Any, step: int) -> float:
    return number_divided_by(known.divisor, len(known.kept.batches(step)))


def _times(record: Any, factor: float) -> Any:
    """A record of the step (or None) with its losses in the unit of a whole step."""
    if record is None or factor == 1.0:
        return record
    return replace(record, loss=record.loss * factor, losses={k: v * factor for k, v in record.losses.items()})
