"""One sample, or all of them: pixels, spectra, words, labels, boxes, targets, forms."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, NAN, every, once, put, sample, setting, times, together
from anywhere.mainstream.third.faults import grown

PIXEL, LABEL, BOX, MATHS, UNKNOWN = "DATA_PIXEL", "DATA_LABEL", "DATA_BOX", "LOSS_MATH", "UNKNOWN"


def bad(task: str, kind: str, cause: str, fault: Any, *also: str, end: str = "goes on") -> Case:
    """One bad sample."""
    return Case(task, kind, cause, fault, also, sample=True, end=end)


def set_to(value: float) -> Any:
    """All of a field."""
    return lambda t: t * 0 + value


CASES_DATA: tuple[Case, ...] = (
    bad("sam", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("clip", "infinite pixel", PIXEL, sample(0, put(INF, 0, 2, 2))),
    bad("yolo", "NaN picture", PIXEL, sample(0, times(NAN))),
    bad("mri", "NaN in k-space", PIXEL, sample(0, put(NAN, 6, 6))),
    bad("qat", "infinite pixel", PIXEL, sample(0, put(INF, 0, 1, 1))),
    bad("qat", "pixels x1e6", PIXEL, sample(0, times(1e6))),
    bad("vocoder", "NaN frame", PIXEL, sample(0, put(NAN, 0, 3))),
    bad("deepar", "a gap", PIXEL, sample(0, put(NAN, 5)), LABEL),
    bad("deepar", "a count of 1e30", PIXEL, sample(0, put(1e30, 5)), LABEL),
    # Each of its batches holds all samples.
    bad("lbfgs", "infinite time", PIXEL, sample(0, put(INF)), end="stops"),
    bad("ode", "NaN start", PIXEL, sample(0, put(NAN))),
    # Cubes of cubes: the path leaves float32.
    bad("ode", "a start in millimetres", PIXEL, sample(0, times(1e14))),
    bad("edm", "NaN point", PIXEL, sample(0, put(NAN))),
    bad("edm", "a point at 1e20", PIXEL, sample(0, put(1e20)), LABEL),
    bad("sac", "NaN state", PIXEL, sample(0, put(NAN)), LABEL, end="open"),
    # The factorisation raises before there is a loss.
    bad("kernel", "NaN field", PIXEL, sample(0, put(NAN)), end="open"),
    bad("sage", "NaN neighbour", PIXEL, sample(1, put(NAN, 0, 2))),
    bad("sage", "NaN once, from a worker", PIXEL, together(once(0, put(NAN)), setting("workers", 1))),
    Case("ode", "an augmentation that writes into the data", PIXEL, grown, (UNKNOWN,), end="open"),
    # Words, nodes, labels
    bad("clip", "word 12 of 12", LABEL, sample(1, put(12, 1)), PIXEL, end="open"),
    bad("dpo", "word 20 of 20", LABEL, sample(0, put(20, 2)), PIXEL, end="open"),
    bad("ssm", "word 7 of 7", LABEL, sample(0, put(7, 0)), PIXEL, end="open"),
    bad("poincare", "node 40 of 40", LABEL, sample(1, set_to(40)), PIXEL, end="open"),
    bad("sam", "label 4 of 4", LABEL, sample(1, set_to(4)), end="open"),
    bad("ssm", "label 3 of 3", LABEL, sample(1, set_to(3)), end="open"),
    bad("sage", "label -1", LABEL, sample(3, set_to(-1))),
    # Targets
    bad("yolo", "NaN size", BOX, together(sample(1, put(NAN, 2)), setting("precision", "fp32")), LABEL, PIXEL),
    bad("vocoder", "NaN in a wave", LABEL, sample(1, put(NAN, 40)), PIXEL),
    bad("vocoder", "a wave x1e6", LABEL, sample(1, times(1e6)), PIXEL),
    bad("lbfgs", "NaN height", LABEL, sample(1, put(NAN)), PIXEL, end="stops"),
    bad("lbfgs", "height 1e15", LABEL, sample(1, put(1e15)), PIXEL, end="stops"),
    bad("sac", "NaN reward", LABEL, sample(1, put(NAN)), PIXEL),
    bad("kernel", "infinite value", LABEL, sample(1, lambda y: y + INF), PIXEL, MATHS),
    # Forms
    Case("clip", "words as floats", LABEL, every(1, lambda w: w.float()), (PIXEL, UNKNOWN), end="open"),
    Case("mri", "k-space as pairs of numbers", PIXEL, every(0, lambda k: torch.view_as_real(k)), (UNKNOWN,),
         end="open"),
)  # fmt: skip
