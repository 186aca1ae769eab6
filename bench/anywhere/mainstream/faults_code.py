"""Losses and layers that people write by hand: logarithms, roots, quotients, exponents, masks, half precision."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream.faults import Fault, instead
from anywhere.mainstream.pictures import dice
from anywhere.mainstream.rivals import NOISE
from anywhere.mainstream.task import Run
from torch import Tensor, nn
from torch.nn import functional as F


def log_of_softmax(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy in two steps, of logits at a temperature of 0.02."""
    shares = (50 * model(batch[0])).softmax(1)
    return -shares.log().gather(1, batch[1][:, None]).mean()


def two_logs(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross-entropy in full, of shares that saturate: 0 * log(0)."""
    p, y = (60 * model(batch[0])).sigmoid(), batch[1]
    return -(y * p.log() + (1 - y) * (1 - p).log()).mean()


def root_of_distance(model: nn.Module, batch: Any) -> Tensor:
    """Contrastive, the distance a root of squares without an eps."""
    one, two, same = batch
    away = (model(one) - model(two)).square().sum(1).sqrt()
    return (same * away.square() + (1 - same) * (1 - away).clamp(min=0).square()).mean()


def twice(run: Run) -> None:
    """One pair is twice the same picture."""
    one, _, _ = run.rows[run.bad]
    run.rows[run.bad] = one, one.clone(), torch.tensor(1.0)


def angle(model: nn.Module, batch: Any) -> Tensor:
    """The angle between two embeddings."""
    one, two = F.normalize(model(batch[0]), dim=1), F.normalize(model(batch[1]), dim=1)
    away = torch.acos((one * two).sum(1).clamp(-1, 1))
    return (batch[2] * away.square() + (1 - batch[2]) * (1 - away).clamp(min=0).square()).mean()


def share_of_mask(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What of each mask is found, over its area: an empty one has none."""
    logits = model(batch[0]).float()
    found = (logits.sigmoid() * batch[1]).sum((1, 2, 3)) / batch[1].sum((1, 2, 3))
    return {"bce": F.binary_cross_entropy_with_logits(logits, batch[1]), "recall": (1 - found).mean()}


def log_dice(model: nn.Module, batch: Any) -> Tensor:
    """The logarithm of the overlap of rounded masks and their truth, which is 0 at first: log(0)."""
    shares = model(batch[0]).float().sigmoid()
    return -(1 - dice(shares * (shares > 0.7), batch[1], 0.0)).log().mean()


class Standard(nn.Module):
    """Each column by the batch's own mean and deviation."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(0)) / x.std(0)


class Whitened(nn.Module):
    """Each picture by its own mean and deviation."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)


def first(layer: nn.Module) -> Fault:
    """A layer before all others of a Sequential."""
    return lambda run: setattr(run, "model", nn.Sequential(layer, *run.model))  # pyright: ignore


def unit_by_hand(model: nn.Module, batch: Any) -> Tensor:
    """Embeddings over their lengths; a black picture has none where no layer has a bias."""
    x = batch[0]
    one, two = model(x), model(x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)))
    z = torch.cat([one, two])
    z = z / z.norm(dim=1, keepdim=True)
    likeness = (z @ z.T / 0.2).fill_diagonal_(-math.inf)
    return F.cross_entropy(likeness, (torch.arange(len(z)) + len(x)) % len(z))


