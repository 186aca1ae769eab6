"""Runs of the project's own trainer, a twelfth round: schedules, optimizers, files, what lies outside, two at once."""

from __future__ import annotations

import math
from typing import Any

import torch

from nanbench.faults_eleventh_train import by_step
from nanbench.faults_fifth_data import drawn, together
from nanbench.faults_forms import entry, picture
from nanbench.faults_lr import HEADS, undivided
from nanbench.faults_once import gradient_once
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import between, wrong_once
from nanbench.faults_tenth_train import unclipped
from nanbench.faults_twelfth_train_data import local_contrast, merged, of_tile
from nanbench.faults_wild import options, set_by_hook, setting, times
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

LR, ACC, POISON, ONCE, NORM = "LR_TOO_HIGH", "ACCUMULATION", "POISONED_STATE", "TRANSIENT", "NORM_STATE"
NAN, INF = float("nan"), float("inf")
FILE = Culprit(checkpoint=True)
TORCH = "https://pytorch.org/docs/stable/"


def plateau_up(step: int) -> float | None:
    """Where the loss rests, the rate is multiplied by 10: 0.1 was meant."""
    return 10.0 ** ((step - 4) // 4) if step >= 8 else None


def past_its_end(step: int) -> float | None:
    """A polynomial whose power has the wrong sign: (1 - t)^-5 of a t that comes close to 1."""
    return (1 - step / 24) ** -5


def layers_upside_down(scene: Scene) -> None:
    """The rate falls from the first layers to the last, by a decay that was turned upside down."""
    set_by_hook(4, 24, times(400.0, ("backbone",)))(scene)
    set_by_hook(4, 24, times(4.0, ("rpn",)))(scene)


RATES = (
    Scenario("twelfth-rate-plateau-up", LR, TORCH + "generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html",
             unclipped(by_step(plateau_up)), Setup(norm="group", batch=2), onset=12),
    Scenario("twelfth-rate-past-its-end", LR, TORCH + "generated/torch.optim.lr_scheduler.PolynomialLR.html",
             unclipped(by_step(past_its_end)), Setup("adamw", model="retina", batch=2), onset=4),
    Scenario("twelfth-rate-layers-upside-down", LR, "https://arxiv.org/abs/2106.08254", unclipped(layers_upside_down),
             Setup(model="faster", norm="group", batch=2), Culprit(("backbone",)), onset=4),
    Scenario("twelfth-rate-rprop-steps", LR, TORCH + "generated/torch.optim.Rprop.html",
             unclipped(options(etas=(0.9, 8.0))), Setup("rprop", model="faster", batch=4), onset=1),
    Scenario("twelfth-rate-mask-late", LR, TORCH + "optim.html",
             unclipped(set_by_hook(15, 24, times(1000.0, ("mask_head",)))), Setup("adamw", precision="bf16", batch=2),
             Culprit(("mask_head",)), onset=15),
    Scenario("twelfth-rate-momentum-in-percent", LR, TORCH + "generated/torch.optim.SGD.html",
             unclipped(set_by_hook(9, 24, setting("momentum", 1.8))), Setup(batch=2), onset=9),
    # Minus a rate is a way up; no code is made for it, and too long a step is what can be seen.
    Scenario("twelfth-rate-minus", LR, TORCH + "generated/torch.optim.lr_scheduler.LambdaLR.html",
             unclipped(by_step(lambda step: -20.0 if step >= 10 else None)), Setup(norm="group", batch=2), onset=10,
             also=("UNKNOWN", POISON), open_end=True),
    Scenario("twelfth-undivided-points", ACC, TORCH + "notes/amp_examples.html", undivided(8, 0.3),
             Setup(accumulate=4, model="keypoint", norm="group"), onset=8, verdict=True, needs=("undivided",)),
)  # fmt: skip


def dequantised(state: dict[str, Any]) -> None:
    """First moments were kept in eight bits, and read with the scale of another block."""
    for n, held in enumerate(state["optimizer"]["state"].values()):
        if "exp_avg" in held and n % 3 == 0:
            held["exp_avg"] = held["exp_avg"] * 1e6


def steps_lost(state: dict[str, Any]) -> None:
    """Counts of steps went through a table that has no number for them."""
    for held in state["optimizer"]["state"].values():
        if "step" in held:
            held["step"] = torch.full_like(torch.as_tensor(held["step"], dtype=torch.float32), NAN)


def momentum_of_others(state: dict[str, Any]) -> None:
    """Momentum was written as a sum over 1000 processes, and with the sign of a difference."""
    for held in state["optimizer"]["state"].values():
        if held.get("momentum_buffer") is not None:
            held["momentum_buffer"] = held["momentum_buffer"] * -1e5


def logarithms(state: dict[str, Any]) -> None:
    """Variances of all norms were saved as logarithms."""
    for name, value in state["model"].items():
        if name.endswith("running_var"):
            value.copy_(value.clamp(min=1e-6).log())


def extrapolated(state: dict[str, Any]) -> None:
    """Two checkpoints were averaged with weights of 400 and -399."""
    for name, value in state["model"].items():
        if name.startswith("roi_heads") and value.is_floating_point() and value.ndim > 1:
            g = torch.Generator().manual_seed(len(name))
            value.add_(400 * 0.05 * torch.randn(value.shape, generator=g))


FILES = (
    Scenario("twelfth-resume-dequantised", POISON, "https://arxiv.org/abs/2110.02861", resumed_with(dequantised),
             Setup("adamw", batch=2), FILE, onset=12, needs=("resume",)),
    Scenario("twelfth-resume-steps-lost", POISON, TORCH + "generated/torch.optim.AdamW.html", resumed_with(steps_lost),
             Setup("adamw"), FILE, onset=12, needs=("resume",)),
    Scenario("twelfth-resume-momentum-of-others", POISON, TORCH + "generated/torch.optim.SGD.html",
             resumed_with(momentum_of_others), Setup(norm="group", batch=2), FILE, onset=12, needs=("resume",)),
    Scenario("twelfth-resume-logarithms", POISON, TORCH + "generated/torch.nn.BatchNorm2d.html",
             resumed_with(logarithms), Setup(batch=2), FILE, onset=12, also=(NORM,), needs=("resume",)),
    Scenario("twelfth-resume-extrapolated", POISON, "https://arxiv.org/abs/2203.05482", resumed_with(extrapolated),
             Setup("adamw", norm="group", batch=2), FILE, onset=12, needs=("resume",)),
)  # fmt: skip


def summed_ranks(live: Live) -> None:
    """Weights of eight processes are added up where their mean was meant."""
    for p in live.model.parameters():
        if p.requires_grad:
            p.data.mul_(8)


def unwritten(live: Live) -> None:
    """A layer lies in memory that another program has written to."""
    live.parameter("backbone.fpn.layer_blocks.0.0.weight").data.view(-1)[:64] = 3e38


def mean_of_infinity(live: Live) -> None:
    """One statistic of the second stage is infinite."""
    live.model.get_buffer("backbone.body.layer2.1.running_mean")[1] = INF


def held_bias(live: Live) -> None:
    """A prior is set from counts, of a class that was counted 0 times: a bias of minus infinity, made finite."""
    live.parameter("roi_heads.box_predictor.cls_score.bias").data[2] = -1e30


def held_down(live: Live) -> None:
    """A callback sets the loss scale to next to nothing before each step."""
    if live.scaler is not None:
        live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": 1e-30})


def scale_by_callback(scene: Scene) -> None:
    """`held_down`, from step 6 on."""
    for step in range(6, 24):
        scene.at(step, held_down)


OUTSIDE = (
    Scenario("twelfth-state-summed-ranks", ONCE, TORCH + "distributed.html", between(11, summed_ranks),
             Setup("adamw", norm="group", batch=2), onset=11, also=(POISON,)),
    Scenario("twelfth-state-unwritten", ONCE, TORCH + "generated/torch.empty.html", between(8, unwritten),
             Setup(model="faster", norm="group", batch=2), Culprit(("backbone",)), onset=8, also=(POISON,)),
    Scenario("twelfth-norm-mean-of-infinity", NORM, TORCH + "generated/torch.nn.BatchNorm2d.html",
             between(13, mean_of_infinity), Setup(norm="batch", batch=2), Culprit(("backbone",)), onset=13,
             also=(POISON, ONCE)),
    Scenario("twelfth-state-held-bias", ONCE, "https://arxiv.org/abs/1708.02002", between(10, held_bias),
             Setup(batch=2), Culprit(("box_head",)), onset=10, also=(POISON,)),
    Scenario("twelfth-once-pooled", ONCE, TORCH + "notes/randomness.html", wrong_once("roi_heads.box_roi_pool", 9, NAN),
             Setup("adamw", batch=2), onset=9),
    Scenario("twelfth-once-gradient-of-norm", ONCE, TORCH + "notes/randomness.html",
             gradient_once("rpn.head.bbox_pred.weight", 14, INF), Setup(norm="group", batch=2), Culprit(("rpn",)),
             onset=14),
    Scenario("twelfth-scale-by-callback", "SCALE_COLLAPSE", TORCH + "amp.html", scale_by_callback,
             Setup("adamw", precision="fp16", batch=2), onset=6, also=(POISON,), open_end=True),
)  # fmt: skip


def slow_wave(step: int) -> float | None:
    """Heads' rate from step 15 on, up to 600 times."""
    return 600 * math.sin(math.pi * (step - 14) / 18) if step >= 15 else None


TWO = (
    Scenario("twelfth-two-contrast-and-heads", "DATA_PIXEL", TORCH + "optim.html",
             unclipped(drawn({0: picture(local_contrast)}), by_step(slow_wave, HEADS)), Setup(norm="group", batch=2),
             together=("DATA_PIXEL", LR)),
    Scenario("twelfth-two-file-and-labels", POISON, TORCH + "generated/torch.optim.AdamW.html",
             together(resumed_with(steps_lost), drawn({0: entry("labels", merged)}, lambda step: step >= 12)),
             Setup("adamw"), together=(POISON, "DATA_LABEL"), needs=("resume",)),
    Scenario("twelfth-two-glitch-and-tile", ONCE, "https://arxiv.org/abs/2202.06934",
             together(wrong_once("backbone.body.layer3", 3, NAN),
                      drawn({0: entry("boxes", of_tile)}, lambda step: step >= 6)),
             Setup("adamw", norm="group", batch=2), together=(ONCE, "DATA_BOX"), onset=3),
)  # fmt: skip
TWELFTH_TRAIN: tuple[Scenario, ...] = (*RATES, *FILES, *OUTSIDE, *TWO)
