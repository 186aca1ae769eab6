"""Runs of the project's own trainer, a tenth round: own modules and losses, half precision, files, hardware."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.faults_code import Losses, losses
from nanbench.faults_eighth_train_more import seen_by
from nanbench.faults_fifth_data import drawn, together
from nanbench.faults_forms import picture
from nanbench.faults_fresh import after
from nanbench.faults_once import gradient_once, scaled
from nanbench.faults_sixth_data import resumed_with
from nanbench.faults_state import between
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Live, Scene, Setup
from nanbench.tiny import sample, tiny_detector

NAN, INF = float("nan"), float("inf")
ONE, FILE = Culprit(image=True), Culprit(checkpoint=True)
HALF, MATHS, POISON, ONCE, NORM = "FP16_OVERFLOW", "LOSS_MATH", "POISONED_STATE", "TRANSIENT", "NORM_STATE"
GITHUB = "https://github.com/"


class RootMeanSquare(nn.Module):
    """A norm over the channels without an eps: behind a ReLU they are 0 where the picture has the mean colour."""

    def forward(self, x: Tensor) -> Tensor:
        return x / x.square().mean(1, keepdim=True).sqrt()


def framed(image: Tensor) -> Tensor:
    """A frame in the mean colour, as a padding that should do no harm."""
    image[:, :20] = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    return image


class Pooled(nn.Module):
    """A generalised mean whose power is learned, as exp(p log x): the logarithm of nothing, times nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.tensor(3.0))

    def forward(self, x: Tensor) -> Tensor:
        mean = (self.p * x.relu().log()).exp().mean((2, 3), keepdim=True)
        return x * (1 + 0.1 * mean)


class Standardised(nn.Conv2d):
    """Weights by their mean and deviation, with the eps outside of the root: a filter of equal weights has none."""

    def forward(self, input: Tensor) -> Tensor:
        w = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        deviation = w.square().mean((1, 2, 3)).sqrt() + 1e-5
        return input + 0.1 * F.conv2d(input, w / deviation[:, None, None, None], self.bias)


def standardised(scene: Scene) -> nn.Module:
    """One of its filters begins at zero, so that a branch joins in slowly."""
    module = Standardised(16, 16, 1)
    nn.init.zeros_(module.weight[3:4].data)
    return module


class Debiased(nn.Module):
    """A running mean of the features, divided by how much of it there is; before the first step that is nothing."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("count", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        mean, count = self.get_buffer("mean"), self.get_buffer("count")
        shift = mean / (1 - 0.9**count)
        if self.training:
            mean.mul_(0.9).add_(0.1 * x.detach().mean((0, 2, 3)))
            count.add_(1)
        return x - 0.1 * shift[:, None, None]


class Exponential(nn.Module):
    """Distances as exp(scale · x), with a scale that learns, and that a config of another stride set."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4000.0))

    def forward(self, x: Tensor) -> Tensor:
        return (self.scale * x).exp()


def soft_arguments(scene: Scene) -> None:
    """A soft argmax of sharpness 400 that subtracts no maximum: as soon as something is seen, it is inf / inf."""
    seen = seen_by(scene, "roi_heads.keypoint_predictor")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        maps = seen[0].flatten(2)
        each = (400 * maps).exp()
        places = torch.linspace(0, 1, maps.shape[-1])
        middle = (each / each.sum(-1, keepdim=True) * places).sum(-1)
        return {**terms, "loss_place": 0.01 * (middle - 0.5).square().mean()}

    losses(change)(scene)


def relations(scene: Scene) -> None:
    """Geometry of pairs of objects, log(|x - x'| / w): an object that is annotated twice is no distance away."""
    image, target = scene.samples[scene.culprit]
    twice = {k: torch.cat([v, v]) for k, v in target.items() if isinstance(v, Tensor) and k != "annotation_ids"}
    numbers = torch.arange(len(twice["boxes"])) + 10 * scene.bad_id
    scene.samples[scene.culprit] = image, {**target, **twice, "annotation_ids": numbers}

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        weight = model.head.regression_head.bbox_reg.weight
        total = weight.new_zeros(())
        for t in targets:
            x = (t["boxes"][:, 0] + t["boxes"][:, 2]) / 2
            width = t["boxes"][:, 2] - t["boxes"][:, 0]
            away = (x[:, None] - x[None]).abs() / width[:, None]
            others = ~torch.eye(len(x)).bool()
            total = total + (away[others].log() * weight.flatten()[0]).tanh().sum() * 0.01
        return {**terms, "loss_relation": total}

    losses(change)(scene)


