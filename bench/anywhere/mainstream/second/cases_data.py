"""One sample, or all of them: pixels, fields, words, labels, targets, forms."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, NAN, every, once, put, sample, setting, times, together
from anywhere.mainstream.task import Run
from torch import Tensor

PIXEL, LABEL, MATHS, UNKNOWN = "DATA_PIXEL", "DATA_LABEL", "LOSS_MATH", "UNKNOWN"


def bad(task: str, kind: str, cause: str, fault: Any, *also: str, end: str = "goes on") -> Case:
    """One bad sample."""
    return Case(task, kind, cause, fault, also, sample=True, end=end)


def gain_is(value: float) -> Any:
    """The game gives a number that is none to whoever meets the bad sample's state."""

    def fault(run: Run) -> None:
        state = run.rows[run.bad][0]

        def gain(run: Run, moves: Tensor, best: Tensor) -> Tensor:
            return torch.where(run.memory["states"].eq(state).all(1), value, (moves == best).float())

        usual = run.prepare
        assert usual is not None

        def prepare(run: Run, batch: Any) -> Any:
            run.memory["states"] = batch[0]
            return usual(run, batch)

        run.memory["reward"], run.prepare = gain, prepare

    return fault


def set_to(value: float) -> Any:
    """All of a field."""
    return lambda t: t * 0 + value


