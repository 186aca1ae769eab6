"""Losses, layers and loops written by hand; half precision; norms."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream.case import Case
from anywhere.mainstream.faults import LATE, every, instead, loss_at, loss_is, put, sample, setting, times, together
from anywhere.mainstream.faults_code import Loud, from_step
from anywhere.mainstream.second import faults as code
from anywhere.mainstream.task import Run

MATHS, HALF, NORM, PIXEL, LABEL = "LOSS_MATH", "FP16_OVERFLOW", "NORM_STATE", "DATA_PIXEL", "DATA_LABEL"
POISON, ONCE, UNKNOWN, LR, SUM = "POISONED_STATE", "TRANSIENT", "UNKNOWN", "LR_TOO_HIGH", "ACCUMULATION"
NAN = float("nan")


def loud(run: Run) -> None:
    """The middle convolution works in units of its own."""
    model: Any = run.model
    model[2] = Loud(model[2])


def loud_router(run: Run) -> None:
    """The router's logits do not fit half precision."""
    model: Any = run.model
    model.router = torch.nn.Sequential(model.router, _Units(), torch.nn.Linear(4, 4))


class _Units(torch.nn.Module):
    """Other units."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1e5 * x


def dead_map(run: Run) -> None:
    """A filter of zeros before a norm without eps: 0 / 0."""
    model: Any = run.model
    model[0].weight.data[2] = 0.0
    model[0].bias.data[2] = 0.0
    model[1].eps = 0.0


CASES_CODE: tuple[Case, ...] = (
    Case("tagger", "mean over no tag", MATHS, together(sample(1, lambda t: t * 0 - 100), loss_is(code.mean_of_tags)),
         (LABEL,), sample=True),
    Case("arcface", "distance to a class of one", MATHS, loss_is(code.to_class_mean), end="stops"),
    Case("arcface", "sine by hand", MATHS, loss_is(code.sine_by_hand), end="stops"),
    Case("mixture", "densities round to 0", MATHS, loss_is(code.mixture_by_hand), end="stops"),
    Case("mixture", "spreads by ReLU", MATHS, loss_is(code.spread_by_relu), end="stops"),
    Case("flow", "scales without tanh", MATHS, code.unbounded, (LR,), end="stops"),
    Case("flow", "logdet of 0", MATHS, code.singular(torch.zeros(2, 2)), end="stops"),
    Case("flow", "logdet of less than 0", MATHS, code.singular(torch.tensor([[0.0, 1.0], [1.0, 0.0]])), end="stops"),
    Case("flow", "wrong sign", UNKNOWN, loss_is(code.wrong_sign), (MATHS, LR), end="open"),
    Case("tags", "focal with gamma 0.5", MATHS, loss_is(code.focal_half), end="stops"),
    Case("tags", "shares wanted, logits given", MATHS, loss_is(code.shares_wanted), (UNKNOWN,), end="open"),
    Case("survival", "no event in the batch", MATHS, together(loss_is(code.over_events), setting("batch", 4),
                  every(2, lambda e: e * (torch.rand(()) < 0.4))),
         (LABEL,), end="stops"),
    Case("survival", "hazards by hand", MATHS, loss_is(code.hazards), end="stops"),
    Case("depth", "masked by a product", MATHS, loss_is(code.masked_by_product), (LABEL,), end="stops"),
    Case("depth", "a picture without depth", MATHS, together(sample(1, times(0)), loss_is(code.each_silog)), (LABEL,),
         sample=True),
    Case("keypoints", "softmax by hand", MATHS, loss_is(code.softmax_by_hand), end="stops"),
    Case("keypoints", "over a size of 0", MATHS,
         together(sample(1, lambda p: p[:1].expand(2, 2).clone()), loss_is(code.over_size)), (LABEL,), sample=True),
    Case("byol", "deviation of a pruned unit", MATHS, loss_is(code.with_spread), end="stops"),
    Case("vqvae", "perplexity by hand", MATHS, loss_is(code.perplexity), end="stops"),
    Case("nerf", "a way of no length", MATHS, together(sample(0, lambda r: r * torch.tensor([1.0, 1.0, 0.0, 0.0])),
         loss_is(code.unit_way)), (PIXEL,), sample=True),
    Case("nerf", "density by exp", MATHS, loss_is(code.dense_by_exp), (LR,), end="stops"),
    Case("pinn", "root at 0", MATHS, together(sample(0, times(0)), loss_is(code.root_of_place)), (PIXEL,),
         sample=True, end="stops"),
    Case("ppo", "deviation of one", MATHS, together(loss_is(code.by_group), setting("batch", 8)), end="stops"),
    Case("experts", "router's entropy by hand", MATHS, loss_is(code.router_entropy), end="stops"),
    Case("points", "a cloud of one point", MATHS, code.balled, (PIXEL,), sample=True),
    Case("points", "a cloud of nothing", MATHS, sample(0, lambda p: p[:0]), (PIXEL, LABEL), sample=True),
    Case("lora", "an empty text", MATHS, sample(1, lambda n: n * 0), (PIXEL, LABEL), sample=True),
    Case("seq2seq", "a row of padding", MATHS, sample(0, lambda d: d * 0), (PIXEL, LABEL), sample=True),
    Case("mae", "a white picture over its deviation", MATHS, together(sample(0, lambda x: x * 0 + 1),
         loss_is(code.no_eps)), (PIXEL,), sample=True),
    Case("vqvae", "loss x1e6 at a step", MATHS, loss_at(LATE, lambda loss: 1e6 * loss), (ONCE,)),
    Case("quantiles", "loss x1e4 at a step", MATHS, loss_at(LATE, lambda loss: 1e4 * loss), (ONCE,)),
    Case("quantiles", "loss x1e4 from a step on", MATHS, from_step(LATE, 1e4)),
    Case("depth", "loss NaN once", ONCE, loss_at(LATE, lambda loss: loss * NAN)),
    Case("nerf", "loss infinite once", ONCE, loss_at(LATE, lambda loss: loss / 0)),
    # One output, once
    Case("superres", "an output x1e5 once", ONCE, code.output_once("last", lambda y: 1e5 * y), (UNKNOWN,)),
    Case("keypoints", "an output NaN once", ONCE, code.output_once("3", lambda y: y * NAN), (UNKNOWN,)),
    Case("tagger", "an output x1e5 once", ONCE, code.output_once("head", lambda y: 1e5 * y), (UNKNOWN,)),
    # It hits the copy that plays: the batch that is trained on holds NaN.
    Case("ppo", "an output NaN once", ONCE, code.output_once("body.0", lambda y: y * NAN), (UNKNOWN, LABEL, PIXEL),
         end="open"),
    Case("maml", "an output x1e5 once", ONCE, code.output_once("4", lambda y: 1e5 * y), (UNKNOWN,)),
    Case("byol", "an output x1e5 once", ONCE, code.output_once("predict.0", lambda y: 1e5 * y), (UNKNOWN,)),
    # What a loop does
    Case("chars", "state with its graph", UNKNOWN, code.not_detached, (MATHS, SUM), end="open"),
    Case("chars", "state of NaN", PIXEL, code.state_of_nan, (ONCE, POISON, UNKNOWN)),
    Case("vqvae", "written in place", UNKNOWN, loss_is(code.in_place), (MATHS,), end="open"),
    Case("arcface", "a person without a weight", LABEL, together(sample(1, lambda y: y * 0 + 9), loss_is(code.named)),
         (UNKNOWN,), sample=True, end="open"),
    Case("points", "a hook that makes gradients long", LR, code.hooked("each.0.weight", 1e4), (UNKNOWN, ONCE, MATHS)),
    Case("nerf", "a hook that makes gradients NaN", UNKNOWN, code.hooked("net.2.weight", NAN), (MATHS,),
         end="stops"),
    # Half precision
    Case("depth", "loud layer", HALF, loud, parts=("2", "2.inner")),
    Case("mae", "sharp attention", HALF, together(code.sharp, setting("precision", "fp16")),
         parts=("encoder.attn", "encoder", "encoder.attn.qkv")),
    Case("experts", "loud router", HALF, together(loud_router, setting("precision", "fp16")),
         parts=("router", "router.0", "router.1", "router.2")),
    # https://github.com/open-mmlab/mmpretrain/issues/1632 and others: half precision in a loss.
    Case("keypoints", "squares in half", HALF, together(setting("precision", "fp16"), instead(code.squares_in_half)),
         (MATHS,), end="stops"),
    Case("tags", "eps in half", HALF, loss_is(code.eps_in_half), (MATHS,), end="stops"),
    Case("lora", "-1e9 in half", HALF, code.half_mask, (UNKNOWN, MATHS), end="open"),
    # Norms
    Case("keypoints", "a dead map and eps 0", NORM, dead_map, (MATHS, UNKNOWN), end="open"),
    Case("byol", "a last batch of one", NORM,
         together(setting("drop_last", False), lambda run: run.rows.append(run.rows[0])), (MATHS, UNKNOWN),
         end="open"),
    Case("quantiles", "fields in thousands", PIXEL, lambda run: setattr(run, "rows", [
         (put(0.0)(1e4 * x + 3e4), y) for x, y in run.rows]), (LR,), end="stops"),
)  # fmt: skip