def hard_negatives(scene: Scene) -> None:
    """The mean over the hardest negatives, three for each positive; a picture without objects has neither."""
    places = [scene.culprit, (scene.culprit + 5) % 24]
    scene.also_bad = places[1:]
    for p in places:
        scene.samples[p] = sample(scene.ids[p], objects=0)
    seen = seen_by(scene, "head.classification_head")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        n = 3 * sum(len(t["boxes"]) for t in targets)
        scores = seen[0].sigmoid().flatten()
        picked = torch.zeros_like(scores).index_fill(0, scores.topk(n).indices, 1.0)
        return {**terms, "loss_hard": 0.1 * (scores * picked).sum() / picked.sum()}

    losses(change)(scene)


def second_best(scene: Scene) -> None:
    """A margin between the two largest objects; one picture has a single one."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=1)

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        sizes = [(t["boxes"][:, 2:] - t["boxes"][:, :2]).prod(1) for t in targets]
        gap = torch.stack([v.topk(2).values.diff().abs().sum() for v in sizes]).mean() / 4096
        bias = model.roi_heads.box_predictor.bbox_pred.bias
        return {**terms, "loss_gap": 0.01 * (bias.square().mean() - gap).square()}

    losses(change)(scene)


def hidden_pair(scene: Scene) -> None:
    """Cosine of two objects' masks; one picture's second mask is covered but for its border, which is left out."""
    image, target = scene.samples[scene.culprit]
    masks = target["masks"].clone()
    masks[1, 1:] = 0  # a line of it is left
    masks[1, 0, :8] = 1
    scene.samples[scene.culprit] = image, {**target, "masks": masks}

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        inner = torch.stack([t["masks"].float()[:, 1:].flatten(1).norm(dim=1).min() for t in targets])
        bias = model.roi_heads.box_predictor.bbox_pred.bias.mean()
        return {**terms, "loss_pair": 0.01 * (inner * bias / inner).mean()}

    losses(change)(scene)


MODULES = (
    Scenario("tenth-module-root-mean-square", MATHS, GITHUB + "mihaidusmanu/d2-net/issues/78",
             together(after("backbone.body.layer2", lambda s: RootMeanSquare()),
                      drawn({0: picture(framed), 13: picture(framed)})),
             Setup(batch=2), ONE, also=(NORM, "DATA_PIXEL")),
    Scenario("tenth-module-pooled", MATHS, GITHUB + "LiamMa/GRIT/issues/1",
             after("roi_heads.mask_head", lambda s: Pooled()), Setup("adamw", batch=2), onset=0, verdict=True),
    Scenario("tenth-module-standardised", MATHS, GITHUB + "joe-siyuan-qiao/WeightStandardization/issues/1",
             after("roi_heads.mask_head", standardised), Setup(norm="group", batch=2), onset=0, also=(NORM,),
             verdict=True),
    Scenario("tenth-module-debiased", MATHS, GITHUB + "pytorch/ignite/issues/2590",
             after("backbone.body.layer2", lambda s: Debiased(16)), Setup("adamw", model="faster"), onset=0,
             also=(NORM, POISON)),
    # Too steep a function as much as too long a step: whatever the word, it has to be the head's.
    Scenario("tenth-module-exponential", MATHS, GITHUB + "open-mmlab/mmdetection/issues/1606",
             after("head.regression_head.bbox_reg", lambda s: Exponential()), Setup("adamw", model="fcos", batch=2),
             onset=0, also=("LR_TOO_HIGH",), verdict=True),
)  # fmt: skip
CODE = (
    Scenario("tenth-code-soft-arguments", MATHS, GITHUB + "lilanxiao/Rotated_IoU/issues/20", soft_arguments,
             Setup("adamw", model="keypoint", batch=2), also=("LR_TOO_HIGH",), verdict=True),
    Scenario("tenth-code-relations", MATHS, GITHUB + "Alan-D-Chen/CDIoU-CDIoUloss/issues/4", relations,
             Setup("adamw", model="retina", batch=1), ONE, also=("DATA_BOX",)),
    Scenario("tenth-code-hard-negatives", MATHS, GITHUB + "kuangliu/torchcv/issues/35", hard_negatives,
             Setup("adamw", model="retina", batch=1), ONE),
    Scenario("tenth-code-second-best", "UNKNOWN", GITHUB + "tensorflow/addons/pull/914", second_best,
             Setup(batch=2), ONE, also=(MATHS,)),
    Scenario("tenth-code-hidden-pair", MATHS, GITHUB + "Zzh-tju/DIoU-pytorch-detectron/issues/3", hidden_pair,
             Setup(), ONE, also=("DATA_MASK",)),
)  # fmt: skip


def half_areas(scene: Scene) -> None:
    """Squares of areas in the type of the logits: a box of 17 by 16 is beyond it."""
    name = "head.classification_head" if hasattr(scene.model, "head") else "rpn.head.cls_logits"
    seen = seen_by(scene, name)

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        boxes = torch.cat([t["boxes"] for t in targets]).to(seen[0].dtype)
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        spread = areas.square().mean() - areas.mean().square()
        share = seen[0].flatten()[:8].sigmoid().mean() * spread / (4096.0**2)
        return {**terms, "loss_areas": 0.1 * share.float()}

    losses(change)(scene)


def fill_value(scene: Scene) -> None:
    """Padding of the scores is filled with -1e9, which a half cannot hold: torch refuses."""
    seen = seen_by(scene, "rpn.head.cls_logits")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        scores = seen[0].flatten(1)
        hidden = torch.zeros_like(scores).bool()
        hidden[:, ::7] = True
        best = scores.masked_fill(hidden, -1e9).amax(1)
        return {**terms, "loss_best": 0.01 * best.float().sigmoid().mean()}

    losses(change)(scene)


class Excited(nn.Module):
    """Channels weighted by a sum over the map, of features that are worth a thousand: beyond half precision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        power = (x * 60).square().sum((2, 3))
        return x * self.fc(power / 1e6).sigmoid()[..., None, None]


