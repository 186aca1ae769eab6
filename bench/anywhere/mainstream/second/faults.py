"""Losses, layers and loops that people write by hand; with the thread that one is known from, where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from anywhere.mainstream.faults import LATE, Fault
from anywhere.mainstream.second.numbers import Coupling
from anywhere.mainstream.second.views import patched, target_maps
from anywhere.mainstream.second.worlds import rendered
from anywhere.mainstream.task import Run
from torch import Tensor, nn
from torch.nn import functional as F

# --- logarithms, roots, quotients, exponents


def mean_of_tags(model: nn.Module, batch: Any) -> Tensor:
    """Each sentence's mean over its tags; one has none: https://github.com/meta-pytorch/torchtune/issues/2341"""
    each = F.cross_entropy(model(batch[0]).transpose(1, 2), batch[1], ignore_index=-100, reduction="none")
    return (each.sum(1) / (batch[1] != -100).sum(1)).mean()


def to_class_mean(model: Any, batch: Any) -> Tensor:
    """The distance to the mean of one's class in the batch, by the cosine: who is alone in it is at 0, or the root of
    what rounding leaves below 0. As in https://github.com/TreB1eN/InsightFace_Pytorch/issues/93"""
    z = F.normalize(model.net(batch[0]), dim=1)
    means = F.normalize(F.one_hot(batch[1], 4).float().T @ z, dim=1)
    return F.cross_entropy(-4 * (2 - 2 * z @ means.T).sqrt(), batch[1])


def sine_by_hand(model: Any, batch: Any) -> Tensor:
    """sqrt(1 - cos^2) of embeddings of one number, whose cosine is 1 or -1.
    https://github.com/ronghuaiyang/arcface-pytorch/issues/91"""
    z = F.normalize(model.net(batch[0])[:, :1])
    cosine = F.linear(z, F.normalize(model.weight[:, :1]))
    sine = (1 - cosine.square()).sqrt()
    right = F.one_hot(batch[1], 4).bool()
    return F.cross_entropy(12 * torch.where(right, cosine * math.cos(0.3) - sine * math.sin(0.3), cosine), batch[1])


def mixture_by_hand(model: nn.Module, batch: Any) -> Tensor:
    """-log(sum of shares times densities), of a y in other units: all densities round to 0.
    https://github.com/keras-team/keras/issues/2586"""
    shares, mean, spread = model(batch[0])
    density = (-0.5 * ((20 * batch[1] - mean) / spread.exp()).square()).exp() / (spread.exp() * math.sqrt(2 * math.pi))
    return -(shares.softmax(1) * density).sum(1).log().mean()


def spread_by_relu(model: nn.Module, batch: Any) -> Tensor:
    """Spreads that a ReLU makes 0. https://github.com/tonyduan/mixture-density-network/pull/4"""
    shares, mean, spread = model(batch[0])
    spread = spread.relu()
    each = -0.5 * ((batch[1] - mean) / spread).square() - spread.log()
    return -(shares.log_softmax(1) + each).logsumexp(1).mean()


class Unbounded(Coupling):
    """Scales are not held by a tanh: exp overflows. https://github.com/ELIFE-ASU/INNLab/issues/7"""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        scale, shift = (60 * self.net(a)).chunk(2, 1)
        y = torch.cat([a, b * scale.exp() + shift], 1)
        return (y.flip(1) if self.flip else y), scale[:, 0]


def unbounded(run: Run) -> None:
    """All couplings are."""
    model: Any = run.model
    model.steps = nn.ModuleList(Unbounded(bool(i % 2)) for i in range(6))


