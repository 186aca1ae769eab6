"""Why a step is refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from maskrcnn_coco.records import Symptom


@dataclass
class Verdict:
    """Why a step is refused. ``onset_step`` None: this very step. ``fatal``: running it could kill the interpreter.

    ``suspicion``: a verdict only if something else of the step is not finite. Inputs may hold NaN or -inf by design: an
    attention mask, targets that are ignored where they are NaN.
    """

    symptom: Symptom
    message: str
    measured: dict[str, Any] = field(default_factory=dict)
    onset_step: int | None = None
    fatal: bool = False
    suspicion: bool = False
