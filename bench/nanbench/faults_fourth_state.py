"""State of another program: moments of another model, norms that are negative, one number flipped, files half right."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_state import between, resumed
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

NAN, INF = float("nan"), float("inf")
FILE, RESUME = Culprit(checkpoint=True), ("resume",)
POISON, NORM = "POISONED_STATE", "NORM_STATE"
# Written between two steps by other code: a poisoned state and a change outside the step are one thing.
OUTSIDE = ("TRANSIENT",)


def moments(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[Live], None]:
    """One kind of the optimizer's state, as another program left it."""

    def act(live: Live) -> None:
        for state in live.optimizer.state.values():
            if isinstance(state.get(key), Tensor):
                state[key].copy_(change(state[key]))

    return act


def of_another_model(value: Tensor) -> Tensor:
    """Momentum of a model whose losses were sums."""
    g = torch.Generator().manual_seed(value.numel())
    return torch.randn(value.shape, generator=g) * 1e4


def norms_in_evaluation(scene: Scene) -> None:
    """BatchNorm is frozen by evaluation mode, and one variance becomes negative."""

    def freeze(live: Live) -> None:
        for module in live.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eval()

    def overwrite(live: Live) -> None:
        live.model.get_buffer("backbone.body.layer2.1.running_var")[3:5] = -0.5

    scene.at(0, freeze)
    scene.at(9, overwrite)


def wild_momentum(scene: Scene) -> None:
    """A momentum above 1 for the statistics: they swing, wider each time."""
    for module in scene.model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 3.0


def flipped_mean(live: Live) -> None:
    """A bit of a number that is no tensor: the mean of the transform."""
    transform: Any = live.model.transform
    transform.image_mean = [0.45, 1e33, 0.45]


def uninitialised(live: Live) -> None:
    """A head whose weights nobody initialised: what the memory held."""
    for name in ("weight", "bias"):
        value = live.parameter(f"roi_heads.box_predictor.cls_score.{name}").data
        g = torch.Generator().manual_seed(3)
        value.copy_(torch.randn(value.shape, generator=g) * 10.0 ** (30 * torch.rand(value.shape, generator=g)))


def tiny_scale(live: Live) -> None:
    """The scaler's state of a run that had collapsed."""
    live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": 1e-33})


def infinite_norm(live: Live) -> None:
    """The scale of one channel of a GroupNorm."""
    live.parameter("backbone.body.layer3.1.weight").data[5] = INF


def saved(prefix: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    """Weights of the checkpoint, changed."""

    def act(state: dict[str, Any]) -> None:
        for name, value in state["model"].items():
            if name.startswith(prefix):
                value.copy_(change(value))

    return act


def saved_moment(key: str, change: Callable[[Tensor], Tensor]) -> Callable[[dict[str, Any]], None]:
    """Optimizer state of the checkpoint, changed."""

    def act(state: dict[str, Any]) -> None:
        for entry in state["optimizer"]["state"].values():
            if isinstance(entry.get(key), Tensor):
                entry[key] = change(entry[key])

    return act


def first_row(value: Tensor) -> Tensor:
    """The background's own."""
    value = value.clone()
    value[0] += 1e5
    return value


FOURTH_STATE: tuple[Scenario, ...] = (
    Scenario("fourth-norm-evaluation", NORM, "fiery#20", norms_in_evaluation, Setup(norm="batch", way="guard"),
             onset=9, also=(*OUTSIDE, POISON)),
    Scenario("fourth-norm-momentum", NORM, "pytorch/pytorch#4741", wild_momentum, Setup(norm="batch"), onset=2,
             verdict=True),
    Scenario("fourth-momentum-other", POISON, "facebookresearch/maskrcnn-benchmark#464",
             between(10, moments("momentum_buffer", of_another_model)), Setup(way="guard"), onset=10),
    Scenario("fourth-second-moment-lost", POISON, "ultralytics/ultralytics#17282",
             between(11, moments("exp_avg_sq", lambda v: v * 0)), Setup("adam", model="faster", way="attach"),
             onset=11),
    Scenario("fourth-adagrad-minus", POISON, "NVIDIA/apex#240", between(10, moments("sum", lambda v: -v)),
             Setup("adagrad", way="guard"), onset=10),
    Scenario("fourth-mean-flipped", "DATA_PIXEL", "AlexeyAB/darknet#5547", between(10, flipped_mean),
             Setup(model="retina", way="attach"), onset=10, also=("UNKNOWN",), open_end=True),
    Scenario("fourth-uninitialised", POISON, "pytorch/pytorch#40497", between(10, uninitialised),
             Setup(model="faster", way="guard"), Culprit(("box_head",)), onset=10, also=OUTSIDE),
    Scenario("fourth-scale-tiny", "SCALE_COLLAPSE", "NVIDIA/apex#240", between(8, tiny_scale),
             Setup(precision="fp16", way="attach"), onset=8, also=(POISON,)),
    Scenario("fourth-norm-weight-inf", POISON, "valeoai/fiery R-E5", between(12, infinite_norm),
             Setup(norm="group", way="attach"), onset=12, also=(*OUTSIDE, NORM)),
    Scenario("fourth-resume-bias", POISON, "Rikorose/DeepFilterNet#30",
             resumed(saved("roi_heads.box_predictor.cls_score.bias", first_row)), Setup(model="faster"), FILE,
             onset=12, needs=RESUME),
    Scenario("fourth-resume-norm-scale", POISON, "Rikorose/DeepFilterNet#30",
             resumed(saved("backbone.body.layer2.1.weight", lambda v: v * 1e5)), Setup(), FILE, onset=12,
             also=(NORM,), needs=RESUME),
    Scenario("fourth-resume-moment-minus", POISON, "ultralytics/ultralytics#17282",
             resumed(saved_moment("exp_avg_sq", lambda v: -v)), Setup("adamw"), FILE, onset=12, needs=RESUME),
)  # fmt: skip
