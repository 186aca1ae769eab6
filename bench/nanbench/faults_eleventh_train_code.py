"""Runs of the project's own trainer, an eleventh round: terms and modules of people's own, and half precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.faults_code import Losses, losses
from nanbench.faults_eighth_train_more import seen_by
from nanbench.faults_fresh import after
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample

ONE = Culprit(image=True)
HALF, MATHS, NORM = "FP16_OVERFLOW", "LOSS_MATH", "NORM_STATE"
GITHUB, TORCH = "https://github.com/", "https://pytorch.org/docs/stable/"


def with_boxes(scene: Scene, boxes: Tensor) -> None:
    """The bad picture's objects are these, and its masks fit them."""
    image, target = scene.samples[scene.culprit]
    masks = torch.zeros_like(target["masks"])
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = 1
    scene.samples[scene.culprit] = image, {**target, "boxes": boxes, "masks": masks}


def correlation(scene: Scene) -> None:
    """How sizes and scores go together, over the objects of each picture; one has objects of one size."""
    for _, target in scene.samples:
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        if float(sides.prod(1).diff().abs().min()) == 0:
            target["boxes"][0, 2] -= 1
    with_boxes(scene, torch.tensor([[4.0, 6.0, 24.0, 30.0], [30.0, 20.0, 50.0, 44.0]]))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        bias, total = model.roi_heads.box_predictor.bbox_pred.bias, terms["loss_classifier"].new_zeros(())
        for t in targets:
            x = (t["boxes"][:, 2:] - t["boxes"][:, :2]).prod(1) / 1000
            y = bias[: len(x)] + torch.arange(len(x))
            x, y = x - x.mean(), y - y.mean()
            total = total + (x * y).mean() / (x.square().mean().sqrt() * y.square().mean().sqrt())
        return {**terms, "loss_order": 0.01 * (1 - total / len(targets))}

    losses(change)(scene)


def counted(scene: Scene) -> None:
    """The likelihood of how many objects there are, with lgamma(n) for lgamma(n + 1); a picture has none."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=0)

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        n = torch.tensor([float(len(t["boxes"])) for t in targets])
        rate = (model.head.classification_head.cls_logits.bias.mean() + 5).exp()
        return {**terms, "loss_count": 0.01 * (rate - n * rate.log() + torch.lgamma(n)).mean()}

    losses(change)(scene)


def at_the_edge(scene: Scene) -> None:
    """Left edges between -1 and 1, stretched by atanh; one object begins where the picture does."""
    with_boxes(scene, torch.tensor([[0.0, 10.0, 22.0, 30.0], [30.0, 20.0, 50.0, 44.0]]))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        wanted = torch.cat([t["boxes"][:, 0] for t in targets]) / 32 - 1
        bias = model.head.regression_head.bbox_reg.bias.mean()
        return {**terms, "loss_edge": 0.01 * (bias - wanted.atanh()).abs().mean()}

    losses(change)(scene)


def von_mises(scene: Scene) -> None:
    """Angles that are the surer the wider an object is: log of a Bessel function, which ends at about 90."""
    with_boxes(scene, torch.tensor([[1.0, 2.0, 62.0, 60.0], [30.0, 20.0, 50.0, 44.0]]))

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        sure = 1.6 * torch.cat([t["boxes"][:, 2] - t["boxes"][:, 0] for t in targets])
        angle = model.roi_heads.box_predictor.bbox_pred.bias.mean()
        return {**terms, "loss_angle": 0.001 * (torch.special.i0(sure).log() - sure * angle.cos()).mean()}

    losses(change)(scene)


def penalty(scene: Scene) -> None:
    """A gradient penalty by the root of a sum of squares; the padding is left out before the root is taken."""

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        x = torch.rand(2, 3, 32, 32).requires_grad_()
        slope = torch.autograd.grad(model.backbone(x)["0"].sum(), x, create_graph=True)[0]
        inside = torch.ones(32).index_fill(0, torch.arange(28, 32), 0.0)
        size = (slope * inside).square().sum(1).sqrt()
        return {**terms, "loss_slope": 1e-3 * (size - 1).square().mean()}

    losses(change)(scene)


def heading(scene: Scene) -> None:
    """An object's heading from a sine and a cosine; both begin at exactly 0."""

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        sine, cosine = model.head.regression_head.bbox_reg.bias[:2]
        length = (sine.square() + cosine.square()).sqrt()
        return {**terms, "loss_heading": 0.01 * (1 - cosine / length) + 0.01 * torch.atan2(sine, cosine).square()}

    losses(change)(scene)


