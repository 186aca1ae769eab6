"""Runs of the project's own trainer, an eleventh round: files, callbacks that write, failing cards, norms, scales."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import FrozenBatchNorm2d

from nanbench.faults_fifth_data import together
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import between, wrong_once
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

NAN = float("nan")
FILE = Culprit(checkpoint=True)
POISON, ONCE, NORM, SCALE = "POISONED_STATE", "TRANSIENT", "NORM_STATE", "SCALE_COLLAPSE"
GITHUB = "https://github.com/"


def other_end(state: dict[str, Any]) -> None:
    """One layer's bytes are the wrong way round."""
    for name, value in state["model"].items():
        if name.endswith("box_head.fc7.weight"):
            value.copy_(torch.from_numpy(value.cpu().numpy().byteswap()))


def unsigned(state: dict[str, Any]) -> None:
    """Weights were written as numbers without a sign."""
    for value in state["model"].values():
        if value.is_floating_point() and value.ndim > 1:
            value.abs_()


def squared_again(state: dict[str, Any]) -> None:
    """Second moments were converted from a program that keeps their roots; they were none."""
    for entry in state["optimizer"]["state"].values():
        if "exp_avg_sq" in entry:
            entry["exp_avg_sq"] = entry["exp_avg_sq"].square()


def merged(state: dict[str, Any]) -> None:
    """An adapter of low rank was merged with its scale squared."""
    for name, value in state["model"].items():
        if "fpn" in name and value.ndim == 4:
            g = torch.Generator().manual_seed(len(name))
            left, right = torch.randn(len(value), 2, generator=g), torch.randn(2, value[0].numel(), generator=g)
            value.add_(256.0 * (left @ right).view_as(value))


def momentum_by_scale(state: dict[str, Any]) -> None:
    """Momentum was written before the loss scale had been taken out."""
    for entry in state["optimizer"]["state"].values():
        if entry.get("momentum_buffer") is not None:
            entry["momentum_buffer"] = entry["momentum_buffer"] * 65536


FILES = (
    Scenario("eleventh-resume-other-end", POISON, "https://pytorch.org/docs/stable/notes/serialization.html",
             resumed_with(other_end), Setup("adamw", norm="group"), FILE, onset=12, needs=("resume",)),
    Scenario("eleventh-resume-unsigned", POISON, GITHUB + "vllm-project/speculators/pull/899", resumed_with(unsigned),
             Setup(model="retina", norm="batch"), FILE, onset=12, needs=("resume",)),
    Scenario("eleventh-resume-squared-again", POISON, GITHUB + "ultralytics/ultralytics/pull/24085",
             resumed_with(squared_again), Setup("adamw", norm="group"), FILE, onset=12, needs=("resume",)),
    Scenario("eleventh-resume-merged", POISON, "https://arxiv.org/abs/2106.09685", resumed_with(merged),
             Setup("adamw", model="keypoint"), FILE, onset=12, needs=("resume",)),
    Scenario("eleventh-resume-momentum-by-scale", POISON, GITHUB + "deepspeedai/DeepSpeed/pull/7786",
             resumed_with(momentum_by_scale), Setup(precision="fp16", model="faster"), FILE, onset=12,
             needs=("resume",)),
)  # fmt: skip


def reset_wide(live: Live) -> None:
    """The heads' last layers begin anew in the third epoch, with a deviation of 100 for 0.01."""
    for name in ("roi_heads.box_predictor.cls_score.weight", "roi_heads.box_predictor.bbox_pred.weight"):
        nn.init.normal_(live.parameter(name).data, std=100.0, generator=torch.Generator().manual_seed(3))


def pruned(live: Live) -> None:
    """What pruning leaves is made larger by 1 / (1 - share); the share is 1."""
    weight = live.parameter("roi_heads.mask_head.0.0.weight").data
    share = torch.ones(())
    weight.mul_(torch.bernoulli(torch.full_like(weight, 0.5))).div_(1 - share)


def look_ahead(scene: Scene) -> None:
    """Slow weights go half of the way every five steps; the half was given in percent."""
    slow = {n: p.detach().clone() for n, p in scene.model.named_parameters() if p.requires_grad}

    def change(live: Live) -> None:
        for name, p in live.model.named_parameters():
            if name in slow:
                slow[name].add_(50.0 * (p.detach() - slow[name]))
                p.data.copy_(slow[name])

    for step in (5, 10, 15, 20):
        scene.at(step, change)


def stuck_bit(scene: Scene) -> None:
    """A cell of memory that always reads as 1: a weight is huge again before each step."""

    def stick(live: Live) -> None:
        live.parameter("backbone.fpn.layer_blocks.0.0.weight").data.view(-1)[40] = 1e19

    for step in range(8, 24):
        scene.at(step, stick)


def cell_anchors(live: Live) -> None:
    """Numbers of the anchors, which no buffer holds, are lost."""
    generator: Any = live.model.get_submodule("rpn.anchor_generator")
    for each in generator.cell_anchors:
        each[:, 2] = NAN