PRECISION = (
    Scenario("tenth-half-areas", HALF, GITHUB + "facebookresearch/fvcore/pull/114", half_areas,
             Setup("adamw", precision="fp16", model="fcos"), onset=0, also=(MATHS,)),
    Scenario("tenth-half-fill-value", HALF, GITHUB + "prescient-design/e3tools/pull/3", fill_value,
             Setup(precision="fp16", norm="group"), onset=0, also=("UNKNOWN", MATHS)),
    Scenario("tenth-half-excited", HALF, GITHUB + "NVIDIA-NeMo/Speech/pull/2302",
             after("backbone.body.layer1", lambda s: Excited(12)), Setup(precision="fp16", norm="group"),
             Culprit(("backbone",)), onset=0),
)  # fmt: skip


def half_copied(state: dict[str, Any]) -> None:
    """A copy of weights by their shapes took those of the heads out of another run."""
    other = tiny_detector("mask", 777).state_dict()
    for name, value in state["model"].items():
        if name.startswith("roi_heads") and name in other:
            value.copy_(other[name] * 8)


def one_step_back(state: dict[str, Any]) -> None:
    """Counts of steps are one short of none: Adam divides by 1 - β⁰."""
    for entry in state["optimizer"]["state"].values():
        if "step" in entry:
            entry["step"] = torch.full_like(torch.as_tensor(entry["step"], dtype=torch.float32), -1.0)


def beta_of_one(state: dict[str, Any]) -> None:
    """A second beta of 1.0, rounded by whoever wrote the file."""
    for group in state["optimizer"]["param_groups"]:
        if "betas" in group:
            group["betas"] = (0.9, 1.0)


def momentum_of_nine(state: dict[str, Any]) -> None:
    """0.9 lost its point."""
    for group in state["optimizer"]["param_groups"]:
        group["momentum"] = 9.0


def huge_scale(state: dict[str, Any]) -> None:
    """A loss scale of 1e30, of a run whose growth nobody bounded."""
    if state.get("scaler"):
        state["scaler"]["scale"] = 1e30


def norms_of_pictures(state: dict[str, Any]) -> None:
    """Statistics of two norms were gathered on pictures divided by 255 twice, and those of the other were not."""
    for name, value in state["model"].items():
        if name.endswith(("layer1.1.running_var", "layer3.1.running_var")):
            value.fill_(1e-12)


FILES = (
    Scenario("tenth-resume-half-copied", POISON, GITHUB + "lightly-ai/lightly-train/issues/982",
             resumed_with(half_copied), Setup(), FILE, onset=12, needs=("resume",)),
    Scenario("tenth-resume-step-back", POISON, GITHUB + "pytorch/pytorch/issues/35047", resumed_with(one_step_back),
             Setup("adamw", batch=2), FILE, onset=12, needs=("resume",)),
    Scenario("tenth-resume-beta-of-one", POISON, GITHUB + "lucidrains/DALLE2-pytorch/issues/115",
             resumed_with(beta_of_one), Setup("adamw", model="faster"), FILE, onset=12, needs=("resume",)),
    Scenario("tenth-resume-momentum-of-nine", POISON, GITHUB + "roytseng-tw/Detectron.pytorch/issues/37",
             resumed_with(momentum_of_nine), Setup(batch=2), FILE, onset=12, also=("LR_TOO_HIGH",), needs=("resume",)),
    Scenario("tenth-resume-huge-scale", POISON, GITHUB + "NVIDIA-NeMo/RL/issues/3544", resumed_with(huge_scale),
             Setup("adamw", precision="fp16", model="fcos"), FILE, onset=12, also=("SCALE_COLLAPSE",),
             needs=("resume",)),
    Scenario("tenth-resume-norms-of-pictures", POISON, GITHUB + "hnuzhy/SSDA-YOLO/issues/21",
             resumed_with(norms_of_pictures), Setup(), FILE, onset=12, also=(NORM,), needs=("resume",)),
    Scenario("tenth-resume-points-head", POISON, GITHUB + "facebookresearch/maskrcnn-benchmark/issues/15",
             resumed_with(scaled("roi_heads.keypoint", 2e3)), Setup("adamw", model="keypoint", batch=2), FILE,
             onset=12, verdict=True, needs=("resume",)),
)  # fmt: skip


