"""Data, terms, precision and states of a sixth round: late, in place, after an update of the images, or twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from nanbench.faults_code import Losses, compiled, losses
from nanbench.faults_fifth_data import ONE, Fault, drawn, past_the_end, together
from nanbench.faults_forms import entry, picture
from nanbench.faults_fourth import at_image
from nanbench.faults_fresh import after
from nanbench.faults_lr import late_block
from nanbench.faults_once import levels
from nanbench.faults_sixth import of_component
from nanbench.faults_state import FC6, between, in_state
from nanbench.faults_third import moving
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup

NAN, INF = float("nan"), float("inf")
PIXEL, BOX, LABEL, MASK, MATHS = "DATA_PIXEL", "DATA_BOX", "DATA_LABEL", "DATA_MASK", "LOSS_MATH"
OUTSIDE = ("TRANSIENT", "POISONED_STATE")


def rounded(boxes: Tensor) -> Tensor:
    """A crop leaves half a pixel of the first object, and coordinates are rounded."""
    boxes[0, 2] = boxes[0, 0]
    return boxes


def beyond(boxes: Tensor) -> Tensor:
    """A box scaled by the width of an image that said 0."""
    boxes[0, 3] = INF
    return boxes


def half_precision(image: Tensor) -> Tensor:
    """A picture of 16 bits, scaled in half precision: the brightest pixels are beyond it."""
    return (image.half() * 1e5).float()


def standardised(image: Tensor) -> Tensor:
    """(x - mean) / std of a blank picture."""
    blank = torch.full_like(image, 0.5)
    return (blank - blank.mean()) / blank.std()


def logarithm(image: Tensor) -> Tensor:
    """log of a picture that has black pixels."""
    image[:, 20:24, 20:24] = 0.0
    return image.log()


def ignored(labels: Tensor) -> Tensor:
    """The index that cross-entropy ignores."""
    labels[-1] = -100
    return labels


def palette(masks: Tensor) -> Tensor:
    """Colours of an indexed picture: the number of each object, and 255 along its edge."""
    numbers = torch.arange(1, len(masks) + 1, dtype=torch.uint8)[:, None, None]
    masks = masks * (numbers + 1)
    masks[:, ::9] = torch.where(masks[:, ::9] > 0, 255, masks[:, ::9])
    return masks


def from_step(start: int) -> Any:
    """At draws from this step on."""
    return lambda step: step >= start


def third_epoch(step: int) -> bool:
    """The third epoch alone."""
    return 12 <= step < 18


def in_place(scene: Scene) -> None:
    """A flip that changes the cached boxes of one image without exchanging its corners: right at every second draw."""

    def draw(index: int) -> Any:
        image, target = scene.samples[index]
        if index == scene.culprit:
            target["boxes"][:, 0::2] = 64 - target["boxes"][:, 0::2]
            return image.clone(), target
        return image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}

    scene.draw = draw


def logs_of_two(scene: Scene) -> None:
    """In the second epoch, one picture's logarithm in one of two processes."""
    drawn({0: picture(logarithm)}, from_step(6))(scene)


def complete_overlap(model: Any, z: Tensor) -> Tensor:
    """The weight v / (1 - iou + v) of a complete IoU, of a prediction that is exact: 0 / 0."""
    v, rest = z.square(), z.abs()
    return 0.01 * v / (rest + v)


def angle(model: Any, z: Tensor) -> Tensor:
    """The arc tangent of height / width of a box without width: finite, with a derivative of 0 * inf."""
    return 0.01 * torch.atan(1 / z)


def whitened(model: Any, z: Tensor) -> Tensor:
    """Eigenvectors of a covariance whose eigenvalues are all alike: finite, with derivatives of 1 / 0."""
    spread = torch.tensor([0.0, 1.0, 2.0]) * z.detach()
    matrix = torch.diag(1.0 + spread) + (z - z.detach()) * torch.ones(3, 3)
    return 0.01 * torch.linalg.eigh(matrix).eigenvectors.abs().sum()


