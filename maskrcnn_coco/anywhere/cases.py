"""One step of anybody's training as a case for replays; and a look at a loud one before it is called a divergence."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from maskrcnn_coco.anywhere.rig import make_rig, number_divided_by, own_clip
from maskrcnn_coco.anywhere.unlike_others import named
from maskrcnn_coco.diagnosis.experiments import Experiments
from maskrcnn_coco.records import Alarm, Finding, StepRecord
from maskrcnn_coco.replay.case import Case
from maskrcnn_coco.replay.isolation import untouched
from maskrcnn_coco.replay.optimizer import put_usual

ALIKE = 2.0
"""A loss that is no more than so many times the one of older weights is not these weights' doing."""


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
            "glitches": [i.step for i in known.incidents if i.cause == "TRANSIENT"],
        },
        rig=rig,
    )


def as_loud_before(known: Any, record: StepRecord, onset: int) -> bool:
    """Whether the batch of ``record`` is as loud on weights from before ``onset``, when the losses became so.

    Then it is the data, the rewards or a rival's weights that are others now, and no step of this model has led there.
    Not where a scan finds anything, or one sample is far out of scale: those are faults of their own.
    """
    if known.guard.immediate.team is not None:
        return False  # all processes have to agree
    alarm = Alarm("diverged", record.step, record.epoch, onset, "", {})
    try:
        case = case_of(known, alarm)
        older = [s for s in case.earlier if s.step <= onset]
        if not case.batches or not older:
            return False
        with untouched(known.model, case.now):
            tests = Experiments(case)
            scanned = tests.scan_all()
            before = tests.replay.run("same batch, older weights", snapshot=older[0])
        if scanned.suspects() or scanned.state or scanned.anchors:
            return False
        lone = named(Finding("UNKNOWN", 0.0), alarm, known.kept).cause != "UNKNOWN"
    except Exception:  # what cannot be asked is as loud as it was
        return False
    loss = abs(record.loss) * _scale(known, record.step)
    return before.finite and not before.error and not lone and math.isfinite(loss) and loss <= ALIKE * abs(before.loss)


def _scale(known: Any, step: int) -> float:
    return number_divided_by(known.divisor, len(known.kept.batches(step)))


def _times(record: Any, factor: float) -> Any:
    """A record of the step (or None) with its losses in the unit of a whole step."""
    if record is None or factor == 1.0:
        return record
    return replace(record, loss=record.loss * factor, losses={k: v * factor for k, v in record.losses.items()})
