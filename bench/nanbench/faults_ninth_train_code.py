"""Runs of the project's own trainer, a ninth round: half precision, loss code, files, norms, anchors, glitches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.image_list import ImageList

from nanbench.faults_code import Losses, losses
from nanbench.faults_eighth_train_more import seen_by
from nanbench.faults_fifth_data import drawn
from nanbench.faults_fresh import after
from nanbench.faults_once import levels
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import between
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

NAN, INF = float("nan"), float("inf")
ONE, FILE = Culprit(image=True), Culprit(checkpoint=True)
HALF, MATHS, POISON, ONCE, NORM = "FP16_OVERFLOW", "LOSS_MATH", "POISONED_STATE", "TRANSIENT", "NORM_STATE"
GITHUB = "https://github.com/"


class Shifted(nn.Module):
    """Adds what is left and right of a place to it, again and again, so that sums of large numbers run up."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, bias=False)
        nn.init.dirac_(self.mix.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for shift in (1, 2, 4, 8, 1, 2, 4, 8, 1, 2):
            y = y + 2 * F.relu(self.mix(y.roll(shift, 3)))
        return x + y / 3.0**10


class Standardised(nn.Module):
    """A convolution whose weights are brought to mean 0 and deviation 1 in the type of what comes in."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, channels, 1, 1) * 1e-5)

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight.to(x.dtype)
        w = w - w.mean((1, 2, 3), keepdim=True)
        w = w / (w.square().mean((1, 2, 3), keepdim=True) + 1e-12).sqrt()
        return x + 0.1 * F.conv2d(x, w)


PRECISION = (
    Scenario("ninth-half-shifted-sums", HALF, GITHUB + "ZJULearning/resa/issues/48",
             after("backbone.body.layer2", lambda s: Shifted(16)), Setup("adamw", precision="fp16", model="fcos"),
             Culprit(("backbone",)), onset=0),
    Scenario("ninth-half-standardised", HALF, GITHUB + "open-mmlab/mmdetection/issues/3292",
             after("roi_heads.mask_head", lambda s: Standardised(16)), Setup(precision="fp16", batch=2),
             Culprit(("mask_head",)), onset=0, also=(MATHS, NORM)),
)  # fmt: skip


def complete_iou(scene: Scene) -> None:
    """The angle of a box's sides in a complete IoU: of one without width and height it is the angle of 0 / 0."""
    seen = seen_by(scene, "head.regression_head.bbox_reg")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        left, top, right, bottom = seen[0].relu().permute(1, 0, 2, 3).flatten(1).float()
        angle = torch.atan((left + right) / (top + bottom))
        return {**terms, "loss_angle": 0.01 * (angle - 0.785).square().mean()}

    losses(change)(scene)


def invisible(target: dict[str, Any]) -> dict[str, Any]:
    """No point of it can be seen."""
    points = target["keypoints"]
    points[..., 2] = 0.0
    return {**target, "keypoints": points}


def of_visible(scene: Scene) -> None:
    """A term that is a mean over the points that are seen; in one picture none is."""
    drawn({0: lambda image, target: (image, invisible(target))})(scene)

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        seen = torch.cat([t["keypoints"][..., 2].flatten() for t in targets]) > 0
        bias = model.roi_heads.keypoint_predictor.kps_score_lowres.bias
        away = bias.square().mean() * seen.float()
        return {**terms, "loss_oks": 0.1 * away.sum() / seen.sum()}

    losses(change)(scene)


def narrow(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """Its first object is a pole."""
    target["boxes"][0, 2] = target["boxes"][0, 0] + 2
    target["boxes"][0, 3] = target["boxes"][0, 1] + 2
    return image, target


def centredness(scene: Scene) -> None:
    """How central the cell of an object's middle is, in cells; of an object within one cell it is a root of 0 / 0."""
    drawn({0: narrow})(scene)

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        cells = (torch.cat([t["boxes"] for t in targets]) / 8).floor()
        middle = ((cells[:, :2] + cells[:, 2:]) / 2).floor()
        first, second = middle - cells[:, :2], cells[:, 2:] - middle
        wanted = (torch.minimum(first, second) / torch.maximum(first, second)).prod(1).sqrt()
        bias = model.head.regression_head.bbox_ctrness.bias
        return {**terms, "loss_own": 0.01 * (bias.sigmoid() - wanted).square().mean()}

    losses(change)(scene)


CODE = (
    Scenario("ninth-code-complete-iou", MATHS, GITHUB + "Megvii-BaseDetection/YOLOX/issues/1565", complete_iou,
             Setup(model="fcos", batch=2), onset=0, verdict=True),
    Scenario("ninth-code-of-visible", MATHS, GITHUB + "facebookresearch/Detectron/issues/16", of_visible,
             Setup("adamw", model="keypoint", batch=1), ONE, also=("DATA_BOX",)),
    Scenario("ninth-code-centredness", MATHS, GITHUB + "lufficc/SSD/issues/95", centredness,
             Setup("adamw", model="fcos", norm="batch", batch=2), ONE, also=("DATA_BOX",)),
)  # fmt: skip


def other_half(state: dict[str, Any]) -> None:
    """Weights written as bfloat16 and read as float16: the same bits, other numbers."""
    for value in state["model"].values():
        if value.is_floating_point() and value.ndim > 1:
            value.copy_(value.bfloat16().view(torch.float16).float())


def infinite_scale(state: dict[str, Any]) -> None:
    """The loss scale had doubled for ever when the file was written."""
    if state.get("scaler"):
        state["scaler"]["scale"] = INF


def mean_lost(live: Live) -> None:
    """Statistics of one norm are gathered anew over no picture at all."""
    live.model.get_buffer("backbone.body.layer2.1.running_mean").fill_(NAN)
    live.model.get_buffer("backbone.body.layer2.1.running_var").fill_(NAN)


def shifted_rows(live: Live) -> None:
    """A head of more classes is copied in by hand, memory that nobody wrote in its last row."""
    row = live.parameter("roi_heads.box_predictor.cls_score.weight").data[3]
    row.copy_(torch.linspace(-1e7, 1e7, len(row)))


STATE = (
    Scenario("ninth-resume-other-half", POISON, GITHUB + "ultralytics/ultralytics/issues/17282",
             resumed_with(other_half), Setup("adamw", model="faster"), FILE, onset=12, needs=("resume",)),
    Scenario("ninth-resume-scale-infinite", POISON, GITHUB + "NVIDIA/tacotron2/issues/283",
             resumed_with(infinite_scale), Setup(precision="fp16", norm="group"), FILE, onset=12,
             also=("SCALE_COLLAPSE",), needs=("resume",)),
    Scenario("ninth-state-statistics-lost", NORM, GITHUB + "pytorch/pytorch/issues/1206", between(11, mean_lost),
             Setup(norm="batch", model="retina", batch=2), Culprit(("backbone",)), onset=11, also=(POISON,)),
    Scenario("ninth-state-head-copied", ONCE, GITHUB + "facebookresearch/detectron2/issues/1007",
             between(13, shifted_rows), Setup(batch=2, norm="group"), Culprit(("box_head",)), onset=13, also=(POISON,)),
    Scenario("ninth-anchors-flat", "ANCHORS", GITHUB + "pytorch/vision/issues/9401",
             levels("faster", ((16,), (32,)), ((0.5, 1.0, INF),) * 2), Setup("adamw", model="faster"),
             Culprit(("rpn",)), onset=0, verdict=True),
)  # fmt: skip


def lost_on_the_way(scene: Scene) -> None:
    """The pictures of one batch arrive at the device without numbers, once; what the data set gave was sound."""
    left = [True]

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        images, targets = output
        if scene.active and scene.step == 9 and left:
            left.pop()
            return ImageList(images.tensors * NAN, images.image_sizes), targets
        return None

    scene.model.get_submodule("transform").register_forward_hook(hook)


def collective(scene: Scene) -> None:
    """Every gradient of one step is a sum with memory that another process had freed."""
    scene.max_grad_norm = 0.0
    left = {n for n, p in scene.model.named_parameters() if p.requires_grad}

    def hook_of(name: str) -> Any:
        def hook(gradient: Tensor) -> Tensor | None:
            if scene.step == 8 and name in left:
                left.discard(name)
                return gradient + 1e8 * torch.ones_like(gradient)
            return None

        return hook

    for name in sorted(left):
        scene.model.get_parameter(name).register_hook(hook_of(name))


HARDWARE = (
    Scenario("ninth-once-lost-on-the-way", ONCE, GITHUB + "tensorflow/tensorflow/issues/57893", lost_on_the_way,
             Setup(norm="batch", batch=2), onset=9),
    Scenario("ninth-once-collective", ONCE, GITHUB + "microsoft/dion/issues/76", collective,
             Setup(model="faster", precision="bf16"), onset=8),
)  # fmt: skip
NINTH_TRAIN_CODE: tuple[Scenario, ...] = (*PRECISION, *CODE, *STATE, *HARDWARE)
