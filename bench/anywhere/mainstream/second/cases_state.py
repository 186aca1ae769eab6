"""Weights, moments, statistics: from a checkpoint, under way, as they were made; and gradients once."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import INF, LATE, NAN, at_step, bit, built, gradient, in_file, moments, put, weight
from anywhere.mainstream.task import Run

POISON, NORM, ONCE, LR, UNKNOWN = "POISONED_STATE", "NORM_STATE", "TRANSIENT", "LR_TOO_HIGH", "UNKNOWN"


def slow_net_lost(run: Run) -> None:
    """A weight of the slow copy, which no optimizer holds, becomes NaN."""
    run.at(LATE, lambda run: run.model.get_parameter("slow.1.weight").data.mul_(NAN))  # pyright: ignore


def nan_rate(run: Run) -> None:
    """A schedule divides by 0 at a step."""
    run.factors.update({LATE: NAN, LATE + 1: 1.0})


def nan_state(run: Run) -> None:
    """A word's vector is NaN from some step on."""
    table: Any = run.model.get_parameter("inner.weight")
    with torch.no_grad():
        table[4] = NAN


CASES_STATE: tuple[Case, ...] = (
    # From a checkpoint: nothing older is kept in memory.
    Case("lora", "file: NaN in an adapter", POISON, in_file("model", "blocks.0.attn.qkv.lora_b", put(NAN, 0, 0)),
         end="stops"),
    Case("mae", "file: second moments minus", POISON, in_file("optimizer", "exp_avg_sq", lambda v: -v)),
    Case("keypoints", "file: running variance minus", NORM, in_file("model", "1.running_var", lambda v: -v - 1),
         (POISON,), end="open"),
    Case("arcface", "file: momentum x1e6", POISON, in_file("optimizer", "momentum_buffer", lambda v: v * 1e6)),
    Case("vqvae", "file: infinite code", POISON, in_file("model", "codes.weight", put(INF, 3, 0)), end="stops"),
    Case("flow", "file: first moments x1e6", POISON, in_file("optimizer", "exp_avg", lambda v: v * 1e6)),
    Case("byol", "file: NaN in the slow net", POISON, in_file("model", "slow.1.weight", put(NAN, 0, 0)), end="stops"),
    Case("depth", "file: one layer x1e5", POISON, in_file("model", "2.weight", lambda v: v * 1e5),
         ("FP16_OVERFLOW",), end="stops"),
    Case("tags", "file: NaN running mean", POISON, in_file("model", "1.running_mean", put(NAN, 0)), (NORM,),
         end="stops"),
    Case("survival", "file: steps x1e9", POISON, in_file("optimizer", "acc_delta", lambda v: v * 1e18)),
    Case("nerf", "file: NaN squares", POISON, in_file("optimizer", "square_avg", lambda v: v * NAN)),
    Case("pinn", "file: moments of another run", POISON, f.of_another),
    Case("tagger", "file: NaN second moments", POISON, in_file("optimizer", "exp_avg_sq", put(NAN))),
    # Under way: written from outside, by a bit or by a slip.
    Case("seq2seq", "a bit of a weight", ONCE, at_step(LATE, bit("out.weight")), (POISON,)),
    Case("superres", "a bit of a weight", ONCE, at_step(LATE, bit("last.weight")), (POISON,)),
    Case("experts", "a bit of a weight", ONCE, at_step(LATE, bit("experts.1.0.weight")), (POISON,)),
    Case("pinn", "a bit of a weight", ONCE, at_step(LATE, bit("2.weight")), (POISON,)),
    Case("tags", "a bit of a weight", ONCE, at_step(LATE, bit("4.weight")), (POISON,)),
    Case("nerf", "NaN weight", ONCE, at_step(LATE, weight("net.2.weight", NAN)), (POISON,)),
    Case("maml", "infinite weight", ONCE, at_step(LATE, weight("2.weight", INF)), (POISON,)),
    Case("skipgram", "a NaN word", ONCE, at_step(LATE, nan_state), (POISON,)),
    Case("bags", "an infinite film", ONCE, at_step(LATE, weight("seen.weight", INF)), (POISON,)),
    Case("byol", "NaN in the slow net", ONCE, slow_net_lost, (POISON, "LOSS_MATH"), end="open"),
    Case("points", "NaN running variance", NORM, at_step(LATE, weight("norm.running_var", NAN)), (POISON, ONCE)),
    Case("tags", "running mean -1e30", NORM, at_step(LATE, weight("1.running_mean", -1e30)), (POISON, ONCE)),
    Case("nerf", "squares minus", POISON, at_step(LATE, moments("square_avg", lambda v: -v)), (ONCE,)),
    Case("tagger", "first moments x1e6", POISON, at_step(LATE, moments("exp_avg", lambda v: v * 1e6)), (ONCE,)),
    Case("tags", "NaN product of momenta", POISON, at_step(LATE, moments("mu_product", lambda v: v * NAN)), (ONCE,)),
    Case("survival", "NaN in steps", POISON, at_step(LATE, moments("acc_delta", put(NAN), "0.weight")), (ONCE,)),
    Case("quantiles", "NaN in the rate of ASGD", POISON, at_step(LATE, moments("eta", lambda v: v * NAN)), (ONCE,)),
    Case("byol", "NaN momentum", POISON, at_step(LATE, moments("momentum_buffer", put(NAN), "online.1.weight")),
         (ONCE,)),
    Case("mixture", "second moments minus", POISON, at_step(LATE, moments("exp_avg_sq", lambda v: -v)), (ONCE,)),
    Case("experts", "largest second moments 0", POISON, at_step(LATE, lambda run: [
         moments(k, lambda v: v * 0)(run) for k in ("max_exp_avg_sq", "exp_avg_sq")] and None), (ONCE,)),
    Case("keypoints", "NaN rate", POISON, nan_rate),
    # As it was made.
    Case("mixture", "NaN from the start", POISON, built(f.filled("head.weight", NAN)), end="stops"),
    Case("superres", "weights of 1e20 from the start", POISON, built(f.scaled("last.weight", 1e21)),
         (LR, "LOSS_MATH"), end="stops"),
    # Gradients, once.
    Case("seq2seq", "NaN gradient once", ONCE, gradient("out.weight", NAN), (UNKNOWN,)),
    Case("lora", "infinite gradient once", ONCE, gradient("head.weight", INF), (UNKNOWN,)),
    Case("points", "gradient 1e20 once", ONCE, gradient("head.weight", 1e20), (UNKNOWN,)),
)  # fmt: skip