CASES_DATA: tuple[Case, ...] = (
    bad("mae", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("mae", "pixels x1e30", PIXEL, sample(0, times(1e30))),
    bad("keypoints", "NaN picture", PIXEL, sample(0, times(NAN))),
    bad("keypoints", "pixels x1e6", PIXEL, sample(0, times(1e6))),
    bad("keypoints", "NaN once, from a worker", PIXEL, together(once(0, put(NAN)), setting("workers", 1))),
    bad("depth", "infinite pixel", PIXEL, sample(0, put(INF))),
    bad("superres", "infinite pixel", PIXEL, sample(0, put(INF, 0, 2, 2))),
    bad("arcface", "NaN pixel", PIXEL, sample(0, put(NAN))),
    bad("arcface", "a file of garbage", PIXEL, sample(0, times(1e30))),
    bad("byol", "infinite pixel", PIXEL, sample(0, put(-INF))),
    bad("vqvae", "NaN pixel", PIXEL, sample(0, put(NAN)), LABEL),
    bad("vqvae", "0 to 255", PIXEL, sample(0, times(255)), LABEL, end="open"),
    # https://github.com/havakv/pycox/issues/48: gaps in the table, no loss.
    bad("survival", "NaN field", PIXEL, sample(0, put(NAN, 2))),
    bad("survival", "fill value 9.97e36", PIXEL, sample(0, put(9.97e36, 0))),
    bad("mixture", "infinite x", PIXEL, sample(0, put(INF))),
    bad("flow", "NaN point", PIXEL, sample(0, put(NAN))),
    bad("flow", "a point at 1e20", PIXEL, sample(0, put(1e20)), LABEL),
    bad("flow", "a point at 3000", PIXEL, sample(0, put(3e3)), LABEL),
    bad("quantiles", "infinite field", PIXEL, sample(0, put(-INF, 1))),
    bad("tags", "NaN feature", PIXEL, sample(0, put(NAN, 3))),
    bad("experts", "NaN feature", PIXEL, sample(0, put(NAN, 1))),
    bad("experts", "feature 1e38", PIXEL, sample(0, put(1e38, 2))),
    bad("points", "NaN point", PIXEL, sample(0, put(NAN, 1, 1))),
    bad("points", "in micrometres", PIXEL, sample(0, times(1e6))),
    bad("pinn", "NaN place", PIXEL, sample(0, put(NAN))),
    bad("maml", "infinite x to be tried on", PIXEL, sample(2, put(INF, 1, 0)), LABEL),
    bad("ppo", "NaN state", PIXEL, sample(0, put(NAN)), end="open"),
    bad("nerf", "NaN ray", PIXEL, sample(0, put(NAN, 1))),
    # Tables of visitors in one row cannot be cut: nobody is named.
    Case("bags", "NaN number", PIXEL, sample(2, put(NAN, 1))),
    Case("bags", "number 1e20", PIXEL, sample(2, put(1e20, 1))),
    Case("quantiles", "a column of NaN", PIXEL, every(0, put(NAN, 3)), end="stops"),
    # Words and indices: https://openillumi.com/en/en-pytorch-fix-embedding-index-error
    bad("lora", "word -1", LABEL, sample(0, put(-1, 0)), PIXEL, UNKNOWN, end="open"),
    bad("seq2seq", "digit 12 of 12", LABEL, sample(0, put(12, 1)), PIXEL, end="open"),
    bad("tagger", "word 22 of 22", LABEL, sample(0, put(22, 0)), PIXEL, end="open"),
    bad("skipgram", "word 30 of 30", LABEL, sample(0, set_to(30)), PIXEL, end="open"),
    Case("bags", "ad 12 of 12", LABEL, sample(1, set_to(12)), (PIXEL, UNKNOWN), end="open"),
    Case("chars", "character 14 of 14", LABEL, sample(0, put(14, 2)), (PIXEL, UNKNOWN), end="open"),
    # Labels and targets
    bad("lora", "label 7", LABEL, sample(2, set_to(7)), end="open"),
    bad("tagger", "tag 3 of 3", LABEL, sample(1, put(3, 0)), end="open"),
    bad("tagger", "tag -1", LABEL, sample(1, put(-1, 0)), end="open"),
    bad("arcface", "label 4 of 4", LABEL, sample(1, set_to(4)), UNKNOWN, end="open"),
    bad("experts", "label 5", LABEL, sample(1, set_to(5)), end="open"),
    bad("points", "label 255", LABEL, sample(1, set_to(255)), end="open"),
    bad("keypoints", "NaN place", LABEL, sample(1, put(NAN, 0, 0)), PIXEL),
    bad("keypoints", "NaN whether it is seen", LABEL, sample(2, put(NAN, 0)), PIXEL),
    bad("depth", "infinite depth", LABEL, sample(1, put(INF, 0, 1, 1)), PIXEL, MATHS),
    bad("superres", "NaN in what is wanted", LABEL, sample(1, put(NAN)), PIXEL),
    bad("survival", "NaN event", LABEL, sample(2, set_to(NAN)), PIXEL),
    bad("mixture", "NaN y", LABEL, sample(1, put(NAN)), PIXEL),
    bad("mixture", "y 1e6", LABEL, sample(1, put(1e6)), PIXEL),
    bad("quantiles", "NaN load", LABEL, sample(1, put(NAN)), PIXEL),
    bad("tags", "label 255", LABEL, sample(1, put(255.0, 2)), PIXEL),
    bad("tags", "NaN label", LABEL, sample(1, put(NAN, 0)), PIXEL),
    bad("pinn", "NaN force", LABEL, sample(1, put(NAN)), PIXEL),
    bad("pinn", "force 1e6", LABEL, sample(1, put(1e6)), PIXEL),
    bad("maml", "NaN y to learn from", LABEL, sample(1, put(NAN, 2, 0)), PIXEL),
    bad("maml", "y x1e6", LABEL, sample(1, times(1e6)), PIXEL),
    bad("ppo", "NaN reward", LABEL, gain_is(NAN), PIXEL),
    bad("ppo", "reward 1e9", LABEL, gain_is(1e9), PIXEL),
    bad("nerf", "NaN colour", LABEL, sample(1, put(NAN, 0)), PIXEL),
    bad("nerf", "colour x1e6", LABEL, sample(1, times(1e6)), PIXEL),
    Case("bags", "NaN click", LABEL, sample(3, set_to(NAN)), (PIXEL,)),
    # Forms; an empty sentence: https://github.com/pytorch/pytorch/issues/4582
    bad("seq2seq", "no digit", LABEL, sample(1, set_to(0)), PIXEL, UNKNOWN, end="open"),
    Case("tagger", "tags as floats", LABEL, every(1, lambda t: t.float()), (UNKNOWN,), end="open"),
    Case("skipgram", "words as floats", LABEL, every(0, lambda t: t.float()), (PIXEL, UNKNOWN), end="open"),
    Case("tags", "labels as integers", LABEL, every(1, lambda t: t.long()), (UNKNOWN,), end="open"),
)  # fmt: skip
