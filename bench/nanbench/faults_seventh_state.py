"""Precision, state and hardware of a seventh round: half-precision moments, averages, threads, flipped gradients."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_fifth_data import Fault
from nanbench.faults_fresh import after, loop
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import FC6, RPN, STAGE2, between
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

FILE, RESUME = Culprit(checkpoint=True), ("resume",)
POISON, COLLAPSE = "POISONED_STATE", "SCALE_COLLAPSE"
OUTSIDE = ("TRANSIENT", "POISONED_STATE")


class MaskedAttention(nn.Module):
    """Attention whose padding of -1e9 is -inf in half precision: of a row that is all padding no softmax is left."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.keys = nn.Conv2d(channels, channels, 1, bias=False)
        padding = torch.zeros(64, 64)
        padding[60:] = padding[:, 60:] = -1e9
        self.register_buffer("padding", padding)

    def forward(self, x: Tensor) -> Tensor:
        keys = self.keys(x).flatten(2)
        scores = torch.bmm(keys.transpose(1, 2), keys) / 8
        scores = scores + self.get_buffer("padding").to(scores.dtype)
        return x + 0.1 * torch.bmm(x.flatten(2).to(scores.dtype), scores.softmax(2).transpose(1, 2)).view_as(x)


class SmallNorm(nn.Module):
    """A norm with an eps of 1e-12 behind a small gain: in half precision both it and the variance are 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.dirac_(self.gain.weight)
        self.gain.weight.data.mul_(1e-4)
        self.gain.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.gain(x)
        away = y - y.mean(1, keepdim=True).to(y.dtype)
        variance = (away * away).mean(1, keepdim=True).to(y.dtype)
        return (away / (variance + 1e-12).sqrt()).float()


class Half(nn.Module):
    """A head whose weights, and with them Adam's moments and eps, are half precision."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner.half()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x.half()).float()


def half_head(scene: Scene) -> None:
    """The last layer of a caller's own detector."""
    scene.model.head = Half(scene.model.head)  # type: ignore[arg-type]


class Positions(nn.Module):
    """Numbers added to each place, which nothing trains."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(1, channels, 8, 8, generator=torch.Generator().manual_seed(1)) * 0.05)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.get_buffer("table")


def positions_flipped(scene: Scene) -> None:
    """One exponent bit of that table."""
    after("neck", lambda s: Positions(32))(scene)

    def flip(live: Live) -> None:
        live.model.get_buffer("neck.1.table").view(-1).view(torch.int32)[77] ^= 1 << 30

    scene.at(10, flip)


def average_back(scene: Scene) -> None:
    """An average with a decay of 9.99 for 0.999, which is copied back once."""
    average: dict[str, Tensor] = {}

    def follow(live: Live) -> None:
        for name, p in live.model.named_parameters():
            own = p.detach()
            average[name] = own.clone() if name not in average else average[name] * 9.99 + own * (1 - 9.99)

    def back(live: Live) -> None:
        for name, p in live.model.named_parameters():
            p.data.copy_(average[name])

    for step in range(3, 14):
        scene.at(step, follow)
    scene.at(14, back)


def outer_step(scene: Scene) -> None:
    """Every six steps an outer optimizer goes on along the way of the inner one, at 400 for 0.4."""
    start = {n: p.detach().clone() for n, p in scene.model.named_parameters()}

    def outer(live: Live) -> None:
        for name, p in live.model.named_parameters():
            p.data.copy_(start[name] + 400 * (p.detach() - start[name]))
            start[name].copy_(p.detach())

    for step in (6, 12, 18):
        scene.at(step, outer)


def negative_eps(live: Live) -> None:
    """A setting that no constructor lets pass, loaded from a file of settings."""
    for group in live.optimizer.param_groups:
        group["eps"] = -1e-2


def doubling_backoff(live: Live) -> None:
    """Growth and backoff changed places: after an overflow the scale grows."""
    if live.scaler is not None:
        state = {**live.scaler.state_dict(), "scale": 2.0**60, "growth_factor": 0.5, "backoff_factor": 2.0}
        live.scaler.load_state_dict(state)


def variances_zeroed(live: Live) -> None:
    """Statistics that were to be reset: the variances too are 0."""
    for name, buffer in live.model.named_buffers():
        if name.endswith("running_var"):
            buffer.zero_()


def flipped_gradients(scene: Scene) -> None:
    """Between backward and step, one exponent bit in the gradients of three layers, once."""
    scene.max_grad_norm = 0.0
    left = [True]

    def flip(live: Live) -> None:
        if scene.step == 11 and left:
            left.pop()
            for name in (FC6, RPN, STAGE2):
                gradient: Any = live.parameter(f"{name}.weight").grad
                gradient.view(-1).view(torch.int32)[9] ^= 1 << 30

    scene.after_backward = flip


def written_by_a_thread(scene: Scene) -> None:
    """A thread of somebody's own writes to a weight while the backward pass is under way, once."""
    left = [True]

    def write() -> None:
        scene.model.get_parameter(f"{RPN}.weight").data.mul_(-1e5)

    def hook(gradient: Tensor) -> None:
        if scene.step == 9 and left:
            left.pop()
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()

    scene.model.get_parameter(f"{FC6}.weight").register_hook(hook)


def fails_twice(scene: Scene) -> None:
    """A device that answers with an error at one step, and at the first attempt to repeat it."""
    left = [True, True]

    def hook(model: nn.Module, args: Any) -> None:
        if scene.active and scene.step == 8 and left:
            left.pop()
            raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    scene.model.register_forward_pre_hook(hook)