def without_bias(model: Any) -> None:
    """No linear layer has one."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_parameter("bias", None)


def annealed(run: Run, usual: Any) -> Any:
    """The temperature falls linearly, and is 0 from step 30 on."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        t = max(0.0, 0.3 * (1 - run.step / 30)) if run.active else 0.2
        z = F.normalize(torch.cat([model(batch[0]), model(batch[0] + 0.1 * torch.randn_like(batch[0]))]), dim=1)
        likeness = (z @ z.T / t).fill_diagonal_(-math.inf)
        return F.cross_entropy(likeness, (torch.arange(len(z)) + len(z) // 2) % len(z))

    return loss


def by_signal(model: nn.Module, batch: Any) -> Tensor:
    """The noise's error over what noise there is; at time 0 there is none: 0 / 0, whenever a 0 is drawn."""
    x = 2 * batch[0] - 1
    t, noise = torch.randint(0, 50, (len(x),)), torch.randn_like(x)
    kept = model.get_buffer("kept")[t][:, None, None, None]
    seen = kept.sqrt() * x + (1 - kept).sqrt() * noise
    guess = (seen - kept.sqrt() * model(seen, t)) / (1 - kept).sqrt()
    return F.mse_loss(guess, noise)


def from_nothing(run: Run) -> None:
    """The schedule of the noise begins at 0."""
    kept = torch.cumprod(1 - torch.linspace(0, 0.15, 50), 0)
    run.model.get_buffer("kept").copy_(kept)


def kl_by_hand(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """p * (log p - log q), of a teacher that is so sure that its other shares are 0."""
    out, wanted = model(batch[0])
    p = (400 * wanted).softmax(1)
    soft = (p * (p.log() - out.log_softmax(1))).sum(1).mean()
    return {"soft": soft, "hard": F.cross_entropy(out, batch[1])}


def root_of_error(model: nn.Module, batch: Any) -> Tensor:
    """The root of the absolute error: at no error its slope is infinite."""
    return (model(batch[0], batch[1]) - batch[2]).abs().pow(0.5).mean()


def average_film(model: nn.Module) -> None:
    """All factors begin at 0, so that each guess is 3 stars."""
    for p in model.parameters():
        p.zero_()


class MeanOfMessages(nn.Module):
    """Messages over their number, which is 0 for a node that nobody points at."""

    def __init__(self, usual: Any) -> None:
        super().__init__()
        self.first, self.second, self.out = usual.first, usual.second, usual.out

    def forward(self, x: Tensor, edges: Tensor, owner: Tensor, count: int) -> Tensor:
        for layer in (self.first, self.second):
            h = layer(x).relu()
            degree = torch.zeros(len(h)).index_add_(0, edges[1], torch.ones(edges.shape[1]))
            x = torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]]) / degree[:, None]
        return self.out(torch.zeros(count, 16).index_add_(0, owner, x))


class MeanOfNodes(MeanOfMessages):
    """Nodes over their number, which is 0 for a graph without any."""

    def forward(self, x: Tensor, edges: Tensor, owner: Tensor, count: int) -> Tensor:
        h = self.second(self.first(x).relu()).relu()
        sizes = torch.zeros(count).index_add_(0, owner, torch.ones(len(h)))
        return self.out(torch.zeros(count, 16).index_add_(0, owner, h) / sizes[:, None])


def other_net(kind: Any) -> Fault:
    """The network is of another kind, made of the usual one."""
    return lambda run: setattr(run, "model", kind(run.model))


def no_nodes(run: Run) -> None:
    """One graph has no node."""
    run.rows[run.bad] = torch.zeros(0, 4), torch.zeros(2, 0, dtype=torch.int64), torch.tensor(0)


def relative(model: nn.Module, batch: Any) -> Tensor:
    """MAPE: the error over the truth."""
    return ((model(batch[0]) - batch[1]) / batch[1]).abs().clamp(max=1e4).mean()


def unclamped(model: nn.Module, batch: Any) -> Tensor:
    """MAPE as it is written."""
    return ((model(batch[0]) - batch[1]) / batch[1]).abs().mean()


def log_error(model: nn.Module, batch: Any) -> Tensor:
    """RMSLE: log(1 + x) of guesses that may be below -1."""
    return (torch.log(1 + 3 * model(batch[0])) - torch.log(4 + batch[1])).square().mean().sqrt()


def entropy_by_hand(model: nn.Module, batch: Any) -> Tensor:
    """p * log(p) of shares that have rounded to 0."""
    x, moves, rewards = batch
    logits, value = model(x)
    p = (80 * logits).softmax(1)
    gain = (logits.log_softmax(1).gather(1, moves[:, None])[:, 0] * (rewards - value).detach()).mean()
    return -gain + 0.5 * (rewards - value).square().mean() + 0.01 * (p * p.log()).sum(1).mean()


