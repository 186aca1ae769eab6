"""One sample, or all of them: pixels, fields, labels, targets, forms."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, NAN, entry, every, once, put, sample, setting, times, together
from anywhere.mainstream.task import Run

PIXEL, LABEL, MASK, BOX, MATHS = "DATA_PIXEL", "DATA_LABEL", "DATA_MASK", "DATA_BOX", "LOSS_MATH"
PIXELS, LABELS = (LABEL,), (PIXEL,)


def bad(task: str, kind: str, cause: str, fault: Any, *also: str, end: str = "goes on") -> Case:
    """One bad sample."""
    return Case(task, kind, cause, fault, also, sample=True, end=end)


def checks(run: Run) -> None:
    """The network refuses what is not in its range, in words; one sample is."""
    run.change_bad(0, lambda x: x - 5)
    run.model.register_forward_pre_hook(_refuses)


def _refuses(module: Any, args: Any) -> None:
    if bool((args[0] < 0).any()):
        raise ValueError("pixels have to be in 0..1")


def other_width(run: Run) -> None:
    """The first layer takes other pictures than the data set has."""
    run.model[-1] = torch.nn.Linear(100, 4)  # pyright: ignore[reportIndexIssue]


CASES_DATA: tuple[Case, ...] = (
    bad("cnn", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("cnn", "infinite pixel", PIXEL, sample(0, put(INF, 0, 3, 3))),
    bad("cnn", "a file of garbage", PIXEL, sample(0, times(1e30))),
    bad("cnn", "NaN once, from a worker", PIXEL, together(once(0, put(NAN)), setting("workers", 1))),
    bad("vit", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("vit", "pixels x1e6", PIXEL, sample(0, times(1e6)), "FP16_OVERFLOW"),
    bad("unet", "NaN picture", PIXEL, sample(0, lambda x: x * NAN)),
    bad("unet", "pixels x1e30", PIXEL, sample(0, times(1e30))),
    bad("siamese", "NaN in the second", PIXEL, sample(1, put(NAN))),
    bad("simclr", "infinite pixel", PIXEL, sample(0, put(-INF))),
    bad("diffusion", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("diffusion", "pixels x1e5", PIXEL, sample(0, times(1e5))),
    bad("detector", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("detector", "0 to 255", PIXEL, sample(0, times(255))),
    bad("houses", "NaN field", PIXEL, sample(0, put(NAN, 2))),
    bad("houses", "fill value 9.97e36", PIXEL, sample(0, put(9.97e36, 1))),
    bad("customers", "NaN field", PIXEL, sample(0, put(NAN, 4))),
    bad("customers", "field x1e8", PIXEL, sample(0, put(1e8, 1))),
    bad("two_tasks", "NaN picture", PIXEL, sample(0, lambda x: x * NAN)),
    bad("vae", "NaN pixel", PIXEL, sample(0, put(NAN)), LABEL, end="open"),
    bad("vae", "0 to 255", PIXEL, sample(0, times(255)), LABEL, end="open"),
    bad("forecast", "a gap", PIXEL, sample(0, put(NAN, 3, 1))),
    bad("forecast", "infinite reading", PIXEL, sample(0, put(INF, 7, 0))),
    bad("ctc", "NaN frame", PIXEL, sample(0, lambda x: torch.where(torch.arange(20)[:, None] == 4, NAN, x))),
    bad("distill", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("policy", "NaN state", PIXEL, sample(0, put(NAN)), end="open"),
    bad("dqn", "infinite state", PIXEL, sample(0, put(INF))),
    bad("gan", "NaN pixel", PIXEL, sample(0, put(NAN))),
    # Nodes cannot be cut out of their batch: no graph is named.
    Case("graphs", "NaN node", PIXEL, sample(0, put(NAN))),
    Case("houses", "a column of NaN", PIXEL, every(0, put(NAN, 5)), end="stops"),
    Case("vae", "all 0 to 255", PIXEL, every(0, times(255)), (LABEL, "UNKNOWN"), end="open"),
    # Labels
    bad("cnn", "label 4 of 4", LABEL, sample(1, lambda y: y * 0 + 4), end="open"),
    bad("vit", "label -1", LABEL, sample(1, lambda y: y * 0 - 1), end="open"),
    bad("texts", "label 255", LABEL, sample(2, lambda y: y * 0 + 255), end="open"),
    bad("distill", "label 9", LABEL, sample(1, lambda y: y * 0 + 9)),
    bad("gpt", "word 20 of 20", LABEL, sample(0, put(20, 5)), PIXEL, end="open"),
    bad("texts", "word 50", LABEL, sample(0, put(50, 0)), PIXEL, end="open"),
    bad("films", "user 20 of 20", LABEL, sample(0, lambda u: u * 0 + 20), PIXEL),
    bad("films", "NaN stars", LABEL, sample(2, lambda s: s * NAN), PIXEL),
    bad("films", "1e9 stars", LABEL, sample(2, lambda s: s * 0 + 1e9), PIXEL),
    bad("houses", "NaN price", LABEL, sample(1, put(NAN)), PIXEL),
    bad("houses", "infinite price", LABEL, sample(1, put(INF)), PIXEL),
    bad("houses", "price in dollars", LABEL, sample(1, times(1e5)), PIXEL),
    bad("forecast", "NaN target", LABEL, sample(1, put(NAN)), PIXEL),
    bad("forecast", "target 1e20", LABEL, sample(1, put(1e20)), PIXEL),
    bad("customers", "NaN label", LABEL, sample(1, put(NAN)), PIXEL),
    bad("customers", "label 255", LABEL, sample(1, put(255.0)), PIXEL),
    bad("customers", "label -99999", LABEL, sample(1, put(-99999.0)), PIXEL),
    bad("unet", "a mask of 255", MASK, sample(1, times(255)), LABEL, PIXEL),
    bad("unet", "NaN in a mask", MASK, sample(1, put(NAN)), LABEL, PIXEL),
    bad("siamese", "NaN label", LABEL, sample(2, lambda y: y * NAN), PIXEL),
    bad("two_tasks", "NaN number", LABEL, sample(2, put(NAN)), PIXEL),
    bad("two_tasks", "number 1e12", LABEL, sample(2, put(1e12)), PIXEL),
    bad("ctc", "more letters than frames", LABEL, sample(2, lambda n: n * 0 + 1), MATHS),
    bad("dqn", "NaN reward", LABEL, sample(2, lambda r: r * NAN), PIXEL),
    bad("dqn", "reward 1e15", LABEL, sample(2, lambda r: r * 0 + 1e15), PIXEL),
    bad("detector", "box upside down", BOX, entry(1, "boxes", lambda b: b[:, [2, 3, 0, 1]]), end="open"),
    bad("detector", "NaN box", BOX, entry(1, "boxes", put(NAN, 0, 2)), end="open"),
    bad("detector", "label 9", LABEL, entry(1, "labels", lambda y: y * 0 + 9), end="open"),
    bad("detector", "no labels", LABEL, entry(1, "labels", lambda y: None), BOX, end="open"),
    # Forms
    Case("cnn", "labels as floats", LABEL, every(1, lambda y: y.float()), ("UNKNOWN",), end="open"),
    Case("cnn", "pictures as bytes", PIXEL, every(0, lambda x: (255 * x).byte()), ("UNKNOWN",), end="open"),
    Case("customers", "labels as integers", LABEL, every(1, lambda y: y.long()), ("UNKNOWN",), end="stops"),
    Case("graphs", "an edge to node 999", LABEL, sample(1, put(999, 1, 0)), (PIXEL, "UNKNOWN"), end="open"),
    bad("siamese", "the model refuses one", "UNKNOWN", checks, PIXEL),
    Case("cnn", "the model refuses all", "UNKNOWN", other_width, end="open"),
)  # fmt: skip
