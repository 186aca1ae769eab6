"""One sample, or all of them: numbers, waves, places, tags, grades, answers."""

from __future__ import annotations

from typing import Any

from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, NAN, every, once, put, sample, setting, times, together

PIXEL, LABEL, MATHS, UNKNOWN = "DATA_PIXEL", "DATA_LABEL", "LOSS_MATH", "UNKNOWN"
NORM, POISON, ONCE = "NORM_STATE", "POISONED_STATE", "TRANSIENT"


def bad(task: str, kind: str, cause: str, fault: Any, *also: str, end: str = "goes on") -> Case:
    """One bad sample."""
    return Case(task, kind, cause, fault, also, sample=True, end=end)


CASES_DATA: tuple[Case, ...] = (
    bad("columns", "an empty field", PIXEL, sample(0, put(NAN, 2))),
    bad("columns", "category 5 of 5", LABEL, sample(1, put(5, 1)), PIXEL, end="open"),
    bad("columns", "class 3 of 3", LABEL, sample(2, lambda y: y * 0 + 3), end="open"),
    bad("keywords", "NaN in a wave, in the second half of a step", PIXEL, sample(0, put(NAN, 0, 30))),
    bad("keywords", "infinite once, from a worker", PIXEL, together(once(0, put(INF)), setting("workers", 1))),
    bad("keywords", "a wave in units of its file", PIXEL, sample(0, times(32768))),
    bad("crf", "tag 4 of 4", LABEL, sample(1, put(4, 5)), end="open"),
    bad("crf", "word -1", LABEL, sample(0, put(-1, 2)), PIXEL, end="open"),
    bad("ranks", "NaN field of a document", PIXEL, sample(0, put(NAN, 4, 2))),
    bad("ranks", "a grade of infinity", LABEL, sample(1, put(INF, 3)), MATHS),
    bad("muon", "number 8 of 8", LABEL, sample(0, put(8, 3)), PIXEL, end="open"),
    bad("wgan", "NaN point", PIXEL, sample(0, put(NAN, 1))),
    bad("wgan", "a point at 1e20", PIXEL, sample(0, put(1e20, 0))),
    bad("grpo", "an answer worth NaN", LABEL, sample(2, lambda w: w * NAN), PIXEL, MATHS),
    bad("grpo", "an infinite field", PIXEL, sample(0, put(INF, 5))),
    bad("fno", "NaN in a rod", PIXEL, sample(0, put(NAN, 9))),
    # What the slow net makes of it goes into the queue, whatever becomes of the step.
    bad("moco", "NaN pixel, and into the queue", PIXEL, sample(0, put(NAN, 0, 5, 5)), NORM, POISON, ONCE, end="open"),
    bad("raft", "a line of infinity", PIXEL, sample(1, times(INF))),
    bad("raft", "NaN shift", LABEL, sample(2, lambda d: d * NAN), PIXEL),
    bad("forces", "NaN force", LABEL, sample(2, put(NAN, 1, 1)), PIXEL),
    bad("forces", "an energy of another unit", LABEL, sample(1, lambda e: e * 0 + 3e7), PIXEL),
    bad("splat", "NaN place", PIXEL, sample(0, put(NAN))),
    bad("splat", "infinite colour", LABEL, sample(1, put(INF, 1)), PIXEL),
    # Forms
    Case("crf", "words as floats", LABEL, every(0, lambda w: w.float()), (PIXEL, UNKNOWN), end="open"),
    Case("splat", "places as doubles", PIXEL, every(0, lambda x: x.double()), (UNKNOWN, LABEL), end="open"),
)  # fmt: skip