class Mixing(nn.Module):
    """An invertible linear layer by logdet, whose matrix begins at 0: log of 0."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.matrix = nn.Parameter(start)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.matrix, self.matrix.logdet().expand(len(x))


def singular(start: Tensor) -> Fault:
    """A flow begins with `Mixing`."""

    def fault(run: Run) -> None:
        model: Any = run.model
        model.steps.insert(0, Mixing(start.clone()))

    return fault


def focal_half(model: nn.Module, batch: Any) -> Tensor:
    """(1 - p)^0.5 of logits that are sure: https://github.com/kornia/kornia/issues/918"""
    logits, y = 60 * model(batch[0]), batch[1]
    bce = F.binary_cross_entropy_with_logits(logits, y, reduction="none")
    right = torch.where(y > 0.5, logits, -logits).sigmoid()
    return ((1 - right).pow(0.5) * bce).mean()


def shares_wanted(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross-entropy of shares, given logits: it refuses what is outside of 0..1."""
    return F.binary_cross_entropy(model(batch[0]), batch[1])


def over_events(model: nn.Module, batch: Any) -> Tensor:
    """Cox over the number of events, which is 0 in some small batches.
    https://github.com/havakv/pycox/issues/124, https://github.com/liupei101/TFDeepSurv/issues/15"""
    x, months, event = batch
    order = months.argsort(descending=True)
    risk, event = model(x)[order, 0], event[order]
    return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum()


def hazards(model: nn.Module, batch: Any) -> Tensor:
    """Cox by hand: the logarithm of a sum of exponents, of risks in the hundreds."""
    x, months, event = batch
    order = months.argsort(descending=True)
    risk, event = 400 * model(x)[order, 0], event[order]
    return -((risk - risk.exp().cumsum(0).log()) * event).sum() / event.sum().clamp(min=1)


def masked_by_product(model: nn.Module, batch: Any) -> Tensor:
    """The mask times the error of logarithms; where nothing was seen that is 0 * inf.
    https://github.com/zhengqili/MegaDepth/issues/38, https://github.com/ENSTA-U2IS-AI/LDU/issues/7"""
    off = (batch[1] > 0) * (model(batch[0]).float() - batch[1].log())
    return 10 * (off.square().mean() - 0.85 * off.mean().square()).sqrt()


def each_silog(model: nn.Module, batch: Any) -> Tensor:
    """The error of each picture by itself; one has no depth at all, and a mean of nothing."""
    image, metres = batch
    off, there = model(image).float() - metres.clamp(min=1e-3).log(), (metres > 0).float()
    count = there.sum((1, 2, 3))
    mean = (off * there).sum((1, 2, 3)) / count
    square = (off.square() * there).sum((1, 2, 3)) / count
    return 10 * (square - 0.85 * mean.square() + 1e-6).sqrt().mean()


def softmax_by_hand(model: nn.Module, batch: Any) -> Tensor:
    """Places as the mean under exp(map) / sum(exp(map)), of maps that were built too loud: inf / inf."""
    image, places, seen = batch
    shares = (1500 * model(image)).exp().flatten(2)
    shares = shares / shares.sum(2, keepdim=True)
    line = torch.arange(16.0)
    y, x = line.repeat_interleave(16), line.repeat(16)
    found = torch.stack([(shares * x).sum(2), (shares * y).sum(2)], 2)
    return ((found - places).abs().sum(2) * seen).mean()


def over_size(model: nn.Module, batch: Any) -> Tensor:
    """Errors over the distance of the two points, as OKS has it; in one picture both are one."""
    image, places, seen = batch
    size = (places[:, 0] - places[:, 1]).square().sum(1)
    each = (model(image) - target_maps(places)).square().mean((2, 3))
    return 20 * ((each * seen).sum(1) / size).mean()


def with_spread(model: Any, batch: Any) -> Tensor:
    """VICReg's term without its eps: the deviation over the batch of units of which one is pruned, and always 0."""
    x = batch[0]
    one, two = x + 0.1 * torch.randn_like(x), x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1))
    made, wanted = model(one, two)
    units = model.online[:2](one) * (torch.arange(32) != 3)
    return 1 - F.cosine_similarity(made, wanted).mean() + 0.1 * (1 - units.var(0).sqrt()).relu().mean()