def standard_rewards(model: nn.Module, batch: Any) -> Tensor:
    """Rewards by their mean and deviation; where all got the same, 0 / 0."""
    x, moves, rewards = batch
    policy = torch.distributions.Categorical(logits=model(x)[0])
    return -(policy.log_prob(moves) * (rewards - rewards.mean()) / rewards.std()).mean()


def log_of_critic(gan: Any, batch: Any) -> Tensor:
    """log D(x) + log(1 - D(G(z))) as in the paper, of a critic that is soon sure."""
    real = (40 * gan.critic(batch[0])).sigmoid()
    made = (40 * gan.critic(gan.generator(torch.randn(len(batch[0]), NOISE)).sigmoid().detach())).sigmoid()
    return -(real.log() + (1 - made).log()).mean()


def rival(name: str, loss: Any) -> Fault:
    """One network's loss is another."""
    return lambda run: run.rivals.update({name: loss})


def sure(gan: Any, batch: Any) -> Tensor:
    """A penalty on the length of the critic's slope, a root of squares; at black pictures the slope is 0."""
    real = batch[0].clone().requires_grad_(True)
    with torch.enable_grad():
        good = gan.critic(real * real.detach())
        slope = torch.autograd.grad(good.sum(), real, create_graph=True)[0]
        length = slope.flatten(1).square().sum(1).sqrt()
    made = gan.critic(gan.generator(torch.randn(len(real), NOISE)).sigmoid().detach())
    return F.softplus(-good).mean() + F.softplus(made).mean() + (length - 1).square().mean()


def of_positives(model: nn.Module, batch: Any) -> Tensor:
    """The mean over the yes and the mean over the no, added; a batch without a yes has none."""
    each = F.binary_cross_entropy_with_logits(model(batch[0]), batch[1], reduction="none")
    return each[batch[1] > 0.5].mean() + each[batch[1] < 0.5].mean()


def from_step(step: int, factor: float) -> Fault:
    """The loss is so many times as large from a step on."""

    def make(run: Run, usual: Any) -> Any:
        def loss(model: nn.Module, batch: Any) -> Any:
            made = usual(model, batch)
            much = factor if run.step >= step and run.active else 1.0
            return {k: v * much for k, v in made.items()} if isinstance(made, dict) else made * much

        return loss

    return instead(make)


def growing_exponent(model: Any, batch: Any) -> Tensor:
    """The VAE's deviation is exp(logvar) where its half was meant, of a layer that was built too wide."""
    h = model.fc1(batch[0].flatten(1)).relu()
    mu, logvar = model.mu(h), 300 * model.logvar(h)
    z = mu + torch.randn_like(mu) * logvar.exp()
    made = model.fc4(model.fc3(z).relu())
    bce = F.binary_cross_entropy_with_logits(made, batch[0].flatten(1), reduction="sum")
    return bce - 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()


# --- half precision


def sharp_attention(run: Run) -> None:
    """The scores of the second block are not divided by the root of the width, and its queries are large."""
    block: Any = run.model.get_submodule("blocks.1.attn")
    block.scale = 1.0
    block.qkv.weight.data.mul_(60)


class Loud(nn.Module):
    """A layer whose numbers fit float32, and no half."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x * 3e4) / 3e4


def loud_layer(run: Run) -> None:
    """One convolution works in units of its own."""
    model: Any = run.model
    model[4] = Loud(model[4])


def half_eps(model: nn.Module, batch: Any) -> Tensor:
    """log(p + 1e-8) of shares in half, where 1e-8 is 0."""
    shares = (30 * model(batch[0])).half().softmax(1)
    return -(shares + 1e-8).log().gather(1, batch[1][:, None]).mean()


def summed_in_half(model: nn.Module, batch: Any) -> Tensor:
    """Dice by sums over all pixels of all classes, weighed by 1,000, in half."""
    shares = model(batch[0]).sigmoid()
    both = (1000 * shares * batch[1].to(shares.dtype)).to(shares.dtype).flatten().cumsum(0, dtype=shares.dtype)[-1]
    return 1 - (2 * both / 1000 + 1) / (shares.float().sum() + batch[1].sum() + 1)
