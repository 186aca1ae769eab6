"""Weights, moments, buffers: from a checkpoint, under way, as they were made; gradients once; what lies outside."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, LATE, NAN, at_step, bit, built, gradient, in_file, moments, put, weight
from anywhere.mainstream.task import Run

POISON, NORM, ONCE, LR, UNKNOWN = "POISONED_STATE", "NORM_STATE", "TRANSIENT", "LR_TOO_HIGH", "UNKNOWN"
PIXEL, LABEL, MATHS = "DATA_PIXEL", "DATA_LABEL", "LOSS_MATH"


def nan_rate(run: Run) -> None:
    """A schedule divides by 0 at a step."""
    run.factors.update({LATE: NAN, LATE + 1: 1.0})


def slow_lost(run: Run) -> None:
    """The slow critic, which the script holds beside its model, becomes NaN."""
    with torch.no_grad():
        for p in run.memory["slow"].parameters():
            p.mul_(NAN)


def pace_of(value: float) -> Any:
    """A weights' step is another."""
    return lambda run: run.model.get_parameter("1.pace").data.fill_(value)


CASES_STATE: tuple[Case, ...] = (
    # From a checkpoint: nothing older is kept in memory.
    Case("sam", "file: NaN weight", POISON, in_file("model", "3.conv1.weight", put(NAN, 0, 0, 1, 1)), end="stops"),
    Case("clip", "file: NaN temperature", POISON, in_file("model", "logit_scale", lambda v: v * NAN), end="stops"),
    Case("yolo", "file: NaN running mean", POISON, in_file("model", "1.running_mean", put(NAN, 0)), (NORM,),
         end="stops"),
    Case("mri", "file: second moments minus", POISON, in_file("optimizer", "exp_avg_sq", lambda v: -v)),
    Case("qat", "file: NaN range", POISON, in_file("model", "1.low", lambda v: v * NAN), (NORM,), end="stops"),
    Case("dpo", "file: NaN in the reference", POISON, in_file("model", "reference.h.0.mlp.0.weight", put(NAN, 0, 0)),
         end="stops"),
    Case("vocoder", "file: first moments x1e6", POISON, in_file("optimizer", "exp_avg", lambda v: v * 1e6)),
    Case("deepar", "file: moments of another run", POISON, f.of_another),
    Case("edm", "file: NaN second moments", POISON, in_file("optimizer", "exp_avg_sq", put(NAN))),
    Case("sage", "file: sums minus", POISON, in_file("optimizer", "sum", lambda v: -v)),
    Case("kernel", "file: first moments x1e6", POISON, in_file("optimizer", "exp_avg", lambda v: v * 1e6)),
    # Under way: written from outside, by a bit or by a slip.
    Case("sam", "a bit of a weight", ONCE, at_step(LATE, bit("7.weight")), (POISON,)),
    Case("dpo", "a bit of a weight", ONCE, at_step(LATE, bit("policy.h.0.mlp.0.weight")), (POISON,)),
    Case("ode", "a bit of a weight", ONCE, at_step(LATE, bit("net.2.weight")), (POISON,)),
    Case("sac", "a bit of a weight", ONCE, at_step(LATE, bit("critic.one.0.weight")), (POISON,)),
    Case("lbfgs", "a bit of a weight", ONCE, at_step(LATE, bit("2.weight")), (POISON,)),
    Case("poincare", "a NaN node", ONCE, at_step(LATE, weight("places.weight", NAN)), (POISON,)),
    Case("kernel", "NaN weight", ONCE, at_step(LATE, weight("net.0.weight", NAN)), (POISON,), end="open"),
    Case("sage", "infinite weight", ONCE, at_step(LATE, weight("lin.weight", INF)), (POISON,)),
    Case("qat", "a step of 1e6", ONCE, at_step(LATE, pace_of(1e6)), (POISON,)),
    Case("yolo", "NaN running variance", NORM, at_step(LATE, weight("4.running_var", NAN)), (POISON, ONCE)),
    Case("qat", "an infinite range", NORM, at_step(LATE, lambda run: run.model.get_buffer("3.high").fill_(INF)),  # pyright: ignore
         (POISON, ONCE)),
    Case("ode", "squares minus", POISON, at_step(LATE, moments("square_avg", lambda v: -v)), (ONCE,)),
    Case("ssm", "NaN moment", POISON, at_step(LATE, moments("exp_avg", put(NAN), "A_log")), (ONCE,)),
    Case("clip", "first moments x1e6", POISON, at_step(LATE, moments("exp_avg", lambda v: v * 1e6)), (ONCE,)),
    Case("vocoder", "NaN rate", POISON, nan_rate),
    # The targets that a script makes by it are NaN, whatever is skipped.
    Case("sac", "NaN in the slow critic", LABEL, at_step(LATE, slow_lost), (PIXEL, POISON, ONCE, UNKNOWN), end="open"),
    # As it was made.
    Case("deepar", "NaN from the start", POISON, built(f.filled("head.weight", NAN)), end="stops"),
    Case("mri", "weights of 1e20 from the start", POISON, built(f.scaled("clean.1.2.weight", 1e21)), (LR, MATHS),
         end="stops"),
    # Gradients, once.
    Case("deepar", "infinite gradient once", ONCE, gradient("head.weight", INF), (UNKNOWN,)),
    Case("sam", "NaN gradient once", ONCE, gradient("7.weight", NAN), (UNKNOWN,)),
    Case("sac", "NaN gradient once", ONCE, gradient("critic.two.0.weight", NAN), (UNKNOWN,)),
)  # fmt: skip