def perplexity(model: Any, batch: Any) -> Tensor:
    """How many codes are used belongs to the loss: p * log(p) of soft choices that have rounded to 0."""
    made, z, nearest = model(batch[0])
    used = (-200 * torch.cdist(z, model.codes.weight).square()).softmax(1).mean(0)
    vq = F.mse_loss(nearest, z.detach()) + 0.25 * F.mse_loss(z, nearest.detach())
    return 10 * F.mse_loss(made, batch[0]) + vq + 0.1 * (used * used.log()).sum()


def unit_way(model: nn.Module, batch: Any) -> Tensor:
    """Ways are brought to length 1; that of one ray has none."""
    start, way = batch[0].chunk(2, 1)
    return rendered(model, (torch.cat([start, way / way.norm(dim=1, keepdim=True)], 1), batch[1]))


def dense_by_exp(model: Any, batch: Any) -> Tensor:
    """Density by exp, of a layer that is too loud; like https://github.com/Wanggcong/SparseNeRF/issues/6"""
    start, way = batch[0].chunk(2, 1)
    far = (torch.arange(12) + torch.rand(len(start), 12)) / 3
    places = start[:, None] + far[..., None] * way[:, None]
    out = model.net(torch.cat([f(k * places) for k in (1, 2, 4) for f in (torch.sin, torch.cos)], -1))
    dense = (400 * out[..., 0]).exp()
    through = torch.cat([torch.ones(len(start), 1), (-dense / 3).exp().cumprod(1)[:, :-1]], 1)
    opaque = 1 - (-dense / 3).exp()
    return F.mse_loss(((opaque * through)[..., None] * out[..., 1:].sigmoid()).sum(1), batch[1])


