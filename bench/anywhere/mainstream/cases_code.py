"""Losses and layers written by hand, half precision, norms."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream import faults_code as code
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import (
    LATE,
    built,
    every,
    instead,
    loss_at,
    loss_is,
    options,
    put,
    sample,
    setting,
    times,
    together,
)
from anywhere.mainstream.task import Run

MATHS, HALF, NORM, PIXEL, LABEL = "LOSS_MATH", "FP16_OVERFLOW", "NORM_STATE", "DATA_PIXEL", "DATA_LABEL"
POISON, ONCE = "POISONED_STATE", "TRANSIENT"


def dead_channel(run: Run) -> None:
    """A filter of zeros before a norm without eps: 0 / 0."""
    model: Any = run.model
    model[0].weight.data[2] = 0.0
    model[0].bias.data[2] = 0.0
    model[1].eps = 0.0


def runaway(run: Run) -> None:
    """Running statistics move by 5 times the difference: they leave for infinity, and training does not show it."""
    model: Any = run.model
    model[1].momentum = model[5].momentum = 5.0


CASES_CODE: tuple[Case, ...] = (
    Case("cnn", "log of softmax", MATHS, loss_is(code.log_of_softmax), end="stops"),
    Case("customers", "two logs", MATHS, loss_is(code.two_logs), end="stops"),
    Case("siamese", "root of a distance", MATHS, together(code.twice, loss_is(code.root_of_distance)), sample=True),
    Case("siamese", "angle", MATHS, together(code.twice, loss_is(code.angle)), sample=True),
    Case("unet", "share of an empty mask", MATHS, together(sample(1, times(0)), loss_is(code.share_of_mask)),
         (LABEL, "DATA_MASK"), sample=True),
    Case("unet", "log of dice", MATHS, loss_is(code.log_dice), end="stops"),
    Case("houses", "x / std of a constant", MATHS,
         together(every(0, put(1.0, 3)), lambda run: run.model.__setitem__(0, code.Standard())), (PIXEL,), end="stops"),  # pyright: ignore
    Case("cnn", "a black picture by its std", MATHS, together(sample(0, times(0)), code.first(code.Whitened())),
         (PIXEL,), sample=True),
    Case("simclr", "a black picture's length", MATHS,
         together(sample(0, times(0)), built(code.without_bias), loss_is(code.unit_by_hand)), (PIXEL,), sample=True),
    Case("simclr", "temperature 0", MATHS, instead(code.annealed), end="stops"),
    Case("diffusion", "noise of 0", MATHS, together(code.from_nothing, loss_is(code.by_signal))),
    Case("distill", "kl by hand", MATHS, loss_is(code.kl_by_hand), end="stops"),
    Case("films", "root of no error", MATHS, together(built(code.average_film), loss_is(code.root_of_error)),
         end="stops"),
    Case("graphs", "mean of no message", MATHS, code.other_net(code.MeanOfMessages), end="stops"),
    Case("graphs", "mean of no node", MATHS, together(code.other_net(code.MeanOfNodes), code.no_nodes),
         (PIXEL, "UNKNOWN")),
    Case("texts", "an empty text", MATHS, sample(1, lambda n: n * 0), (PIXEL, LABEL), sample=True),
    Case("forecast", "error over 0", MATHS, together(sample(1, put(0.0)), loss_is(code.unclamped)), (LABEL,),
         sample=True),
    Case("forecast", "log of less than 0", MATHS, loss_is(code.log_error), end="stops"),
    Case("policy", "entropy by hand", MATHS, loss_is(code.entropy_by_hand), end="stops"),
    Case("policy", "all rewards alike", MATHS, together(loss_is(code.standard_rewards), setting("batch", 4)),
         end="stops"),
    Case("gan", "log of the critic", MATHS, code.rival("critic", code.log_of_critic), end="stops"),
    Case("gan", "penalty at black", MATHS, together(sample(0, times(0)), code.rival("critic", code.sure)), (PIXEL,),
         sample=True),
    Case("customers", "no yes in the batch", MATHS, together(loss_is(code.of_positives), setting("batch", 4)),
         (LABEL,), end="stops"),
    Case("vae", "exponent overflows", MATHS, loss_is(code.growing_exponent), ("LR_TOO_HIGH",), end="stops"),
    Case("cnn", "loss x1000 at a step", MATHS, loss_at(LATE, lambda loss: 1e3 * loss), (ONCE,)),
    Case("gpt", "loss x1000 at a step", MATHS, loss_at(LATE, lambda loss: 1e3 * loss), (ONCE,)),
    Case("vae", "loss x1e6 at a step", MATHS, loss_at(LATE, lambda loss: 1e6 * loss), (ONCE,)),
    Case("houses", "loss x1e4 from a step on", MATHS, code.from_step(LATE, 1e4)),
    Case("diffusion", "loss NaN once", ONCE, loss_at(LATE, lambda loss: loss * float("nan"))),
    Case("customers", "loss infinite once", ONCE, loss_at(LATE, lambda loss: loss / 0)),
    # Half precision
    Case("vit", "sharp attention", HALF, code.sharp_attention, parts=("blocks.1.attn", "blocks.1")),
    Case("cnn", "loud layer", HALF, together(code.loud_layer, setting("precision", "fp16")), parts=("4", "4.inner")),
    Case("vit", "eps in half", HALF, loss_is(code.half_eps), (MATHS,), end="stops"),
    Case("unet", "sums in half", HALF, together(setting("precision", "fp16"), loss_is(code.summed_in_half)), (MATHS,),
         end="stops"),
    # Norms
    Case("cnn", "a dead channel and eps 0", NORM, dead_channel, (MATHS, "UNKNOWN"), end="open"),
    Case("cnn", "norm's momentum 5", NORM, runaway, end="open"),
    Case("houses", "a last batch of one", NORM,
         together(setting("drop_last", False), lambda run: run.rows.append(run.rows[0])), (MATHS, "UNKNOWN"),
         end="open"),
    Case("houses", "unscaled and no norm", PIXEL,
         together(lambda run: run.model.__setitem__(0, torch.nn.Identity()), options(lr=1.0)), ("LR_TOO_HIGH",),  # pyright: ignore
         end="stops"),
)  # fmt: skip