CODE = (
    Scenario("eleventh-code-correlation", MATHS,
             "https://lightning.ai/docs/torchmetrics/stable/regression/pearson_corrcoef.html", correlation,
             Setup("adamw", model="faster", norm="group", batch=2), ONE),
    Scenario("eleventh-code-counted", MATHS, TORCH + "generated/torch.nn.PoissonNLLLoss.html", counted,
             Setup(model="fcos", norm="batch", batch=2), ONE),
    Scenario("eleventh-code-at-the-edge", MATHS, GITHUB + "csuhan/s2anet/issues/107", at_the_edge,
             Setup("lion", model="retina", batch=1), ONE),
    Scenario("eleventh-code-von-mises", MATHS, TORCH + "special.html", von_mises,
             Setup(precision="bf16"), ONE),
    Scenario("eleventh-code-gradient-penalty", MATHS, "https://arxiv.org/abs/1704.00028", penalty,
             Setup("adam", model="fcos", norm="group", batch=2), onset=0, verdict=True),
    Scenario("eleventh-code-heading", MATHS, GITHUB + "lilanxiao/Rotated_IoU/issues/20", heading,
             Setup(model="retina", batch=2), onset=0, verdict=True),
)  # fmt: skip


class Orthogonal(nn.Module):
    """Weights brought to the nearest rotation by a singular value decomposition; all values are 1 to begin with."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        u, _, v = torch.linalg.svd(self.weight.float())
        return x + 0.1 * F.conv2d(x, (u @ v)[:, :, None, None].to(x.dtype))


class SignedRoot(nn.Module):
    """The root of the size, with the sign, as a bilinear pooling ends. Behind a dropout much is exactly 0."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout2d(x, 0.2, self.training)
        return x.sign() * x.abs().sqrt()


class Exposure(nn.Module):
    """Gain by how bright a picture is, as an exponential: of a white one it is infinite."""

    def forward(self, x: Tensor) -> Tensor:
        bright = x.mean((1, 2, 3), keepdim=True).relu()
        return x * (60 * bright).exp()


def exposed(scene: Scene) -> None:
    """One picture was taken against the light."""
    body: Any = scene.model.get_submodule("backbone.body")
    body["layer1"] = nn.Sequential(Exposure(), body["layer1"])
    scene.samples[scene.culprit][0].mul_(0.05).add_(0.94)


class Kernel(nn.Module):
    """Linear attention: features behind a ReLU in place of exponentials, divided by their sum."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.key, self.query = nn.Conv2d(channels, 2, 1), nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        k, q, v = self.key(x).relu().flatten(2), self.query(x).relu().flatten(2), x.flatten(2)
        seen = torch.einsum("nkp,ncp->nkc", k, v)
        out = torch.einsum("nkp,nkc->ncp", q, seen) / torch.einsum("nkp,nk->np", q, k.sum(2))[:, None]
        return x + 0.1 * out.view_as(x)


class Summed(nn.Module):
    """A running mean that forgets to take a share of what it had: it becomes 30 times as large with each batch."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        mean = self.get_buffer("mean")
        if self.training:
            mean.mul_(30).add_(x.detach().abs().mean((0, 2, 3)))
        return x - 1e-9 * mean[:, None, None]


