"""Runs of the project's own trainer, an eighth round: rates of other optimizers, half precision, losses and modules."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.faults_code import Losses, losses
from nanbench.faults_fifth_data import drawn, together
from nanbench.faults_forms import picture
from nanbench.faults_fresh import after
from nanbench.faults_lr import HEADS, rates
from nanbench.faults_wild import set_by_hook, times
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample

LR, HALF, MATHS = "LR_TOO_HIGH", "FP16_OVERFLOW", "LOSS_MATH"
ONE = Culprit(image=True)
TORCH, GITHUB = "https://pytorch.org/docs/stable/", "https://github.com/"


def gamma_of_ten(scene: Scene) -> None:
    """A rate that is multiplied with 10 at each epoch, for 0.1."""
    scene.max_grad_norm = 0.0
    for epoch in (1, 2, 3):
        set_by_hook(6 * epoch, 6 * epoch + 6, times(10.0**epoch))(scene)


def restart_unscaled(scene: Scene) -> None:
    """After two epochs the schedule starts again, at a rate that is meant for another optimizer."""
    scene.max_grad_norm = 0.0
    set_by_hook(12, 24, times(3000.0))(scene)


def wide_head(scene: Scene) -> None:
    """A new head whose weights are drawn with a deviation of 5 for 0.05, at the rate of the others."""
    scene.max_grad_norm = 0.0
    torch.manual_seed(scene.seed)
    for name, p in scene.model.named_parameters():
        if name.startswith("roi_heads.box_predictor") and p.ndim > 1:
            nn.init.normal_(p, std=5.0)


RATES = (
    Scenario("eighth-train-lars", LR, "https://arxiv.org/abs/1708.03888", rates(20.0, warmup=0),
             Setup("lars", norm="group", model="fcos"), onset=0),
    Scenario("eighth-train-lion-heads", LR, GITHUB + "lucidrains/lion-pytorch/issues/33", rates(heads=3e4),
             Setup("lion", model="faster", batch=2), Culprit(HEADS), onset=1),
    Scenario("eighth-train-lion-decay", LR, "https://arxiv.org/abs/2302.06675", rates(weight_decay=6e3),
             Setup("lion", norm="group"), onset=1),
    Scenario("eighth-train-nadam", LR, TORCH + "generated/torch.optim.NAdam.html", rates(3.0, warmup=0),
             Setup("nadam", batch=1), onset=0),
    Scenario("eighth-train-adam-points", LR, GITHUB + "pytorch/vision/issues/2720", rates(1.0, warmup=0),
             Setup("adam", precision="bf16", model="keypoint"), onset=0),
    Scenario("eighth-train-retina-batch-1", LR, GITHUB + "yhenon/pytorch-retinanet/issues/42", rates(30.0),
             Setup(norm="batch", model="retina", batch=1), onset=1),
    Scenario("eighth-train-gamma", LR, TORCH + "generated/torch.optim.lr_scheduler.StepLR.html", gamma_of_ten,
             Setup(norm="group", model="fcos", precision="bf16"), onset=6),
    Scenario("eighth-train-restart", LR, GITHUB + "pytorch/pytorch/issues/20028", restart_unscaled,
             Setup("radam", model="keypoint", batch=2), onset=12),
    Scenario("eighth-train-muon-backbone", LR, GITHUB + "KellerJordan/Muon", rates(backbone=1000.0, warmup=0),
             Setup("muon", norm="batch"), Culprit(("backbone",)), onset=0),
    # Nothing but a smaller rate lets such weights learn; that they are wide is said as well as the rate.
    Scenario("eighth-train-wide-head", LR, "https://arxiv.org/abs/1708.02002", wide_head, Setup(model="faster"),
             onset=0, also=("POISONED_STATE",)),
)  # fmt: skip


class ByHand(nn.Module):
    """A norm by E[x²] - E[x]² of a layer with a large mean: rounding to bfloat16 leaves less than nothing of it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1)
        nn.init.dirac_(self.mix.weight)
        nn.init.constant_(self.mix.bias, 30.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        mean = y.mean(1, keepdim=True)
        return (y - mean) * ((y * y).mean(1, keepdim=True) - mean * mean + 1e-3).rsqrt()


class Exponentials(nn.Module):
    """A softmax over the channels that subtracts no maximum: e^13 is beyond half precision."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scores = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores = self.scores(x)
        scores = scores * (13 / scores.detach().abs().amax().clamp(min=1e-3)).to(scores.dtype)
        each = scores.exp()
        return x * each / each.sum(1, keepdim=True)


def activations(scene: Scene) -> None:
    """A penalty on the size of what the box head gives, summed in half precision."""
    seen: list[Tensor] = []
    scene.model.get_submodule("roi_heads.box_head.fc7").register_forward_hook(lambda m, a, out: seen.append(out))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        out = seen[-1]
        seen.clear()
        return {**terms, "loss_size": 1e-8 * (100 * out).square().sum()}

    losses(change)(scene)


PRECISION = (
    # No number overflows here: it is the precision all the same, or the formula that needs more of it.
    Scenario("eighth-train-by-hand", HALF, "https://arxiv.org/abs/1910.07467",
             after("rpn.head.conv", lambda s: ByHand(16)), Setup(model="faster", precision="bf16"), Culprit(("rpn",)),
             onset=0, also=(MATHS, "NORM_STATE")),
    Scenario("eighth-train-exponentials", HALF, GITHUB + "huggingface/transformers/issues/17937",
             after("roi_heads.mask_head", lambda s: Exponentials(16)), Setup("adamw", precision="fp16", norm="group"),
             Culprit(("mask_head",)), onset=0),
    # The sum stands in a line of the loss, in no module: all of the run in float32 is what is left.
    Scenario("eighth-train-activations", HALF, TORCH + "notes/amp_examples.html", activations,
             Setup(precision="fp16", batch=2), onset=0, also=(MATHS,)),
)  # fmt: skip


class UnitLength(torch.autograd.Function):
    """Features of length 1, with a backward pass of its own that forgot the eps of the forward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # type: ignore[override]
        size = x.norm(dim=1, keepdim=True)
        y = x / (size + 1e-6)
        ctx.save_for_backward(y, size)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        y, size = ctx.saved_tensors
        return (gradient - y * (gradient * y).sum(1, keepdim=True)) / size


class Unit(nn.Module):
    """Passes on what it gets, brought to a length of 1."""

    def forward(self, x: Tensor) -> Tensor:
        return UnitLength.apply(x)  # type: ignore[return-value]


def mean_coloured(image: Tensor) -> Tensor:
    """Padding all over: the colour that is taken out."""
    return torch.tensor([0.485, 0.456, 0.406])[:, None, None].expand_as(image).clone()


def smooth_l1(scene: Scene) -> None:
    """A smooth L1 by hand with a beta of 0: the part that is not taken has a derivative of 0 times infinity."""
    seen: list[Tensor] = []
    scene.model.get_submodule("rpn.head.bbox_pred").register_forward_hook(lambda m, a, out: seen.append(out))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        away = (seen[-1] - 0.1).abs()
        seen.clear()
        return {**terms, "loss_shift": 0.01 * torch.where(away < 0.0, 0.5 * away**2 / 0.0, away).mean()}

    losses(change)(scene)


class DropPath(nn.Module):
    """Leaves rows out, ever more of them: from step 16 on all, and what is left is divided by 0."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.scene.active:
            return x
        kept = max(0.0, 1 - self.scene.step / 16)
        return x / kept * torch.bernoulli(x.new_full((len(x), 1), kept)) if kept else x.div(0) * 0


class Coordinates(nn.Module):
    """Adds to each place of a coarse map how far right it is, from 0 to 1: of a map one wide 0 / 0."""

    def forward(self, x: Tensor) -> Tensor:
        coarse = F.max_pool2d(x, 2)
        width = coarse.shape[-1]
        right = torch.arange(width, dtype=x.dtype) / torch.tensor(width - 1, dtype=x.dtype)
        return x + 0.1 * F.interpolate(coarse + right, size=x.shape[-2:])


def thin_picture(scene: Scene) -> None:
    """One picture is three pixels wide."""
    after("backbone.body.layer3", lambda s: Coordinates())(scene)
    image, target = scene.samples[scene.culprit]
    boxes = target["boxes"].clone()
    boxes[:, 0], boxes[:, 2] = 0, 3
    masks = target["masks"][:, :, :3] * 0
    for mask, box in zip(masks, boxes.long().tolist(), strict=True):
        mask[box[1] : box[3]] = 1
    scene.samples[scene.culprit] = (image[:, :, :3].contiguous(), {**target, "boxes": boxes, "masks": masks})


def masked_class(scene: Scene) -> None:
    """A class that has its turn later is masked out of the logits; one picture has an object of it."""
    for place, (_, target) in enumerate(scene.samples):
        target["labels"].clamp_(max=2)
        if place == scene.culprit:
            target["labels"][0] = 3

    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        logits, boxes = output
        later = torch.tensor([False, False, False, True])
        return (logits.masked_fill(later, float("-inf")), boxes) if scene.active and module.training else None

    scene.model.get_submodule("roi_heads.box_predictor").register_forward_hook(hook)


def normaliser(scene: Scene) -> None:
    """Losses are divided by a running mean of the objects' sizes, kept in a buffer; one picture has no object."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=0)
    scene.model.register_buffer("usual_size", torch.tensor(25.0))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        sides = torch.cat([t["boxes"][:, 2:] - t["boxes"][:, :2] for t in targets])
        model.usual_size.lerp_(sides.mean(), 0.1)
        return {k: v * 25.0 / model.usual_size for k, v in terms.items()}

    losses(change)(scene)


CODE = (
    Scenario("eighth-train-own-backward", MATHS, TORCH + "notes/extending.html",
             together(after("backbone.body.layer1.1", lambda s: Unit()), drawn({0: picture(mean_coloured)})),
             Setup(model="fcos"), ONE, also=("DATA_PIXEL",)),
    Scenario("eighth-train-smooth-l1", MATHS, GITHUB + "facebookresearch/fvcore/blob/main/fvcore/nn/smooth_l1_loss.py",
             smooth_l1, Setup("adamw", model="faster", norm="batch"), onset=0, verdict=True),
    Scenario("eighth-train-drop-path", MATHS, GITHUB + "huggingface/pytorch-image-models",
             after("roi_heads.box_head", DropPath), Setup("adamw", norm="group"), onset=16, also=("UNKNOWN",),
             verdict=True),
    Scenario("eighth-train-coordinates", MATHS, "https://arxiv.org/abs/1807.03247", thin_picture,
             Setup(model="fcos", norm="group", batch=1), ONE, also=("DATA_PIXEL",)),
    # The label is none that this head learns: the data's fault as much as the mask's.
    Scenario("eighth-train-masked-class", MATHS, "https://arxiv.org/abs/2003.05176", masked_class, Setup(batch=2),
             ONE, also=("DATA_LABEL",)),
    Scenario("eighth-train-normaliser", MATHS, GITHUB + "facebookresearch/detectron2/blob/main/detectron2/modeling",
             normaliser, Setup(model="retina", batch=1), ONE, also=("NORM_STATE", "DATA_BOX")),
)  # fmt: skip
EIGHTH_TRAIN: tuple[Scenario, ...] = (*RATES, *PRECISION, *CODE)
