"""Losses and modules of a seventh round, written by hand: powers, angles, transport, margins, penalties, half sums."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.faults_code import Losses, losses
from nanbench.faults_fifth_data import Fault, drawn
from nanbench.faults_forms import picture
from nanbench.faults_fourth import at_image
from nanbench.faults_fresh import after
from nanbench.faults_seventh_data import added
from nanbench.scenario import Culprit, Scenario
from nanbench.scene import Scene, Setup
from nanbench.tiny import sample

NAN, INF = float("nan"), float("inf")
ONE = Culprit(image=True)
MATHS, HALF = "LOSS_MATH", "FP16_OVERFLOW"
Terms = Callable[[Scene, Any, Tensor, Tensor, Losses], Losses]


def own_terms(change: Terms) -> Fault:
    """A task's losses pass through ``change(scene, model, output, target, losses)`` in training."""

    def fault(scene: Scene) -> None:
        model: Any = scene.model
        usual = model.terms
        model.terms = lambda out, y: (
            change(scene, model, out, y, usual(out, y)) if scene.active and model.training else usual(out, y)
        )

    return fault


def black(image: Tensor) -> Tensor:
    """Nothing but black."""
    return image * 0


def grey(image: Tensor) -> Tensor:
    """One colour, the mean that is taken out."""
    return image * 0 + 0.45


def powered(model: Any, z: Tensor) -> Tensor:
    """Focal loss of a certainty that rounding has put above 1: a negative number to the power of 1.5."""
    return 0.1 * (1 - z).pow(1.5)


def margin(model: Any, z: Tensor) -> Tensor:
    """The angle of a cosine that rounding has put above 1."""
    return 0.01 * torch.cos(torch.acos(z) + 0.5)


def transport(model: Any, z: Tensor) -> Tensor:
    """A row and a column of a transport plan, exp(-cost / 0.01) of which is 0: 1 / 0, times 0."""
    kernel = (-z / 0.01).exp()
    return 0.01 * (1 / kernel) * kernel * z


def factor(model: Any, z: Tensor) -> Tensor:
    """The Cholesky factor of a covariance of two rows that are alike: it raises."""
    one = torch.ones(2, 2) - (1 - z.abs().clamp(max=1)) * (1 - torch.eye(2)) + (z - z.detach())
    return 0.01 * torch.linalg.cholesky(one - 1e-3 * torch.eye(2)).diagonal().log().sum().abs()


