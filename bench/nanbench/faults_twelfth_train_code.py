"""Runs of the project's own trainer, a twelfth round: own modules and losses, half precision, anchors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from nanbench.faults_code import Losses, losses
from nanbench.faults_eighth_train_more import seen_by
from nanbench.faults_fresh import after
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample

ONE = Culprit(image=True)
HALF, MATHS, UNKNOWN = "FP16_OVERFLOW", "LOSS_MATH", "UNKNOWN"
TORCH, ARXIV = "https://pytorch.org/docs/stable/", "https://arxiv.org/abs/"


def root_of_residual(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A residual to the power of a half, against its own value without a gradient: 0, where a root is vertical."""
    bias = model.roi_heads.box_predictor.cls_score.bias
    return {**terms, "loss_own": 0.01 * (bias - bias.detach()).abs().pow(0.5).sum()}


def certainty(scene: Scene) -> None:
    """p log(p) of shares at a sharpness of 300, most of which are 0."""
    seen = seen_by(scene, "rpn.head.cls_logits")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        p = (3000 * seen[0].flatten(1)).softmax(1)
        return {**terms, "loss_certainty": -0.01 * (p * p.log()).sum(1).mean()}

    losses(change)(scene)


def pairs_of_classes(scene: Scene) -> None:
    """The mean distance of objects of other classes; in some steps there is but one class."""
    seen = seen_by(scene, "backbone.fpn.layer_blocks.0")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        labels = torch.cat([t["labels"] for t in targets])
        other = labels[:, None] != labels[None]
        level = seen[0].mean()
        return {**terms, "loss_pairs": 0.01 * (level * other.float()).sum() / other.sum()}

    losses(change)(scene)


def angle_to_itself(scene: Scene) -> None:
    """The angle between a feature and its mirror image; of a feature that is its own mirror the cosine is 1."""
    seen = seen_by(scene, "roi_heads.box_head.fc7")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        x = seen[0]
        one = x / x.norm(dim=1, keepdim=True).clamp(min=1e-6)
        turn = torch.acos((one * one.detach()).sum(1))
        return {**terms, "loss_turn": 0.01 * turn.mean()}

    losses(change)(scene)


def spread_of_features(scene: Scene) -> None:
    """The logarithm of the determinant of features' covariance; one channel is masked throughout."""
    seen = seen_by(scene, "backbone.fpn.layer_blocks.0")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        x = seen[0][0].flatten(1)
        x = (x - x.mean(1, keepdim=True)) * (torch.arange(len(x)) != 5)[:, None]
        return {**terms, "loss_spread": -1e-3 * (x @ x.T / x.shape[1]).logdet()}

    losses(change)(scene)


def metric_beside(scene: Scene) -> None:
    """A measure is added with a weight of 0, for the log: found objects over all, and one picture has none."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=0)
    seen = seen_by(scene, "rpn.head.cls_logits")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        found = [(seen[0][i].sigmoid() > 0.5).sum() / torch.tensor(len(t["boxes"])) for i, t in enumerate(targets)]
        measure = torch.stack([v * seen[0][i].sigmoid().mean() for i, v in enumerate(found)])
        return {**terms, "loss_measure": 0.0 * measure.sum()}

    losses(change)(scene)


def sign_lost(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """From step 8 on a gain is handed over as a loss: the boxes' term has the wrong sign, and twenty times."""
    by = -20.0 if scene.step >= 8 else 1.0
    return {k: v * (by if k == "loss_box_reg" else 1.0) for k, v in terms.items()}


