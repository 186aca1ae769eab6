"""What the project writes down: plain records, and strict JSON for them. Standard library only.

Non-finite floats become the strings "nan", "inf" and "-inf", so that every line is JSON any parser reads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

COMPONENTS = ("backbone", "rpn", "box_head", "mask_head")
"""The four parameter groups of a torchvision Mask R-CNN, in this order everywhere."""
RATE_SETTINGS: dict[str, str] = {
    "backbone": "lr",
    "rpn": "rpn_lr_multiplier",
    "box_head": "head_lr_multiplier",
    "mask_head": "head_lr_multiplier",
}
"""The setting that sets the learning rate of a component."""
GRAPH_ERRORS = ("backward through the graph a second time", "modified by an inplace operation")
"""What autograd says of a tensor that is used in a later step with the graph of an earlier one: never a device's."""
PROVED = 0.9
"""Confidence from which on a finding counts as proved: a replay or a scan has shown it."""

Symptom = Literal[
    "loss_nonfinite",
    "grad_nonfinite",
    "param_nonfinite",
    "buffer_nonfinite",
    "optimizer_nonfinite",
    "input_nonfinite",
    "diverged",
    "scale_collapse",
    "stalled",
    "crash",
]
ActionKind = Literal["skip", "rollback", "quarantine", "lower_lr", "precision", "reload", "stop"]
CAUSES = (
    "LR_TOO_HIGH",
    "DATA_BOX",
    "DATA_LABEL",
    "DATA_PIXEL",
    "DATA_MASK",
    "NORM_STATE",
    "POISONED_STATE",
    "FP16_OVERFLOW",
    "SCALE_COLLAPSE",
    "LOSS_MATH",
    "ACCUMULATION",
    "ANCHORS",
    "TRANSIENT",
    "BACKEND",
    "RANK_LOCAL",
    "UNKNOWN",
)

FINDING_CODES = (
    "NO_TARGETS",
    "GEOMETRY",
    "CLASSES",
    "PIXELS",
    "NOT_TRAINED",
    "LR_TOO_LOW",
    "SAME_DRAWS",
    "CEILING",
    "MASKS_ELSEWHERE",
    "MEMORISED",
    "NOT_LEARNING",
)
"""What can make a run finite and useless: the codes of `RunFinding`."""


@dataclass
class StepRecord:
    """One planned optimizer step, applied or refused.

    ``grad_norm`` and ``group_grad_norm`` are true 2-norms: after unscaling, before clipping. ``losses`` are means over
    the micro-batches. ``update_ratio`` is ‖update‖ / ‖weights‖ per component, empty on steps where it was not measured.
    ``symptom`` is None for an applied step and for a benign skip (the fp16 scale search).
    """

    step: int
    epoch: int
    losses: dict[str, float]
    loss: float
    grad_norm: float
    group_grad_norm: dict[str, float]
    lr: dict[str, float]
    loss_scale: float | None
    image_ids: list[int]
    applied: bool
    symptom: Symptom | None = None
    update_ratio: dict[str, float] = field(default_factory=dict)
    kind: str = "step"


@dataclass
class EpochRecord:
    """Means over the applied steps of one epoch. ``seconds`` is wall time without evaluation."""

    epoch: int
    step: int
    losses: dict[str, float]
    loss: float
    grad_norm: float
    lr: dict[str, float]
    skipped_steps: int
    images_per_second: float
    seconds: float
    kind: str = "epoch"


@dataclass
class EvalRecord:
    """COCO metrics after an epoch: ``bbox/AP``, ``bbox/AP50``, ``segm/AP`` … in 0..1; per-class AP in ``per_class``.

    ``losses``: those of training, measured on some validation images without augmentation; {}: not measured.
    """

    epoch: int
    step: int
    metrics: dict[str, float]
    per_class: dict[str, dict[str, float]]
    seconds: float
    losses: dict[str, float] = field(default_factory=dict)
    kind: str = "eval"


@dataclass
class DataFinding:
    """One problem in annotations or images, as ``check`` prints it.

    ``count`` objects or images have it. ``annotation_id`` is the file's; ``row`` is the place in its ``annotations``,
    from 0, where that id does not name one annotation: it is missing, below 0, or used again.
    """

    code: str
    severity: Literal["error", "warning", "info"]
    image_id: int | None
    annotation_id: int | None
    file_name: str | None
    message: str
    fix: str
    row: int | None = None
    count: int = 1


@dataclass
class Evidence:
    """One test that was made, what came out, and the cause code it supports (None: it separates nothing)."""

    test: str
    outcome: str
    supports: str | None = None


@dataclass
class RunFinding(DataFinding):
    """Something that makes a run finite and useless, with its proof. It has the fields of a `check` finding, and more.

    ``severity`` error: nothing can be learned. ``moment``: when it was seen. ``detail["what"]`` names the kind of
    finding within its code, so that each is said once. ``explain`` is the command that teaches the code.
    """

    moment: Literal["before", "steps", "epoch"] = "before"
    evidence: list[Evidence] = field(default_factory=list)
    detail: dict[str, Any] = field(default_factory=dict)
    explain: str = ""


@dataclass
class Culprit:
    """Who did it. Unknown parts are None or empty, never guessed."""

    component: str | None = None
    module: str | None = None
    image_ids: list[int] = field(default_factory=list)
    annotation_ids: list[int] = field(default_factory=list)
    checkpoint: str | None = None
    rank: int | None = None