def pairs(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A contrastive term: the mean over pairs of one class in the batch, which has none now and then."""
    labels = torch.cat([t["labels"] for t in targets])
    same = (labels[:, None] == labels[None]).float().triu(1)
    return {**terms, "contrast": 0.01 * moving(model, 1.0) * same.sum() / same.sum()}


def towards_the_end(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A weight of 1 / (steps left), with a number of steps from another run."""
    return {**terms, "late": 0.01 * moving(model, 0.3) / abs(20 - scene.step)}


class HandMadeNorm(nn.Module):
    """A norm by the root of the mean square, whose squares are half precision's under autocast."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_autocast_enabled("cpu") or not self.scene.active:
            y = x.float() * 4e3
            return y / (y.square().mean(1, keepdim=True).sqrt() + 1e-3)
        y = (x * 4e3).half()
        return y / ((y * y).mean(1, keepdim=True).sqrt() + 1e-3)


def backoff(live: Live) -> None:
    """A scaler that starts at 2^60 and backs off by 1e-30 for 0.5."""
    if live.scaler is not None:
        live.scaler.load_state_dict({**live.scaler.state_dict(), "scale": 2.0**60, "backoff_factor": 1e-30})


def infinite_variance(live: Live) -> None:
    """A frozen norm's variance of one channel becomes inf: the channel is silent from then on."""
    live.model.get_buffer("backbone.body.layer2.1.running_var")[3] = INF


def zeroed(live: Live) -> None:
    """A layer whose shard was not gathered: all zeros."""
    live.parameter(f"{FC6}.weight").data.zero_()


def nan_step(state: dict[str, Any]) -> None:
    """Adam's count of steps, converted by another program, is NaN."""
    for entry_ in state["optimizer"]["state"].values():
        if "step" in entry_:
            entry_["step"] = torch.tensor(NAN) if isinstance(entry_["step"], Tensor) else NAN


def resumed_with(change: Any) -> Fault:
    """The checkpoint of step 12 is changed so."""
    return lambda scene: setattr(scene, "on_resume", change)


def no_scale(scene: Scene) -> None:
    """Default boxes whose first scale is 0."""
    levels("ssd", DefaultBoxGenerator([[2], [2]], scales=[0.0, 0.0, 0.0]), None)(scene)


def burst(factor: float, *steps: int) -> Any:
    """A rate ``factor`` times as high at these steps."""
    return lambda step, rate: rate * (factor if step in steps else 1.0)


DATA = (
    Scenario("sixth-rounded-late", BOX, "https://github.com/albumentations-team/albumentations/issues/739",
             drawn({0: entry("boxes", rounded)}, third_epoch), Setup("adamw", model="fcos", way="guard"), ONE),
    Scenario("sixth-half-picture", PIXEL, "https://github.com/matterport/Mask_RCNN/issues/1482",
             drawn({0: picture(half_precision)}), Setup(model="retina", batch=1, way="attach"), ONE),
    Scenario("sixth-blank-standardised", PIXEL, "https://github.com/pytorch/vision/issues/997",
             drawn({0: picture(standardised), 5: picture(standardised)}), Setup(model="keypoint", way="guard"), ONE),
    Scenario("sixth-logarithm", PIXEL, "https://github.com/amdegroot/ssd.pytorch/issues/275",
             drawn({0: picture(logarithm)}), Setup(model="ssd", batch=2, way="attach"), ONE),
    Scenario("sixth-label-ignored", LABEL, "https://github.com/pytorch/vision/issues/2144",
             drawn({0: entry("labels", ignored)}), Setup(accumulate=4, model="keypoint", way="guard"), ONE),
    Scenario("sixth-mask-palette", MASK, "https://github.com/pytorch/vision/issues/997",
             drawn({0: entry("masks", palette), 11: entry("masks", palette)}), Setup(accumulate=4, way="attach"), ONE),
    Scenario("sixth-box-beyond-late", BOX, "https://github.com/albumentations-team/albumentations/issues/157",
             drawn({0: entry("boxes", beyond)}, from_step(12)), Setup(model="faster", way="guard"), ONE),
    Scenario("sixth-flips-in-place", BOX, "https://github.com/pytorch/vision/issues/1128", in_place,
             Setup("adamw", norm="group", batch=2), ONE),
    Scenario("sixth-rank-logarithm", "RANK_LOCAL", "https://github.com/facebookresearch/mmf/issues/1073", logs_of_two,
             Setup(norm="group", ranks=2), ONE, needs=("ranks",)),
)  # fmt: skip
TERMS = (
    Scenario("sixth-complete-overlap", MATHS, "https://github.com/Megvii-BaseDetection/YOLOX/issues/1565",
             at_image(complete_overlap, 0.0, 0.5), Setup("adamw", batch=2, way="guard"), ONE),
    Scenario("sixth-angle", MATHS, "https://github.com/pytorch/pytorch/issues/98276", at_image(angle, 0.0, 0.5),
             Setup(accumulate=4, model="retina", way="guard"), ONE),
    Scenario("sixth-whitened", MATHS, "https://github.com/pytorch/pytorch/issues/76531",
             at_image(whitened, 0.0, 1.0), Setup(norm="group", batch=2, way="attach"), ONE),
    Scenario("sixth-pairs", MATHS, "https://github.com/Zzh-tju/DIoU-pytorch-detectron/issues/19", losses(pairs),
             Setup(norm="group", batch=1)),
    Scenario("sixth-towards-the-end", MATHS, "https://github.com/matterport/Mask_RCNN/issues/1482",
             losses(towards_the_end), Setup("adamw", accumulate=2, way="guard"), onset=20),
)  # fmt: skip
STATES = (
    Scenario("sixth-hand-made-norm", "FP16_OVERFLOW", "https://github.com/pytorch/pytorch/issues/40497",
             after("backbone.body.layer2", HandMadeNorm), Setup("adamw", precision="fp16", model="retina"),
             Culprit(("backbone",), "backbone.body.layer2"), onset=0),
    Scenario("sixth-backoff", "SCALE_COLLAPSE", "https://github.com/NVIDIA/DeepLearningExamples/issues/543",
             between(4, backoff), Setup(precision="fp16", norm="group", way="attach"), onset=4,
             also=("POISONED_STATE",)),
    Scenario("sixth-variance-inf", "NORM_STATE", "https://github.com/facebookresearch/detectron2/issues/5080",
             between(9, infinite_variance), Setup("adamw", way="guard"), Culprit(("backbone",)), onset=9, also=OUTSIDE),
    Scenario("sixth-layer-zeroed", "TRANSIENT", "https://github.com/microsoft/dion/issues/76", between(13, zeroed),
             Setup("adamw", batch=1), Culprit(("box_head",)), onset=13, also=("POISONED_STATE",)),
    Scenario("sixth-step-nan", "POISONED_STATE", "https://github.com/NVIDIA/apex/issues/240", resumed_with(nan_step),
             Setup("adamw", norm="group"), Culprit(checkpoint=True), onset=12, needs=("resume",)),
    Scenario("sixth-average-huge-twice", "TRANSIENT", "https://github.com/NVIDIA/apex/issues/1322",
             together(between(6, in_state(f"{FC6}.weight", "exp_avg", 1e20)),
                      between(18, in_state(f"{FC6}.weight", "exp_avg", -1e20))),
             Setup("adam", way="guard"), Culprit(("box_head",)), onset=6, also=("POISONED_STATE",)),
    Scenario("sixth-scale-of-nothing", "ANCHORS", "https://github.com/amdegroot/ssd.pytorch/issues/275", no_scale,
             Setup(model="ssd", way="guard"), onset=0, verdict=True),
    Scenario("sixth-compiled-head", "BACKEND", "https://github.com/pytorch/pytorch/issues/114109",
             compiled("rpn.head", 12), Setup("adamw", batch=2, way="guard"), Culprit(("rpn",), "rpn.head"), onset=12),
)  # fmt: skip
PAIRS = (
    Scenario("sixth-pixel-and-overflow", PIXEL, "https://github.com/NVIDIA/apex/issues/1322",
             together(drawn({0: picture(logarithm)}), late_block), Setup(precision="fp16", norm="group"),
             together=(PIXEL, "FP16_OVERFLOW")),
    Scenario("sixth-box-then-heads", BOX, "https://github.com/facebookresearch/detectron2/issues/508",
             together(drawn({0: entry("boxes", rounded)}), of_component("box_head", burst(1e5, 15, 16), 0.0)),
             Setup("adamw", batch=2, way="guard"), together=(BOX, "LR_TOO_HIGH")),
    Scenario("sixth-angle-then-rate", MATHS, "https://github.com/pytorch/pytorch/issues/66084",
             together(at_image(angle, 0.0, 0.5), of_component("backbone", burst(1e5, 13, 14, 15), 0.0)),
             Setup(norm="group", way="attach"), together=(MATHS, "LR_TOO_HIGH")),
    Scenario("sixth-label-and-zeroes", LABEL, "https://github.com/pytorch/pytorch/issues/40497",
             together(drawn({0: entry("labels", past_the_end)}), between(10, zeroed)), Setup("adamw", way="attach"),
             together=(LABEL, "TRANSIENT")),
)  # fmt: skip
SIXTH_DATA: tuple[Scenario, ...] = (*DATA, *TERMS, *STATES, *PAIRS)