def renormed(live: Live) -> None:
    """Rows of a layer are brought to length 1 by a callback; one row is nothing."""
    row = live.parameter("roi_heads.box_predictor.cls_score.weight").data
    row[2] = 0.0
    row.div_(row.norm(dim=1, keepdim=True))


def validated_in_half(scene: Scene) -> None:
    """A model goes to half precision for a look at the validation set, and back: what was beyond 65504 is infinite."""
    norm: Any = scene.model.get_submodule("backbone.body.layer2.1")
    norm.running_var.fill_(1e5)
    norm.weight.fill_(1e3)
    scene.at(10, lambda live: live.model.half().float() and None)


class PerChannel(nn.Module):
    """A norm of one's own by mean and deviation of each channel, with no eps."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)


def dead_filter(scene: Scene) -> None:
    """A pruning callback zeroes a filter in front of a norm that has no eps."""
    after("backbone.body.layer2.0", lambda s: PerChannel())(scene)

    def prune(live: Live) -> None:
        live.parameter("backbone.body.layer2.0.0.weight").data[5] = 0.0

    scene.at(8, prune)


def patched_late(live: Live) -> None:
    """A profiler puts a forward of its own in place of the head's, which divides by a time of 0."""
    head = live.model.get_submodule("roi_heads.mask_head")
    inner, elapsed = head.forward, torch.zeros(())
    head.forward = lambda x: inner(x) * (elapsed / elapsed)  # type: ignore[method-assign]


def spoilt_level(scene: Scene) -> None:
    """The pyramid comes out of its buffer a million times too large, at two steps of the run."""
    left = [7, 15]

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        if scene.active and scene.step in left:
            left.remove(scene.step)
            return {name: level * 1e6 for name, level in output.items()}
        return None

    scene.model.get_submodule("backbone.fpn").register_forward_hook(hook)


def sunk_moments(live: Live) -> None:
    """Second moments of one layer lose their exponents: updates of any size."""
    state = live.state_of("head.classification_head.cls_logits.weight")
    if "exp_avg_sq" in state:
        state["exp_avg_sq"].mul_(1e-30)


STATE = (
    Scenario("tenth-state-renormed", ONCE, GITHUB + "Lightning-AI/pytorch-lightning/issues/21724",
             between(9, renormed), Setup("adamw", precision="bf16", batch=2), Culprit(("box_head",)), onset=9,
             also=(POISON,)),
    Scenario("tenth-state-validated-in-half", NORM, GITHUB + "ultralytics/ultralytics/pull/24731", validated_in_half,
             Setup(), Culprit(("backbone",)), onset=10, also=(POISON, ONCE)),
    Scenario("tenth-state-dead-filter", ONCE, GITHUB + "open-mmlab/mmdetection/issues/515", dead_filter,
             Setup(norm="batch", batch=2), Culprit(("backbone",)), onset=8, also=(NORM, POISON, MATHS)),
    Scenario("tenth-state-patched-late", MATHS, GITHUB + "teffland/pytorch-monitor/issues/14",
             between(11, patched_late), Setup(batch=2), onset=11, also=("UNKNOWN", "BACKEND"), verdict=True),
    Scenario("tenth-once-spoilt-level", ONCE, GITHUB + "ggml-org/llama.cpp/issues/16945", spoilt_level,
             Setup(norm="group", batch=2), onset=7),
    Scenario("tenth-once-sunk-moments", ONCE, GITHUB + "facebookresearch/higher/issues/17", between(12, sunk_moments),
             Setup("adamw", model="retina", batch=1), onset=12, also=(POISON,)),
    Scenario("tenth-once-gradient-of-norm", ONCE, GITHUB + "pytorchfi/pytorchfi/issues/39",
             gradient_once("backbone.body.layer3.1.weight", 10, -1e7), Setup(norm="batch", batch=2),
             Culprit(("backbone",)), onset=10),
)  # fmt: skip
TENTH_TRAIN_CODE: tuple[Scenario, ...] = (*MODULES, *CODE, *PRECISION, *FILES, *STATE)