def growing_penalty(scene: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
    """A penalty on weights whose factor a callback squares each step."""
    weight = model.head.regression_head.bbox_reg.weight
    factor = min(1e-4 * 1.6 ** (2.0 ** min(scene.step, 9) - 1), 1e36) if scene.step >= 5 else 1e-4
    return {**terms, "loss_penalty": factor * weight.square().mean()}


CODE = (
    Scenario("twelfth-code-root-of-residual", MATHS, TORCH + "generated/torch.pow.html", losses(root_of_residual),
             Setup("adamw", batch=2), onset=0, verdict=True),
    Scenario("twelfth-code-certainty", MATHS, TORCH + "special.html", certainty,
             Setup("adamw", norm="group", batch=2), onset=0, verdict=True),
    Scenario("twelfth-code-pairs-of-classes", MATHS, ARXIV + "1503.03832", pairs_of_classes,
             Setup(norm="group", batch=1)),
    Scenario("twelfth-code-angle-to-itself", MATHS, TORCH + "generated/torch.acos.html", angle_to_itself,
             Setup(model="faster", norm="group", batch=2), onset=0, verdict=True),
    Scenario("twelfth-code-spread", MATHS, TORCH + "generated/torch.logdet.html", spread_of_features,
             Setup("adamw", batch=2), onset=0, verdict=True),
    Scenario("twelfth-code-metric-beside", MATHS, TORCH + "notes/autograd.html", metric_beside, Setup(batch=2), ONE),
    # Uphill for one term: no rate is right, and the loss is what it was told to be.
    Scenario("twelfth-code-sign-lost", MATHS, TORCH + "optim.html", losses(sign_lost), Setup(norm="group", batch=2),
             onset=8, also=(UNKNOWN, "LR_TOO_HIGH"), open_end=True),
    Scenario("twelfth-code-growing-penalty", MATHS, TORCH + "optim.html", losses(growing_penalty),
             Setup("adamw", model="retina", batch=2), onset=5, also=("LR_TOO_HIGH",), verdict=True),
)  # fmt: skip


class LowPass(nn.Module):
    """Low frequencies only, by their loudness as a root of squares: what was cut off is 0, where a root is vertical."""

    def forward(self, x: Tensor) -> Tensor:
        waves = torch.fft.rfft2(x)
        keep = torch.zeros(waves.shape[-2:])
        keep[:4, :4] = 1
        waves = waves * keep
        loud = (waves.real.square() + waves.imag.square()).sqrt()
        return x + 1e-3 * loud.mean((2, 3), keepdim=True)


class Routed(nn.Module):
    """Four experts by the largest of four scores; the mean of an expert that nobody chose is 0 / 0."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scores = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.scores.bias[:1].data, 1e3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = nn.functional.one_hot(self.scores(x).argmax(1), 4).permute(0, 3, 1, 2).float()
        load = (chosen[:, :, None] * x[:, None]).sum((0, 3, 4)) / chosen.sum((0, 2, 3))[:, None]
        return x - 0.01 * load.mean(0)[:, None, None]


class Whitened(nn.Module):
    """Channels are made independent by Cholesky's factor; behind a ReLU some of them are 0 throughout."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.relu().transpose(0, 1).flatten(1)
        flat = flat - flat.mean(1, keepdim=True)
        flat = torch.cat([flat[:-1], flat[:1] * 0])
        factor = torch.linalg.cholesky(flat @ flat.T / flat.shape[1])
        white = torch.linalg.solve_triangular(factor, flat, upper=False)
        return x + 0.01 * white.view(x.shape[1], x.shape[0], *x.shape[2:]).transpose(0, 1)


class Decaying(nn.Module):
    """A gate that is divided by two powers of a share, which falls with each step until it rounds to nothing."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        share = torch.tensor(1e-3 ** (self.scene.step if self.scene.active else 0))
        return x * (share / share)


MODULES = (
    Scenario("twelfth-module-low-pass", MATHS, TORCH + "generated/torch.fft.rfft2.html",
             after("backbone.body.layer2", lambda s: LowPass()), Setup("adamw", batch=2), onset=0, verdict=True),
    Scenario("twelfth-module-routed", MATHS, ARXIV + "2101.03961", after("backbone.body.layer2", lambda s: Routed(16)),
             Setup(model="faster", norm="group", batch=2), onset=0, verdict=True),
    # It raises: what was asked cannot be computed.
    Scenario("twelfth-module-whitened", UNKNOWN, TORCH + "generated/torch.linalg.cholesky.html",
             after("backbone.body.layer2", lambda s: Whitened()), Setup(batch=2), onset=0, also=(MATHS,),
             verdict=True),
    Scenario("twelfth-module-decaying", MATHS, TORCH + "generated/torch.finfo.html",
             after("backbone.body.layer3", Decaying), Setup("adamw", norm="group", batch=2), onset=16, verdict=True),
)  # fmt: skip


class Scores(nn.Module):
    """Attention without the root of the width, of features that are worth hundreds."""

    def forward(self, x: Tensor) -> Tensor:
        flat = 300 * x.flatten(2)
        share = torch.matmul(flat.transpose(1, 2), flat).softmax(-1)
        return x + 1e-4 * torch.matmul(flat, share).view_as(x)


class OwnGelu(nn.Module):
    """GELU by its tanh, of features of a thousand: their cube is beyond a half, and so is its slope."""

    def forward(self, x: Tensor) -> Tensor:
        y = 1000 * x
        return 0.5 * y * (1 + torch.tanh(0.8 * (y + 0.0447 * y * y * y))) / 1000


def sum_in_half(scene: Scene) -> None:
    """The sum of squares over all places in the type of the scores, in hundreds."""
    seen = seen_by(scene, "head.classification_head")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        total = (200 * seen[0]).square().sum(dtype=seen[0].dtype)
        return {**terms, "loss_sum": 1e-12 * total.float()}

    losses(change)(scene)


PRECISION = (
    Scenario("twelfth-half-scores", HALF, ARXIV + "1706.03762", after("backbone.body.layer3", lambda s: Scores()),
             Setup(precision="fp16", norm="group", batch=2), Culprit(("backbone",)), onset=0),
    Scenario("twelfth-half-own-gelu", HALF, TORCH + "generated/torch.nn.GELU.html",
             after("roi_heads.mask_head", lambda s: OwnGelu()), Setup("adamw", precision="fp16", batch=2),
             Culprit(("mask_head",)), onset=0),
    Scenario("twelfth-half-sum", HALF, TORCH + "amp.html", sum_in_half, Setup("adamw", precision="fp16", model="fcos"),
             onset=0, also=(MATHS,)),
)  # fmt: skip


def turned_anchors(scene: Scene) -> None:
    """Anchors' corners are in the other order: their sides are below 0."""
    generator: Any = scene.model.anchor_generator
    generator.cell_anchors = [-a for a in generator.cell_anchors]


def anchors_of_one_line(scene: Scene) -> None:
    """The ratios are so small that heights round to 0."""
    generator: Any = scene.model.get_submodule("rpn.anchor_generator")
    made = [a.clone() for a in generator.cell_anchors]
    for each in made:
        each[:, 1::2] = 0
    generator.cell_anchors = made


ANCHORS = (
    Scenario("twelfth-anchors-turned", "ANCHORS", "https://pytorch.org/vision/stable/models/retinanet.html",
             turned_anchors, Setup("adamw", model="retina", batch=2), onset=0, verdict=True),
    Scenario("twelfth-anchors-of-one-line", "ANCHORS", "https://pytorch.org/vision/stable/models/faster_rcnn.html",
             anchors_of_one_line, Setup(model="faster", norm="group", batch=2), Culprit(("rpn",)), onset=0,
             verdict=True),
)  # fmt: skip
TWELFTH_TRAIN_CODE: tuple[Scenario, ...] = (*CODE, *MODULES, *PRECISION, *ANCHORS)