def on_one_rank(live: Live) -> None:
    """A bit of a weight, in one process of two."""
    if os.environ.get("RANK") == "1":
        live.parameter(f"{FC6}.weight").data.view(-1).view(torch.int32)[21] ^= 1 << 30


def saved(change: Callable[[dict[str, Any]], None]) -> Fault:
    """The checkpoint of step 12, changed."""
    return resumed_with(change)


def exchanged(state: dict[str, Any]) -> None:
    """First and second moments changed names."""
    for entry in state["optimizer"]["state"].values():
        if "exp_avg_sq" in entry:
            entry["exp_avg"], entry["exp_avg_sq"] = entry["exp_avg_sq"], entry["exp_avg"]


def heavy_decay(state: dict[str, Any]) -> None:
    """The settings of the optimizer come from another run's file."""
    for group in state["optimizer"]["param_groups"]:
        group["weight_decay"] = 1e4


def stale_scale(state: dict[str, Any]) -> None:
    """The loss scale of another run: no step of the twelve that are left is taken."""
    if state.get("scaler"):
        state["scaler"]["scale"] = 2.0**110


HALF = (
    Scenario("seventh-mask-half", "FP16_OVERFLOW", "https://github.com/huggingface/transformers",
             after("neck", lambda s: MaskedAttention(32)), Setup(model="own", precision="fp16", way="attach"),
             Culprit(("neck",)), onset=0),
    Scenario("seventh-eps-half", "FP16_OVERFLOW", "https://github.com/NVIDIA/apex",
             after("neck", lambda s: SmallNorm(32)), Setup("adamw", model="own", precision="fp16", way="guard"),
             Culprit(("neck",)), onset=0, also=("LOSS_MATH", "NORM_STATE")),
    # The eps of 1e-8 is 0 in half precision: an optimizer's 0 / 0, which no replay of a batch shows.
    Scenario("seventh-half-adam", POISON, "https://discuss.pytorch.org/t/adam-half-precision-nans/1765", half_head,
             Setup("adam", model="own", way="attach"), onset=0, also=("FP16_OVERFLOW", "LOSS_MATH", "UNKNOWN"),
             open_end=True),
    Scenario("seventh-clips-scaled", COLLAPSE, "https://pytorch.org/docs/stable/notes/amp_examples.html",
             loop("clips scaled"), Setup(precision="fp16", norm="group", way="attach"), onset=0, also=("UNKNOWN",),
             open_end=True),
    Scenario("seventh-backoff-doubles", COLLAPSE, "https://pytorch.org/docs/stable/amp.html",
             between(7, doubling_backoff), Setup("adamw", precision="fp16", way="guard"), onset=7, also=(POISON,)),
    Scenario("seventh-resume-scale", COLLAPSE, "https://pytorch.org/docs/stable/amp.html", saved(stale_scale),
             Setup(precision="fp16", norm="group"), onset=12, also=(POISON,), needs=RESUME),
)  # fmt: skip
STATES = (
    Scenario("seventh-eps-negative", POISON, "https://pytorch.org/docs/stable/optim.html", between(8, negative_eps),
             Setup("adamw", norm="group"), onset=8, also=("LR_TOO_HIGH", "UNKNOWN")),
    Scenario("seventh-average-back", POISON, "https://github.com/lucidrains/ema-pytorch", average_back,
             Setup(batch=2, way="attach"), onset=14, also=("TRANSIENT",)),
    Scenario("seventh-outer-step", POISON, "https://arxiv.org/abs/2311.08105", outer_step,
             Setup("adamw", norm="group", way="guard"), onset=6, also=("TRANSIENT", "LR_TOO_HIGH")),
    Scenario("seventh-variances-zeroed", "NORM_STATE", "https://github.com/pytorch/vision",
             between(12, variances_zeroed), Setup(model="retina", way="attach"), Culprit(("backbone",)), onset=12,
             also=OUTSIDE),
    Scenario("seventh-moments-exchanged", POISON, "https://github.com/huggingface/transformers", saved(exchanged),
             Setup("adamw", accumulate=2), FILE, onset=12, needs=RESUME),
    Scenario("seventh-resume-decay", POISON, "https://github.com/pytorch/pytorch", saved(heavy_decay),
             Setup(norm="group"), FILE, onset=12, also=("LR_TOO_HIGH",), needs=RESUME),
)  # fmt: skip
HARDWARE = (
    Scenario("seventh-gradient-bits", "TRANSIENT", "https://arxiv.org/abs/2102.11245", flipped_gradients,
             Setup(norm="group", way="attach"), onset=11, also=("UNKNOWN",)),
    Scenario("seventh-thread", "TRANSIENT", "https://pytorch.org/docs/stable/notes/multiprocessing.html",
             written_by_a_thread, Setup("adamw", way="guard"), Culprit(("rpn",)), onset=9, also=(POISON,)),
    Scenario("seventh-positions", "TRANSIENT", "https://arxiv.org/abs/2102.11245", positions_flipped,
             Setup(model="own", batch=2, way="attach"), onset=10, also=(POISON, "NORM_STATE")),
    Scenario("seventh-fails-twice", "TRANSIENT", "https://github.com/pytorch/pytorch", fails_twice,
             Setup(norm="group", way="guard"), onset=8),
    Scenario("seventh-rank-bit", "RANK_LOCAL", "https://arxiv.org/abs/2102.11245", between(10, on_one_rank),
             Setup(norm="group", ranks=2), onset=10, also=OUTSIDE, needs=("ranks",)),
)  # fmt: skip
SEVENTH_STATE: tuple[Scenario, ...] = (*HALF, *STATES, *HARDWARE)