@dataclass
class Finding:
    """A cause with its proof: what diagnosis hands to recovery. ``confidence`` ≥ 0.9 means proved by replay or scan.

    ``onset_step`` is the last step whose start state replays healthy, where the divergence began; None if unknown.
    ``fix`` is the flag or command that makes the cure permanent; ``detail`` holds numbers for the explanation.
    """

    cause: str
    confidence: float
    culprit: Culprit = field(default_factory=Culprit)
    evidence: list[Evidence] = field(default_factory=list)
    onset_step: int | None = None
    fix: str = ""
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass
class Action:
    """What recovery decided. ``detail`` is, per kind:

    skip: {}, and "passed": True where buffers keep what the refused pass made of them · quarantine:
    {"image_ids": [...]} · rollback: {"to_step": int}, and "by_plan": True where the plan's learning rates are held to
    from then on, "usual": {setting of the optimizer: value} where the one it had was proved wrong and has this one from
    then on ("lr": by component, while the schedule has no rate), "state_anew": True where the optimizer's memory alone
    is bad and begins anew, "redraw": [[epoch, index, repeat], ...] where samples are bad as they were drawn there and
    get other draws · lower_lr: {"component": str, "components": [...], "factor": float, "to_step": int}, and
    "weight_decay" or "momentum": float where only that is lowered, "most": {component: float} where rates that leapt
    are held to what they were in a loop with a schedule of its own · precision: {"module": str, "dtype": "fp32"} or
    {"loss_scale": float} · reload: {"checkpoint": str | None} · stop: {"why": str}.
    """

    kind: ActionKind
    detail: dict[str, Any] = field(default_factory=dict)


def lowered_settings(detail: Mapping[str, Any]) -> dict[str, float]:
    """Of a finding's or an action's ``detail``: settings of the optimizer that are lowered in place of a rate."""
    return {name: float(detail[name]) for name in ("weight_decay", "momentum") if name in detail}


@dataclass
class Alarm:
    """The guard's verdict on one step: what it saw, never why."""

    symptom: Symptom
    step: int
    epoch: int
    onset_step: int
    message: str
    measured: dict[str, Any] = field(default_factory=dict)


@dataclass
class Incident:
    """One alarm from symptom to outcome, as written to ``incidents/NNNN.json``."""

    id: str
    step: int
    epoch: int
    onset_step: int
    symptom: Symptom
    cause: str
    confidence: float
    culprit: Culprit
    evidence: list[Evidence]
    action: Action
    outcome: Literal["recovered", "stopped"]
    lost_steps: int
    fix: str
    explain: str
    detail: dict[str, Any] = field(default_factory=dict)


def incident_of(
    number: int,
    alarm: Alarm,
    findings: Sequence[Finding],
    action: Action,
    *,
    history: Sequence[StepRecord],
    lr_factors: Mapping[str, float],
) -> Incident:
    """The ``number``-th incident of a run: the best finding, and the action that was decided; "recovered" so far."""
    top = findings[0] if findings else Finding("UNKNOWN", 0.0, evidence=[Evidence("none made", "no finding")])
    return Incident(
        id=f"{number:04d}",
        step=alarm.step,
        epoch=alarm.epoch,
        onset_step=alarm.onset_step if top.onset_step is None else top.onset_step,
        symptom=alarm.symptom,
        cause=top.cause,
        confidence=top.confidence,
        culprit=top.culprit,
        evidence=top.evidence,
        action=action,
        outcome="recovered",
        lost_steps=0,
        fix=top.fix,
        explain=f"maskrcnn-coco explain {top.cause}",
        detail={
            **top.detail,
            "lr_factors": dict(lr_factors),
            "message": alarm.message,
            "measured": alarm.measured,
            "other_findings": [{"cause": f.cause, "confidence": f.confidence} for f in findings[1:]],
            "records": list(history[-60:]),
            "time": time.time(),
        },
    )


@dataclass
class Result:
    """How a run ended, as written to ``result.json`` and returned by ``train``."""

    status: Literal["finished", "stopped", "interrupted"]
    exit_code: int
    finite: bool
    epochs: int
    steps: int
    skipped_steps: int
    incidents: list[str]
    metrics: dict[str, float]
    best_checkpoint: str | None
    first_loss: float
    last_loss: float
    images_per_second: float
    guard_seconds: float
    peak_memory_bytes: int
    findings: list[RunFinding] = field(default_factory=list)
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)
    """Class → AP of the last evaluation, ``objects`` in validation, ``train_objects`` and ``train_images``."""


def plain(value: Any) -> Any:
    """``value`` as dicts, lists and JSON scalars; non-finite floats as "nan", "inf", "-inf"."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value


def to_json(value: Any, *, indent: int | None = None) -> str:
    """Strict JSON of a record, a dict or a list of them."""
    text = json.dumps(plain(value), indent=indent, allow_nan=False, ensure_ascii=False)
    # A file name that is not UTF-8 holds what no encoder takes.
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def number(value: Any) -> float:
    """The float behind a JSON value: the inverse of what `plain` did to non-finite numbers."""
    return float(value)


def record_from(kind: type, data: dict[str, Any]) -> Any:
    """A record of class ``kind`` from its JSON dict; unknown keys are ignored, nested records are rebuilt."""
    nested = {"culprit": Culprit, "action": Action}
    known = {f.name for f in dataclasses.fields(kind)}
    values = {k: v for k, v in data.items() if k in known}
    for name, cls in nested.items():
        if isinstance(values.get(name), dict):
            values[name] = record_from(cls, values[name])
    if isinstance(values.get("evidence"), list):
        values["evidence"] = [record_from(Evidence, e) if isinstance(e, dict) else e for e in values["evidence"]]
    return kind(**values)