def teacher(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """Distillation: a student whose logits carry the teacher's mask of -inf, and 0 * (log 0 - -inf) where it stands."""
    blocked = torch.zeros_like(out).index_fill(1, torch.tensor([2]), 1.0).bool() & (y == 0)[:, None]
    wise = out.detach().masked_fill(blocked, -INF).softmax(1)
    known = out.masked_fill(blocked, -INF).log_softmax(1)
    return {**terms, "distilled": 0.1 * (wise * (wise.log() - known)).sum(1).mean()} if s.step >= 6 else terms


def raw_spread(s: Scene) -> None:
    """The divergence of a deviation that the net gives as it is: the logarithm of numbers below 0."""
    s.model.divergence = lambda m, d: 0.5 * (m.square() + d.square() - 2 * d.log() - 1).mean()  # type: ignore


def cold(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """Likeness of every two outputs over a temperature that is annealed; exponentials without their greatest."""
    heat = max(0.5 * 0.6**s.step, 1e-4)
    unit = F.normalize(out.float(), dim=1)
    each = (unit @ unit.T / heat).exp()
    same = (y[:, None] == y[None]).float()
    return {**terms, "likeness": -0.01 * ((each * same).sum(1) / each.sum(1)).log().mean()}


def rarest(scene: Scene) -> None:
    """Weights of 1 / count, counted on a part of the data where the last class was not; one map has it."""
    for place, (_, target) in enumerate(scene.samples):
        target["labels"].clamp_(max=2)
        if place == scene.culprit:
            target["labels"][-1] = 3
    weights = 1 / torch.tensor([3.0, 1.0, 1.0, 0.0])

    def change(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
        return {"ce": F.cross_entropy(out.float(), y, weights, ignore_index=255)}

    own_terms(change)(scene)


def half_sums(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """Dice over all pixels of a batch, whose sums are half precision's: beyond 65504."""
    if not torch.is_autocast_enabled("cpu"):
        out, kind = out.float(), torch.float32
    else:
        kind = torch.float16
    share = (4 * F.one_hot(y.clamp(max=3), 4).permute(0, 3, 1, 2).to(kind), 4 * out.softmax(1).to(kind) + 1)
    both = (share[0] * share[1]).sum()
    return {**terms, "dice": 0.1 * (1 - 2 * both / (share[0].sum() + share[1].sum())).float()}


def with_itself(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """A triplet whose nearest of the same class may be the picture itself: a root of 0."""
    away = (out[:, None] - out[None]).square().sum(2).sqrt()
    same = y[:, None] == y[None]
    near = away.masked_fill(~same, -INF).amax(1)
    return {**terms, "triplet": 0.1 * near.mean()}


def rooted(scene: Scene) -> None:
    """The penalty's length without an eps; a black picture is padding all over, and has no gradient at all."""
    scene.model.length = lambda g: g.flatten(1).square().sum(1).sqrt()  # type: ignore[assignment]
    drawn({0: picture(black)})(scene)


def unit_features(scene: Scene) -> None:
    """Features of length 1; a grey picture has none, for its mean is taken out and no layer has a bias."""
    model: Any = scene.model
    usual = model.features

    def features(x: Tensor) -> Tensor:
        out = usual(x)
        return 3 * out / out.norm(dim=1, keepdim=True) if scene.active else 3 * F.normalize(out, dim=1)

    model.features = features
    drawn({0: picture(grey)})(scene)


def prior_of_nothing(scene: Scene) -> None:
    """The bias of a head that was put in, -log((1 - prior) / prior), for a prior of 0."""
    head: Any = scene.model.head
    nn.init.constant_(head.classification_head.cls_logits.bias, -INF)


class Smooth(torch.autograd.Function):
    """x / (1 - exp(-x)), whose derivative was written by hand, and is 0 / 0 at 0."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(x)
        return torch.where(x == 0, torch.ones_like(x), x / (1 - (-x).exp()))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        (x,) = ctx.saved_tensors
        e = (-x).exp()
        return gradient * (1 - e - x * e) / (1 - e).square()


class Smoothed(nn.Module):
    """`Smooth` of what is above 0: many values are exactly 0."""

    def forward(self, x: Tensor) -> Tensor:
        return Smooth.apply(x * (x.detach() > 0))  # pyright: ignore[reportReturnType]


class Turned(torch.autograd.Function):
    """Passes on, and turns the gradient round by a strength."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:  # pyright: ignore
        ctx.strength = strength
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        return -gradient * ctx.strength, None


class Reversal(nn.Module):
    """A gradient of a strength that is the share of the steps that are left: from step 12 on 0 / 0."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        left = torch.tensor(float(max(0, 12 - self.scene.step))) if self.scene.active else torch.tensor(1.0)
        return Turned.apply(x, float(-left / left))  # pyright: ignore[reportReturnType]


class Overwrites(nn.Module):
    """A square root whose result is changed in place from step 7 on: the backward pass needs what was there."""

    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene

    def forward(self, x: Tensor) -> Tensor:
        out = (x.square() + 1).sqrt()
        return out.mul_(0.5) if self.scene.active and self.scene.step >= 7 else out * 0.5


def norm_of_one(scene: Scene) -> None:
    """BatchNorm over the pooled features, and one picture a batch: it raises."""
    model: Any = scene.model
    model.head = nn.Sequential(nn.BatchNorm1d(24), model.head)


def fills_half(scene: Scene) -> None:
    """A mask of -1e9, in half precision: no such number there, it raises."""
    scene.model.lowest = -1e9  # type: ignore[assignment]


def averaged_weights(scene: Scene) -> None:
    """Each term divided by its value a step ago; a picture without objects has terms of exactly 0."""
    scene.samples[scene.culprit] = sample(scene.bad_id, objects=0)
    seen: dict[str, Any] = {"step": -1, "last": {}, "now": {}}

    def change(s: Scene, model: Any, terms: Losses, targets: Any) -> Losses:
        if s.step != seen["step"]:
            seen.update(step=s.step, last=seen["now"])
        seen["now"] = {k: v.detach() for k, v in terms.items()}
        return {k: 0.2 * v / seen["last"].get(k, 1.0) for k, v in terms.items()}

    losses(change)(scene)


def nothing_to_read(scene: Scene) -> None:
    """Padding is masked by -inf; one row has nothing but padding: the softmax of nothing."""
    scene.model.lowest = -INF  # type: ignore[assignment]
    drawn({0: added("words", lambda t: torch.zeros(0, dtype=torch.int64))})(scene)


SEVENTH_CODE: tuple[Scenario, ...] = (
    Scenario("seventh-focal-power", MATHS, "https://github.com/clcarwin/focal_loss_pytorch/issues/6",
             at_image(powered, 1.0000003, 0.5), Setup("adamw", model="retina", way="guard"), ONE),
    Scenario("seventh-margin", MATHS, "https://github.com/ronghuaiyang/arcface-pytorch/issues/32",
             at_image(margin, 1.0000003, 0.4), Setup(accumulate=2, model="own", way="attach"), ONE),
    Scenario("seventh-transport", MATHS, "https://github.com/Megvii-BaseDetection/OTA/issues/15",
             at_image(transport, 2.0, 0.3), Setup(accumulate=2, model="fcos", way="guard"), ONE),
    Scenario("seventh-cholesky", MATHS, "https://github.com/pytorch/pytorch/issues/92166",
             at_image(factor, 1.0, 0.3), Setup(norm="group", model="keypoint", way="guard"), ONE, also=("UNKNOWN",)),
    Scenario("seventh-teacher", MATHS, "https://github.com/pytorch/pytorch/issues/32520", own_terms(teacher),
             Setup("adamw", model="classify", way="guard"), onset=6, open_end=True),
    Scenario("seventh-raw-spread", MATHS, "https://github.com/pytorch/examples/issues/234", raw_spread,
             Setup("adam", model="encode", way="guard"), onset=0, verdict=True),
    Scenario("seventh-cold", MATHS, "https://github.com/mlfoundations/open_clip/issues/46", own_terms(cold),
             Setup(norm="group", model="classify", way="attach"), onset=8, open_end=True),
    # The data lose a class that the evaluation has.
    Scenario("seventh-rarest", MATHS, "https://github.com/pytorch/pytorch/issues/21558", rarest,
             Setup(model="segment", batch=2, way="guard"), ONE, open_end=True),
    # The sums stand in the loss's own lines: no module can be put into float32.
    Scenario("seventh-half-sums", HALF, "https://github.com/Project-MONAI/MONAI/issues/2107", own_terms(half_sums),
             Setup(precision="fp16", model="segment", way="attach"), onset=0, open_end=True),
    Scenario("seventh-with-itself", MATHS, "https://github.com/adambielski/siamese-triplet/issues/12",
             own_terms(with_itself), Setup(norm="group", model="classify", way="guard"), onset=0, verdict=True),
    Scenario("seventh-rooted-penalty", MATHS, "https://github.com/caogang/wgan-gp/issues/47", rooted,
             Setup("adam", model="critic", way="guard"), ONE),
    # A picture of one colour is not to be divided by either.
    Scenario("seventh-unit-features", MATHS, "https://github.com/facebookresearch/moco/issues/118", unit_features,
             Setup(model="classify", way="guard"), ONE, also=("DATA_PIXEL",)),
    Scenario("seventh-nothing-to-read", MATHS, "https://github.com/pytorch/pytorch/issues/41508", nothing_to_read,
             Setup("adamw", model="text", batch=2, way="guard"), ONE, also=("DATA_LABEL",)),
    Scenario("seventh-prior-of-nothing", "POISONED_STATE", "https://github.com/pytorch/vision/issues/2720",
             prior_of_nothing, Setup(model="retina", way="guard"),
             Culprit(module="head.classification_head.cls_logits"), onset=0, verdict=True),
    Scenario("seventh-smooth", MATHS, "https://github.com/pytorch/pytorch/issues/4132",
             after("neck", lambda s: Smoothed()), Setup(model="own", way="guard"), onset=0, verdict=True),
    Scenario("seventh-reversal", MATHS, "https://github.com/fungtion/DANN/issues/9", after("neck", Reversal),
             Setup("adamw", model="own", batch=2, way="guard"), onset=12, also=("UNKNOWN",), verdict=True),
    Scenario("seventh-overwrites", "UNKNOWN", "https://discuss.pytorch.org/t/inplace-operation-error/28163",
             after("neck", Overwrites), Setup(model="own", way="guard"), onset=7, verdict=True),
    Scenario("seventh-norm-of-one", "UNKNOWN", "https://github.com/pytorch/pytorch/issues/4534", norm_of_one,
             Setup(model="classify", batch=1, way="guard"), onset=0, also=("NORM_STATE",), verdict=True),
    Scenario("seventh-fills-half", HALF, "https://github.com/huggingface/transformers/issues/9372", fills_half,
             Setup("adamw", "fp16", model="text", way="attach"), onset=0, also=("UNKNOWN",), open_end=True),
    # Which picture it is comes to light a step after it: the formula is to blame. Its losses are no other run's.
    Scenario("seventh-averaged-weights", MATHS, "https://github.com/lorenmt/mtan/issues/17", averaged_weights,
             Setup(batch=1, way="guard"), open_end=True),
)  # fmt: skip
