"""Weights, moments, statistics: from a checkpoint, under way, as they were made; and gradients once."""

from __future__ import annotations

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, LATE, NAN, at_step, bit, built, gradient, in_file, moments, put, weight
from anywhere.mainstream.task import Run

POISON, NORM, ONCE, LR, UNKNOWN = "POISONED_STATE", "NORM_STATE", "TRANSIENT", "LR_TOO_HIGH", "UNKNOWN"


def nan_rate(run: Run) -> None:
    """A schedule divides by 0 at a step."""
    run.factors.update({LATE: NAN, LATE + 1: 1.0})


CASES_STATE: tuple[Case, ...] = (
    # From a checkpoint: nothing older is kept in memory.
    Case("cnn", "file: NaN weight", POISON, in_file("model", "0.weight", put(NAN, 0, 0, 0, 0)), end="stops"),
    Case("cnn", "file: running variance 0", NORM, in_file("model", "1.running_var", lambda v: v * 0 - 1), (POISON,),
         end="open"),
    Case("unet", "file: NaN running mean", POISON, in_file("model", "down1.1.running_mean", put(NAN, 0)), (NORM,),
         end="stops"),
    Case("gpt", "file: second moments 0", POISON, in_file("optimizer", "exp_avg_sq", lambda v: v * 0)),
    Case("unet", "file: first moments x1e6", POISON, in_file("optimizer", "exp_avg", lambda v: v * 1e6)),
    Case("diffusion", "file: moments of another run", POISON, f.of_another),
    Case("vit", "file: one layer x1e4", POISON, in_file("model", "blocks.0.mlp.0.weight", lambda v: v * 1e4),
         ("FP16_OVERFLOW",), end="stops"),
    Case("distill", "file: momentum x1e6", POISON, in_file("optimizer", "momentum_buffer", lambda v: v * 1e6)),
    Case("houses", "file: NaN moment", POISON, in_file("optimizer", "exp_avg", lambda v: v * NAN)),
    Case("vae", "file: second moments minus", POISON, in_file("optimizer", "exp_avg_sq", lambda v: -v)),
    Case("forecast", "file: infinite weight", POISON, in_file("model", "fc.weight", put(INF, 0, 3)), end="stops"),
    # Under way: written from outside, by a bit or by a slip.
    Case("cnn", "a bit of a weight", ONCE, at_step(LATE, bit("0.weight")), (POISON,)),
    Case("gpt", "a bit of a weight", ONCE, at_step(LATE, bit("h.1.mlp.0.weight")), (POISON,)),
    Case("forecast", "a bit of a weight", ONCE, at_step(LATE, bit("lstm.weight_hh_l0")), (POISON,)),
    Case("vae", "a bit of a weight", ONCE, at_step(LATE, bit("logvar.weight")), (POISON,)),
    Case("films", "a bit of a weight", ONCE, at_step(LATE, bit("film.weight")), (POISON,)),
    Case("dqn", "a bit of a weight", ONCE, at_step(LATE, bit("4.weight")), (POISON,)),
    Case("graphs", "NaN weight", ONCE, at_step(LATE, weight("second.weight", NAN)), (POISON,)),
    Case("simclr", "NaN weight", ONCE, at_step(LATE, weight("3.bias", NAN)), (POISON,)),
    Case("gan", "NaN weight", ONCE, at_step(LATE, weight("generator.0.weight", NAN)), (POISON,)),
    # The distribution that the model makes of it raises, which ends the loop as ever.
    Case("policy", "infinite weight", ONCE, at_step(LATE, weight("policy.weight", INF)), (POISON,), end="open"),
    Case("siamese", "NaN moment", POISON, at_step(LATE, moments("exp_avg", put(NAN), "1.weight")), (ONCE,)),
    Case("ctc", "second moments 0", POISON, at_step(LATE, moments("exp_avg_sq", lambda v: v * 0)), (ONCE,)),
    Case("customers", "first moments x1e6", POISON, at_step(LATE, moments("exp_avg", lambda v: v * 1e6)), (ONCE,)),
    Case("texts", "squares 0", POISON, at_step(LATE, moments("square_avg", lambda v: v * 0)), (ONCE,)),
    Case("films", "sums minus", POISON, at_step(LATE, moments("sum", lambda v: -v)), (ONCE,)),
    Case("cnn", "momentum x1e5", POISON, at_step(LATE, moments("momentum_buffer", lambda v: v * 1e5)), (ONCE,)),
    Case("unet", "NaN running variance", NORM, at_step(LATE, weight("down2.1.running_var", NAN)), (POISON, ONCE)),
    Case("cnn", "running mean 1e30", NORM, at_step(LATE, weight("1.running_mean", 1e30)), (POISON, ONCE)),
    Case("two_tasks", "NaN rate", POISON, nan_rate),
    Case("two_tasks", "a log-variance of -200", ONCE, at_step(LATE, weight("log_vars", -200.0)), (POISON, "LOSS_MATH")),
    # As it was made.
    Case("customers", "NaN from the start", POISON, built(f.filled("2.weight", NAN)), end="stops"),
    Case("forecast", "weights of 1e20", POISON, built(f.scaled("fc.weight", 1e21)), (LR, "LOSS_MATH"), end="stops"),
    # Gradients, once.
    Case("cnn", "NaN gradient once", ONCE, gradient("4.weight", NAN), (UNKNOWN,)),
    Case("vae", "infinite gradient once", ONCE, gradient("fc3.weight", INF), (UNKNOWN,)),
    Case("dqn", "gradient 1e30 once", ONCE, gradient("0.weight", 1e30), (UNKNOWN,)),
    Case("gan", "NaN gradient once", ONCE, gradient("critic.1.weight", NAN), (UNKNOWN,)),
    Case("ctc", "gradients by a bit", ONCE, gradient("conv.weight", torch.finfo(torch.float32).max / 4), (UNKNOWN,)),
)  # fmt: skip