def root_of_place(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """sqrt(x) is a feature; one place is 0, where it has no slope."""
    x = batch[0].clone().requires_grad_(True)
    u = model(x) * x.sqrt()
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    return {"equation": (first - math.pi * (math.pi * x).cos()).square().mean()}


def by_group(model: nn.Module, batch: Any) -> Tensor:
    """GRPO: gains by the mean and deviation of their group, of which some have one member: std of one."""
    x, moves, before, _, gain = batch
    group = x[:, 3:5].gt(0).long() @ torch.tensor([1, 2])
    better = torch.zeros(len(x))
    for k in range(4):
        own = gain[group == k]
        better = better.masked_scatter(group == k, (own - own.mean()) / (own.std() + 1e-4))
    policy = torch.distributions.Categorical(logits=model(x)[0])
    return -((policy.log_prob(moves) - before).exp() * better).mean()


def router_entropy(model: Any, batch: Any) -> dict[str, Tensor]:
    """p * log(p) of a router that is sure."""
    out, _ = model(batch[0])
    gates = (300 * model.router(batch[0])).softmax(1)
    return {"class": F.cross_entropy(out, batch[1]), "sure": 0.01 * (gates * gates.log()).sum(1).mean()}


class Balled(nn.Module):
    """A cloud over its largest distance from its mean; one cloud is the same point over and over."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, points: Tensor, sizes: Tensor) -> Tensor:
        there = (torch.arange(points.shape[1]) < sizes[:, None])[..., None]
        mean = (points * there).sum(1, keepdim=True) / sizes[:, None, None]
        centred = (points - mean) * there
        return self.net(centred / centred.square().sum(2).amax(1).sqrt()[:, None, None], sizes)


def balled(run: Run) -> None:
    """`Balled`, and a cloud of zeros."""
    run.model = Balled(run.model)
    run.change_bad(0, lambda p: p * 0)


def no_eps(model: nn.Module, batch: Any) -> Tensor:
    """norm_pix_loss without its eps: a patch of one colour has no deviation."""
    patches = patched(batch[0])
    order = torch.rand(len(patches), 9).argsort(1)
    wanted = (patches - patches.mean(-1, keepdim=True)) / patches.std(-1, keepdim=True)
    each = (model(patches, order).float() - wanted).square().mean(-1)
    return each.gather(1, order[:, 3:]).mean()


def wrong_sign(model: nn.Module, batch: Any) -> Tensor:
    """The likelihood is made small."""
    return -model(batch[0])


# --- what a loop does


def not_detached(run: Run) -> None:
    """The state is handed on with its graph: https://www.codegenes.net/blog/detach-lstm-pytorch"""

    def keep(module: Any, args: Any, out: Any) -> None:
        module.left = out[1]

    run.model.register_forward_hook(keep)


def state_of_nan(run: Run) -> None:
    """What is handed on is NaN once."""
    run.at(LATE, lambda run: run.memory.update(state=tuple(s * math.nan for s in run.memory["state"])))


def in_place(model: Any, batch: Any) -> Tensor:
    """A tensor that the backward pass needs is written over."""
    h = model.encoder(batch[0]).sigmoid()
    loss = F.mse_loss(model.decoder(h).view_as(batch[0]), batch[0])
    h += 1
    return loss


def named(model: nn.Module, batch: Any) -> Tensor:
    """Weights of persons are looked up by name; one has none."""
    weights = {0: 1.0, 1: 1.0, 2: 1.2, 3: 0.8}
    weight = torch.tensor([weights[int(y)] for y in batch[1]])
    return (weight * F.cross_entropy(12 * model(batch[0]), batch[1], reduction="none")).mean()


def hooked(name: str, factor: float) -> Fault:
    """From step LATE on, a hook makes one weight's gradient so many times as long."""

    def fault(run: Run) -> None:
        change = lambda grad: grad * (factor if run.step >= LATE else 1.0)  # noqa: E731
        run.model.get_parameter(name).register_hook(change)

    return fault


def output_once(name: str, change: Callable[[Tensor], Tensor]) -> Fault:
    """What a module gives is another, once, at step LATE."""

    def fault(run: Run) -> None:
        done: list[int] = []

        def hook(module: Any, args: Any, out: Tensor) -> Tensor:
            if run.step != LATE or done or not run.active:
                return out
            done.append(LATE)
            return change(out)

        run.model.get_submodule(name).register_forward_hook(hook)

    return fault


# --- half precision


def sharp(run: Run) -> None:
    """The encoder's scores are not divided by the root of the width, and its queries are large."""
    block: Any = run.model.get_submodule("encoder.attn")
    block.scale = 1.0
    block.qkv.weight.data.mul_(600)


def half_mask(run: Run) -> None:
    """Attention is masked by -1e9, which half precision does not have."""
    for name in ("blocks.0.attn", "blocks.1.attn"):
        attn: Any = run.model.get_submodule(name)
        attn.forward = _Masked(attn)


class _Masked:
    def __init__(self, attn: Any) -> None:
        self.attn = attn

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        attn = self.attn
        n, t, c = x.shape
        q, k, v = attn.qkv(x).view(n, t, 3, attn.heads, -1).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1) * attn.scale).half()
        if mask is not None:
            scores = scores.masked_fill(mask, -1e9)
        return attn.out((scores.softmax(-1).to(v.dtype) @ v).transpose(1, 2).reshape(n, t, c))


def squares_in_half(run: Run, usual: Any) -> Any:
    """Squared errors of maps in 0..255, in half."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        image, places, seen = batch
        off = (255 * (model(image) - target_maps(places))).half()
        each = off.square().sum((2, 3))
        return (each.float() * seen).sum() / 65025

    return loss


def eps_in_half(model: nn.Module, batch: Any) -> Tensor:
    """log(p + 1e-8) in half, where 1e-8 is 0."""
    p = (40 * model(batch[0])).half().sigmoid()
    y = batch[1].half()
    return -(y * (p + 1e-8).log() + (1 - y) * (1 - p + 1e-8).log()).float().mean()