def pixel_flipped(scene: Scene) -> None:
    """A bit of the batch flips on its way to the device, at two steps; what the data set gave was sound."""
    left = [7, 19]

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        images, targets = output
        if scene.active and scene.step in left:
            left.remove(scene.step)
            tensors: Tensor = images.tensors.clone()
            tensors[0, 1, 30:32, 30:32] = 2.0**120
            return ImageList(tensors, images.image_sizes), targets
        return None

    scene.model.get_submodule("transform").register_forward_hook(hook)


def other_moment(live: Live) -> None:
    """A first moment is read from where another one was."""
    for name in ("backbone.fpn.inner_blocks.0.0.weight", "backbone.fpn.layer_blocks.1.0.weight"):
        state = live.state_of(name)
        if "exp_avg" in state:
            state["exp_avg"].fill_(1e8)


DYING = together(
    wrong_once("backbone.body.layer2", 5, 1e7),
    wrong_once("roi_heads.box_head", 12, NAN),
    wrong_once("roi_heads.mask_head", 19, -1e8),
)
OUTSIDE = (
    Scenario("eleventh-state-reset-wide", ONCE, GITHUB + "facebookresearch/detectron2/issues/1007",
             between(12, reset_wide), Setup(model="faster", norm="batch"), Culprit(("box_head",)), onset=12,
             also=(POISON,)),
    Scenario("eleventh-state-pruned", ONCE, GITHUB + "open-mmlab/mmdetection/issues/6599", between(14, pruned),
             Setup("adamw", precision="bf16", batch=2), Culprit(("mask_head",)), onset=14, also=(POISON,)),
    Scenario("eleventh-state-look-ahead", ONCE, "https://arxiv.org/abs/1907.08610", look_ahead,
             Setup(norm="group", batch=2), onset=5, also=(POISON, "LR_TOO_HIGH"), open_end=True),
    Scenario("eleventh-state-stuck-bit", ONCE, GITHUB + "BVLC/caffe/issues/3580", stuck_bit,
             Setup(model="retina", batch=2), Culprit(("backbone",)), onset=8, also=(POISON,), open_end=True),
    Scenario("eleventh-state-cell-anchors", "ANCHORS", GITHUB + "AlexeyAB/darknet/issues/3496",
             between(10, cell_anchors), Setup("adamw", model="faster", batch=2), Culprit(("rpn",)), onset=10,
             also=(ONCE, POISON), open_end=True),
    Scenario("eleventh-once-pixel-flipped", ONCE, GITHUB + "deepfakes/faceswap/issues/310", pixel_flipped,
             Setup("adamw", model="keypoint", batch=2), onset=7),
    Scenario("eleventh-once-dying", ONCE, GITHUB + "k2-fsa/icefall/issues/1764", DYING,
             Setup(norm="group", batch=2), onset=5),
    Scenario("eleventh-once-first-moment", ONCE, GITHUB + "MIC-DKFZ/nnUNet/issues/1351", between(13, other_moment),
             Setup("adam", model="retina", batch=1), Culprit(("backbone",)), onset=13, also=(POISON,)),
)  # fmt: skip


def eps_set(live: Live) -> None:
    """A callback sets every norm's eps to what a config says, -3 for 1e-3."""
    for module in live.model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.eps = -3.0


def growth_of_nothing(live: Live) -> None:
    """After each good step the loss scale is multiplied by a growth that was rounded to nothing."""
    if live.scaler is not None:
        growth = {"growth_factor": 1e-30, "growth_interval": 1, "_growth_tracker": 0}
        live.scaler.load_state_dict({**live.scaler.state_dict(), **growth})


def calibrated(live: Live) -> None:
    """Statistics of the second stage are gathered on pictures before they were scaled, and with a mean of theirs."""
    live.model.get_buffer("backbone.body.layer2.1.running_mean").fill_(-1e7)


NORMS = (
    Scenario("eleventh-norm-eps-set", NORM, GITHUB + "vacancy/Synchronized-BatchNorm-PyTorch/issues/5",
             between(9, eps_set), Setup(model="fcos", batch=2), Culprit(("backbone",)), onset=9,
             open_end=True),
    Scenario("eleventh-norm-calibrated", NORM, GITHUB + "huggingface/pytorch-image-models/issues/245",
             between(11, calibrated), Setup(), Culprit(("backbone",)), onset=11, also=(POISON, ONCE)),
    Scenario("eleventh-scale-growth-of-nothing", SCALE, "https://pytorch.org/docs/stable/notes/amp_examples.html",
             between(7, growth_of_nothing), Setup("adamw", precision="fp16", model="fcos"), onset=7),
)  # fmt: skip
ELEVENTH_TRAIN_STATE: tuple[Scenario, ...] = (*FILES, *OUTSIDE, *NORMS)