class Sharpened(nn.Module):
    """x to a power that grows by one with each epoch; features a little above 1 have no end."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        power = 1.0 + max(0, self.scene.step - 9) * (self.training and self.scene.active)
        return (1.6 * x + 0.5).relu().pow(3 * power) if power > 1 else x


MODULES = (
    Scenario("eleventh-module-orthogonal", MATHS, TORCH + "generated/torch.linalg.svd.html",
             after("backbone.body.layer2", lambda s: Orthogonal(16)), Setup("adamw", model="faster", batch=2), onset=0,
             verdict=True),
    Scenario("eleventh-module-signed-root", MATHS, "https://arxiv.org/abs/1504.07889",
             after("roi_heads.mask_head", lambda s: SignedRoot()), Setup(norm="group", batch=1), onset=0,
             verdict=True),
    Scenario("eleventh-module-exposure", MATHS, "https://arxiv.org/abs/2001.06826", exposed,
             Setup("adamw", model="keypoint", batch=2), ONE),
    Scenario("eleventh-module-kernel", MATHS, "https://arxiv.org/abs/2006.16236",
             after("backbone.body.layer3", lambda s: Kernel(24)), Setup("adamax", model="retina", batch=2), onset=0,
             verdict=True),
    # A buffer that runs away by the model's own code: state and formula are both words for it.
    Scenario("eleventh-module-summed", MATHS, GITHUB + "myshell-ai/MyShell-TTS-Subnet/pull/10",
             after("backbone.body.layer2", lambda s: Summed(16)), Setup(batch=2), onset=7,
             also=(NORM, "POISONED_STATE"), verdict=True),
    # Too steep a function as much as too long a step.
    Scenario("eleventh-module-sharpened", MATHS, GITHUB + "mihaidusmanu/d2-net/issues/78",
             after("roi_heads.box_head", Sharpened), Setup("adamw", norm="batch", batch=2), onset=10,
             also=("LR_TOO_HIGH", "UNKNOWN"), verdict=True),
)  # fmt: skip


class Integral(nn.Module):
    """Sums over everything left of and above a place, in thousandths: beyond half precision at once."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        down, right = x.new_ones(height, height).tril(), x.new_ones(width, width).triu()
        sums = torch.matmul(torch.matmul(down, 1000 * x.abs()), right)
        return x + 0.1 * sums / (1000.0 * height * width)


class LogitScale(nn.Module):
    """Scores by a scale that is raised each step, and taken out again behind them."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        scale = math.exp(0.8 * (self.scene.step if self.scene.active else 0))
        return (scale * x) / scale


def product(scene: Scene) -> None:
    """How sure 32 places are together, against their mean: a product that is 0 in half precision, and its log."""
    seen = seen_by(scene, "rpn.head.cls_logits")

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        places = seen[0].flatten()[:32]
        sure = (places - places.detach().mean()).sigmoid()
        together = sure[:8]
        for n in range(8, 32, 8):
            together = together * sure[n : n + 8]
        for n in (4, 2, 1):
            together = together[:n] * together[n:]
        return {**terms, "loss_sure": -1e-4 * together.log().float().sum()}

    losses(change)(scene)


def finite_and_wrong(module: str, start: int) -> Callable[[Scene], None]:
    """One module is compiled, and from ``start`` on what it gives is finite and of no use."""

    def fault(scene: Scene) -> None:
        def compiler(graph: Any, _: Any) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                out = graph.forward(*args)
                return tuple(o * 1e9 for o in out) if scene.active and scene.step >= start else out

            return run

        scene.model.get_submodule(module).compile(backend=compiler, dynamic=False)

    return fault


PRECISION = (
    Scenario("eleventh-half-integral", HALF, GITHUB + "neuroneural/brainchop-cli/pull/56",
             after("backbone.body.layer2", lambda s: Integral()), Setup(precision="fp16", model="fcos", norm="group"),
             Culprit(("backbone",)), onset=0),
    Scenario("eleventh-half-logit-scale", HALF, "https://arxiv.org/abs/2103.00020",
             after("roi_heads.box_head.fc7", LogitScale), Setup("adamw", precision="fp16", batch=2),
             Culprit(("box_head",)), onset=12),
    # Too small for half precision, where another thing is too large: the precision all the same, or its formula.
    Scenario("eleventh-half-product", HALF, GITHUB + "microsoft/onnxruntime/issues/29034", product,
             Setup("adamw", precision="fp16", model="keypoint"), onset=0, also=(MATHS,)),
    Scenario("eleventh-compiled-finite", "BACKEND", GITHUB + "pytorch/pytorch/issues/114109",
             finite_and_wrong("backbone.body.layer3", 15), Setup(norm="group", batch=2),
             Culprit(("backbone",), "backbone.body.layer3"), onset=15),
)  # fmt: skip
ELEVENTH_TRAIN_CODE: tuple[Scenario, ...] = (*CODE, *MODULES, *PRECISION)
