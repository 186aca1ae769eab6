"""Losses, layers and loops written by hand; half precision; what happens once."""

from __future__ import annotations

from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import (
    LATE,
    NAN,
    built,
    loss_at,
    loss_is,
    options,
    sample,
    setting,
    times,
    together,
)
from anywhere.mainstream.faults_code import Loud, rival
from anywhere.mainstream.fourth import faults as code
from anywhere.mainstream.second.faults import output_once
from anywhere.mainstream.task import Run

MATHS, HALF, PIXEL, LABEL, NORM = "LOSS_MATH", "FP16_OVERFLOW", "DATA_PIXEL", "DATA_LABEL", "NORM_STATE"
POISON, ONCE, UNKNOWN, LR = "POISONED_STATE", "TRANSIENT", "UNKNOWN", "LR_TOO_HIGH"


def loud(run: Run) -> None:
    """The second layer of features works in units of its own."""
    features = run.model.get_submodule("features")
    features[2] = Loud(features[2])  # pyright: ignore[reportIndexIssue]


CASES_CODE: tuple[Case, ...] = (
    Case("columns", "an account of unknowns", MATHS, together(sample(0, times(0)), loss_is(code.known_only)),
         (PIXEL,), sample=True),
    Case("keywords", "silence under a norm without eps", NORM,
         together(sample(0, times(0)), built(code.loudness_without_eps)), (MATHS, PIXEL), sample=True),
    Case("keywords", "over the peak of silence", MATHS, together(sample(0, times(0)), loss_is(code.over_peak)),
         (PIXEL,), sample=True),
    # It is as unlikely as it can be told to be: no rate is too high.
    Case("keywords", "smoothed too far", MATHS, loss_is(code.smoothed_too_far), (UNKNOWN, LR), end="open"),
    Case("crf", "a forbidden move", MATHS, together(sample(1, code.breaks_rule), loss_is(code.forbidden)), (LABEL,),
         sample=True),
    Case("crf", "sums of exponents", MATHS, loss_is(code.sums_of_exponents), (LR,), end="stops"),
    Case("ranks", "no document fits", MATHS, together(sample(1, times(0)), loss_is(code.over_ideal)), (LABEL,),
         sample=True),
    Case("ranks", "documents all the same", MATHS,
         together(sample(0, code.one_document), loss_is(code.standard_fields)), (PIXEL,), sample=True),
    Case("muon", "a mask that hides all", MATHS, built(code.hides_itself), (UNKNOWN,), end="stops"),
    # Without a slope the direction is 0 / 0, at each step again.
    Case("muon", "closed gates and eps 0", POISON, together(built(code.closed_gates), options(eps=0.0)),
         (MATHS, UNKNOWN), end="open"),
    Case("wgan", "over the deviation of one point", MATHS,
         together(built(code.collapsed), rival("critic", code.by_deviation)), end="stops"),
    Case("wgan", "slopes rewarded", UNKNOWN, rival("critic", code.rewarded_slope), (MATHS, LR), end="open"),
    Case("wgan", "noise by hand", MATHS, rival("generator", code.noise_by_hand)),
    Case("grpo", "groups all alike", MATHS, lambda run: run.memory.update(better=code.over_deviation),
         (LABEL, PIXEL), end="open"),
    Case("grpo", "divergence by hand", MATHS, loss_is(code.divergence_by_hand), end="stops"),
    Case("fno", "loudness of what is cut off", MATHS, loss_is(code.loudness_of_modes), end="stops"),
    Case("fno", "a rod that ends cold", MATHS, sample(1, times(0)), (LABEL,), sample=True),
    Case("moco", "exponents of likeness", MATHS, loss_is(code.exponents_of_likeness), end="stops"),
    Case("moco", "an empty queue", MATHS, code.empty_queue, (POISON, NORM)),
    Case("raft", "infinitely far", MATHS, together(sample(2, times(0)), loss_is(code.of_depth)), (LABEL,),
         sample=True),
    Case("raft", "log of a guess", MATHS, loss_is(code.log_of_guess), end="stops"),
    Case("raft", "loud features", HALF, together(loud, setting("precision", "fp16")),
         parts=("features.2", "features.2.inner", "features")),
    Case("forces", "two atoms at one place", MATHS, code.plain_distance, (PIXEL,), sample=True),
    Case("forces", "a wall by hand", MATHS, together(sample(0, code.touch), loss_is(code.repulsion)), (PIXEL,),
         sample=True),
    Case("splat", "sure or not", MATHS, loss_is(code.sure_or_not), end="stops"),
    Case("splat", "no width from the start", POISON, built(code.no_width), (MATHS,), end="stops"),
    # Once
    Case("columns", "an output NaN once", ONCE, output_once("block.linear1", lambda y: y * NAN), (UNKNOWN,)),
    Case("raft", "an output infinite once", ONCE, output_once("look", lambda y: y / 0), (UNKNOWN,)),
    Case("fno", "loss NaN once", ONCE, loss_at(LATE, lambda loss: loss * NAN)),
    Case("ranks", "loss infinite once", ONCE, loss_at(LATE, lambda loss: loss / 0)),
    Case("forces", "loss x1e8 at a step", MATHS, loss_at(LATE, lambda loss: 1e8 * loss), (ONCE,)),
    # What was turned stays turned.
    Case("raft", "gradients turned from a step on", UNKNOWN, code.turned, (LR, MATHS), end="open"),
    Case("splat", "a bit of half precision", ONCE, code.stray("colour", LATE),
         (POISON,)),
)  # fmt: skip
