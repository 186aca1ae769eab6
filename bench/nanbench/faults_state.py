"""Faults of the state: norms, checkpoints, optimizer, memory and hardware, kernels; and other processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import tiny_model
from nanbench.tiny_parts import NORM_KINDS

NAN, INF = math.nan, math.inf
FC6, LOGITS = "roi_heads.box_head.fc6", "roi_heads.mask_predictor.mask_fcn_logits"
STAGE2, STAGE3 = "backbone.body.layer2.0", "backbone.body.layer3.0"
PRED = "roi_heads.box_predictor.bbox_pred"
RPN = "rpn.head.conv.0.0"


def norms(**values: float) -> Callable[[nn.Module], None]:
    """First entries of every norm's statistics, and eps."""

    def change(model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), Tensor):
                module.eps = values.get("eps", module.eps)  # type: ignore[assignment]
                module.get_buffer("running_var")[0] = values["variance"]

    return change


def at_load(change: Callable[[nn.Module], None]) -> Callable[[Scene], None]:
    """The model is that way from the start."""
    return lambda scene: change(scene.model)


def between(step: int, change: Callable[[Live], None]) -> Callable[[Scene], None]:
    """It happens between two steps."""
    return lambda scene: scene.at(step, change)


def identity_norms(model: nn.Module) -> None:
    """No statistics were loaded, and the random net is steep enough to blow up."""
    for module in model.modules():
        if isinstance(getattr(module, "running_var", None), Tensor):
            module.get_buffer("running_var").fill_(1.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("backbone.body") and p.ndim == 4:
                p.mul_(40)


def unclipped_identity(scene: Scene) -> None:
    """`identity_norms` without clipping, as torchvision's own script has none."""
    identity_norms(scene.model)
    scene.max_grad_norm = 0.0


def variance_of(layer: str, value: float) -> Callable[[Live], None]:
    """One norm's variance is overwritten."""

    def change(live: Live) -> None:
        live.model.get_buffer(f"{layer}.running_var")[:2] = value

    return change


def weight(name: str, value: float, row: int = 7) -> Callable[[Live], None]:
    """One value of a weight is overwritten."""

    def change(live: Live) -> None:
        live.parameter(name).data.view(-1)[row] = value

    return change


def in_state(name: str, key: str, value: float) -> Callable[[Live], None]:
    """One value of an optimizer's buffer is overwritten, where it has that buffer."""

    def change(live: Live) -> None:
        buffer = live.state_of(name).get(key)
        if buffer is not None:
            buffer.view(-1)[3] = value

    return change


def nan_rate(live: Live) -> None:
    """The scheduler returned NaN for one group, once."""
    live.optimizer.param_groups[0]["lr"] = NAN


def resumed(change: Callable[[dict[str, Any]], None]) -> Callable[[Scene], None]:
    """The run is interrupted after step 12, and its newest checkpoint changed before it goes on."""

    def fault(scene: Scene) -> None:
        scene.on_resume = change

    return fault


def saved_weight(name: str, index: Any, value: float) -> Callable[[dict[str, Any]], None]:
    """A weight in the checkpoint."""

    def change(state: dict[str, Any]) -> None:
        state["model"][name][index] = value

    return change


def saved_moments(state: dict[str, Any]) -> None:
    """Adam's second moments were saved in half precision."""
    for entry in state["optimizer"]["state"].values():
        if "exp_avg_sq" in entry:
            entry["exp_avg_sq"] = entry["exp_avg_sq"].half().float()


def saved_momentum(state: dict[str, Any]) -> None:
    """A momentum in the checkpoint is NaN."""
    entry = next(iter(state["optimizer"]["state"].values()))
    entry["momentum_buffer"].view(-1)[3] = NAN


ADAM = Setup(optimizer="adamw")
ACC = Setup(accumulate=4)
FP16 = Setup(precision="fp16")
BATCH = Setup(norm="batch")
RESUME = ("resume",)

NORMS = (
    Scenario("norm-eps-0", "NORM_STATE", "pytorch/vision mask_rcnn.py eps 0.0", at_load(norms(variance=0.0, eps=0.0)),
             Setup(), Culprit(("backbone",)), onset=0, verdict=True),
    Scenario("norm-tiny-variance", "NORM_STATE", "nan_cases R-E2", at_load(norms(variance=1e-14, eps=0.0)), ADAM,
             Culprit(("backbone",)), onset=0, verdict=True),
    Scenario("norm-negative", "NORM_STATE", "nan_cases R-E3", at_load(norms(variance=-2e-5)), ACC,
             Culprit(("backbone",)), onset=0, verdict=True),
    Scenario("norm-identity", "NORM_STATE", "nan_cases R-E1", unclipped_identity, Setup(),
             Culprit(("backbone",)), onset=0, verdict=True),
    Scenario("norm-overwritten", "NORM_STATE", "fiery#20", between(10, variance_of("backbone.body.layer2.1", -0.1)),
             Setup(), Culprit(("backbone",), "backbone.body.layer2.1"), onset=10),
    Scenario("norm-overwritten-trainable", "NORM_STATE", "fiery#20",
             between(14, variance_of("backbone.body.layer3.1", -1.0)), BATCH,
             # BatchNorm in train mode does not read its statistics: only evaluation dies, the guard must still see it.
             Culprit(("backbone",), "backbone.body.layer3.1"), onset=14),
)  # fmt: skip

POISON = (
    Scenario("resume-nan-weight", "POISONED_STATE", "Rikorose/DeepFilterNet#30",
             resumed(saved_weight(f"{STAGE2}.weight", (0, 0, 0, 0), NAN)), Setup(),
             Culprit(checkpoint=True), onset=12, needs=RESUME),
    Scenario("resume-nan-background-row", "POISONED_STATE", "ultralytics/ultralytics#23327",
             resumed(saved_weight(f"{PRED}.weight", (0, 0), NAN)), ACC, Culprit(checkpoint=True), onset=12,
             needs=RESUME),
    Scenario("resume-half-moments", "POISONED_STATE", "ultralytics/ultralytics#17282", resumed(saved_moments), ADAM,
             Culprit(), onset=12, needs=RESUME),
    Scenario("resume-nan-momentum", "POISONED_STATE", "facebookresearch/maskrcnn-benchmark#464",
             resumed(saved_momentum), Setup(), Culprit(checkpoint=True), onset=12, needs=RESUME),
    Scenario("momentum-nan", "POISONED_STATE", "NVIDIA-NeMo/RL#3544",
             between(9, in_state(f"{STAGE2}.weight", "momentum_buffer", NAN)), Setup(),
             Culprit(("backbone",), STAGE2), onset=9),
    Scenario("second-moment-inf", "POISONED_STATE", "NVIDIA/apex#240",
             between(15, in_state(f"{FC6}.weight", "exp_avg_sq", INF)), ADAM, Culprit(("box_head",), FC6), onset=15),
    Scenario("weight-nan-late", "POISONED_STATE", "eriklindernoren/PyTorch-YOLOv3#89",
             between(17, weight(f"{LOGITS}.weight", NAN)), FP16, Culprit(("mask_head",), LOGITS), onset=17,
             # Written between two steps by other code: a poisoned state and a change outside the step are one thing.
             also=("TRANSIENT",)),
    Scenario("weight-nan-background-row", "POISONED_STATE", "huggingface/transformers#46002",
             between(11, weight(f"{PRED}.weight", NAN, 0)), BATCH, Culprit(("box_head",), PRED), onset=11,
             also=("TRANSIENT",)),
    Scenario("lr-nan", "POISONED_STATE", "ultralytics/yolov5#292", between(13, nan_rate), Setup(),
             Culprit(("backbone",)), onset=13),
)  # fmt: skip

TRANSIENT = (
    Scenario("bit-flip-fc6", "TRANSIENT", "AlexeyAB/darknet#5547", between(6, weight(f"{FC6}.weight", 6.8e36)),
             Setup(), Culprit(("box_head",), FC6), onset=6),
    Scenario("bit-flip-stage3", "TRANSIENT", "microsoft/dion#76", between(16, weight(f"{STAGE3}.weight", -3.4e38)),
             ADAM, Culprit(("backbone",), STAGE3), onset=16),
    Scenario("bit-flip-rpn", "TRANSIENT", "microsoft/dion#76", between(11, weight(f"{RPN}.weight", 1.2e30)),
             Setup(accumulate=4), Culprit(("rpn",), RPN), onset=11),
)  # fmt: skip


def wrong_once(module: str, step: int, value: float) -> Callable[[Scene], None]:
    """One module returns garbage once."""

    def fault(scene: Scene) -> None:
        left = [True]

        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor | None:
            if scene.active and scene.step == step and left:
                left.pop()
                return output * value
            return None

        scene.model.get_submodule(module).register_forward_hook(hook)

    return fault


def wrong_gradient(name: str, step: int) -> Callable[[Scene], None]:
    """A kernel reads unwritten memory in the backward pass, once."""

    def fault(scene: Scene) -> None:
        left = [True]

        def hook(gradient: Tensor) -> Tensor | None:
            if scene.step == step and left:
                left.pop()
                return torch.full_like(gradient, NAN)
            return None

        scene.model.get_parameter(name).register_hook(hook)

    return fault


ONCE = (
    Scenario("kernel-once", "TRANSIENT", "pytorch/FBGEMM#5754", wrong_once("backbone.body.layer3", 7, NAN), BATCH,
             onset=7),
    Scenario("kernel-once-inf", "TRANSIENT", "NVIDIA/apex#1322", wrong_once("roi_heads.mask_head", 18, INF),
             Setup(precision="bf16"), onset=18),
    Scenario("gradient-once", "TRANSIENT", "pytorch/FBGEMM#5754", wrong_gradient(f"{FC6}.weight", 12), Setup(),
             onset=12),
)  # fmt: skip


def anchors(sizes: Any, ratios: Any = None) -> Callable[[Scene], None]:
    """The model is built with these anchors."""

    def fault(scene: Scene) -> None:
        scene.model = tiny_model(scene.seed, NORM_KINDS[scene.setup.norm], sizes, ratios)

    return fault


ANCHORS = (
    Scenario("anchors-1-pixel", "ANCHORS", "facebookresearch/maskrcnn-benchmark#1005", anchors(((1,), (1,))), Setup(),
             Culprit(("rpn",)), onset=0, verdict=True),
    Scenario("anchors-1-pixel-adamw", "ANCHORS", "open-mmlab/mmdetection#10041", anchors(((1,), (1,))),
             Setup("adamw", accumulate=4), Culprit(("rpn",)), onset=0, verdict=True),
    Scenario("anchors-half-pixel", "ANCHORS", "SHI-Labs/Decoupled-Classification-Refinement#7",
             anchors(((0.5,), (0.5,))), Setup(norm="group"), Culprit(("rpn",)), onset=0, verdict=True),
)  # fmt: skip

STATE = (*NORMS, *POISON, *TRANSIENT, *ONCE, *ANCHORS)
