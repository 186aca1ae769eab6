"""Loops by what is trained: networks that play against each other, that draw, read, act, or learn to learn."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.loops.harness import Run
from torch import Tensor, nn
from torch.nn import functional as F

Loop = Any


def rand(*shape: int) -> Tensor:
    """Normal numbers of the run's seed."""
    return torch.randn(*shape)


def labelled(*shape: int, classes: int = 4, size: int = 16) -> tuple[Tensor, Tensor]:
    """Inputs and a label that can be read from them."""
    x = torch.randn(size, *shape)
    return x, x.flatten(1)[:, :classes].argmax(1)


def mlp(inside: int = 12, outside: int = 4, width: int = 32) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inside, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outside)
    )


def classify(model: nn.Module, batch: Any) -> Tensor:
    """Cross entropy of (x, y)."""
    return F.cross_entropy(model(batch[0]), batch[1])


def gan(run: Run) -> None:
    """Two networks with BatchNorm that step in turn, a guard each."""
    g = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 12))
    d = nn.Sequential(nn.Linear(12, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    og, od = torch.optim.Adam(g.parameters(), 2e-4, (0.5, 0.999)), torch.optim.Adam(d.parameters(), 2e-4, (0.5, 0.999))
    gd, gg = run.guard(d, od), run.guard(g, og)
    one, zero = torch.ones(16, 1), torch.zeros(16, 1)
    loss = F.binary_cross_entropy_with_logits
    for _ in run.steps():
        (real,) = run.data(gd, (rand(16, 12) + 2,))
        od.zero_grad()
        run.see(gd, loss(d(real), one) + loss(d(g(rand(16, 8)).detach()), zero)).backward()
        od.step()
        og.zero_grad()
        run.see(gg, loss(d(g(rand(16, 8))), one)).backward()
        og.step()


def wgan_penalty(run: Run) -> None:
    """A critic with a gradient penalty, five steps for one of the generator; losses below zero."""
    g, d = mlp(8, 12), mlp(12, 1)
    og, od = torch.optim.RMSprop(g.parameters(), 5e-5), torch.optim.RMSprop(d.parameters(), 5e-5)
    gd, gg = run.guard(d, od), run.guard(g, og)
    for step in run.steps():
        (real,) = run.data(gd, (rand(16, 12) + 2,))
        fake = g(rand(16, 8)).detach()
        between = (0.5 * real + 0.5 * fake).requires_grad_()
        (slope,) = torch.autograd.grad(d(between).sum(), between, create_graph=True)
        od.zero_grad()
        run.see(gd, d(fake).mean() - d(real).mean() + 10 * (slope.norm(dim=1) - 1).square().mean()).backward()
        od.step()
        if step % 5 == 4:
            og.zero_grad()
            run.see(gg, -d(g(rand(16, 8))).mean()).backward()
            og.step()


def wgan_clamp(run: Run) -> None:
    """The critic's weights are clamped after each step."""
    d = mlp(12, 1)
    o = torch.optim.RMSprop(d.parameters(), 5e-5)
    guard = run.guard(d, o)
    for _ in run.steps():
        (real,) = run.data(guard, (rand(16, 12) + 2,))
        o.zero_grad()
        run.see(guard, d(rand(16, 12)).mean() - d(real).mean()).backward()
        o.step()
        with torch.no_grad():
            for p in d.parameters():
                p.clamp_(-0.05, 0.05)


class Coder(nn.Module):
    """A VAE that returns the parts of its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 16), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        mean, log = self.encode(x).chunk(2, 1)
        out = self.decode(mean + torch.randn_like(mean) * (0.5 * log).exp())
        return {"rest": F.mse_loss(out, x), "kl": -0.5 * (1 + log - mean.square() - log.exp()).sum(1).mean()}


def vae_annealed(run: Run) -> None:
    """The weight of one term grows from nothing to one."""
    model = Coder()
    o = torch.optim.Adam(model.parameters(), 1e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        parts = m(b[0])
        return parts["rest"] + weight[0] * parts["kl"]

    weight = [0.0]
    guard = run.guard(model, o, loss)
    for step in run.steps():
        weight[0] = min(1.0, step / 50)
        batch = run.data(guard, (rand(16, 12),))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()


class UNet(nn.Module):
    """Two levels, GroupNorm, a time."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 12, 3, 2, 1), nn.Conv2d(12, 24, 3, 2, 1)
        self.norm, self.up, self.out = (
            nn.GroupNorm(4, 24),
            nn.ConvTranspose2d(24, 12, 2, 2),
            nn.ConvTranspose2d(24, 1, 2, 2),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        first = self.down(torch.cat([x, t[:, None, None, None].expand_as(x)], 1)).relu()
        return self.out(torch.cat([self.up(self.norm(self.deep(first)).relu()).relu(), first], 1))


def diffusion_ema(run: Run) -> None:
    """A U-Net that predicts noise, its average kept by `swa_utils`, the gradient clipped by the loop."""
    model = UNet()
    o = torch.optim.AdamW(model.parameters(), 1e-3)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.99))

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, t = b
        seen = (1 - t)[:, None, None, None] * x + t[:, None, None, None] * noise
        return F.mse_loss(m(seen, t), noise)

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, (rand(16, 1, 8, 8), rand(16, 1, 8, 8), torch.rand(16)))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        o.step()
        average.update_parameters(model)


class GPT(nn.Module):
    """Two causal blocks with tied words; a loss in a dict, as some return it."""

    def __init__(self, tied: bool = True) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 24), nn.Embedding(10, 24)
        self.register_buffer("mask", torch.full((10, 10), -math.inf).triu(1))
        layer = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True)
        self.blocks, self.head = (
            nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
            nn.Linear(24, 20, bias=False),
        )
        if tied:
            self.head.weight = self.words.weight

    def forward(self, tokens: Tensor, weights: Tensor) -> dict[str, Any]:
        logits = self.head(self.blocks(self.words(tokens[:, :-1]) + self.places.weight, mask=self.mask))
        each = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none").view(len(tokens), -1)
        return {"loss": (each.mean(1) * weights).mean(), "logits": logits}


def tokens() -> tuple[Tensor, Tensor]:
    """Series that count up, and a weight for each."""
    return (torch.randint(20, (16, 1)) + torch.arange(11)) % 20, torch.ones(16)


def gpt_accumulated(run: Run) -> None:
    """Four micro-batches a step, warm-up then cosine, decay for matrices only."""
    model = GPT()
    two = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    o = torch.optim.AdamW([{"params": two, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], 3e-3)
    plan = torch.optim.lr_scheduler.LambdaLR(
        o, lambda s: min(1, (s + 1) / 20) * (0.5 + 0.5 * math.cos(s / 200 * math.pi))
    )
    guard = run.guard(model, o, lambda m, b: m(*b)["loss"] / 4)
    for _ in run.steps():
        for _ in range(4):
            batch = run.data(guard, tokens())
            run.see(guard, model(*batch)["loss"] / 4).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        o.step()
        plan.step()
        o.zero_grad(set_to_none=True)


def lstm_through_time(run: Run) -> None:
    """The hidden state is carried from step to step, cut from its graph."""
    read, head = nn.LSTM(4, 24, batch_first=True), nn.Linear(24, 4)
    model = nn.ModuleDict({"read": read, "head": head})
    o = torch.optim.Adam(model.parameters(), 3e-3)
    guard, hidden = run.guard(model, o), None
    for _ in run.steps():
        x, y = run.data(guard, labelled(6, 4))
        if hidden is not None and not all(bool(h.isfinite().all()) for h in hidden):
            hidden = None
        out, hidden = read(x, hidden)
        hidden = tuple(h.detach() for h in hidden)
        o.zero_grad()
        run.see(guard, F.cross_entropy(head(out[:, -1]), y)).backward()
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        o.step()


class ViT(nn.Module):
    """Patches, a token for the class, dropout of whole blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Conv2d(1, 24, 4, 4), nn.Parameter(torch.zeros(1, 1, 24))
        self.place = nn.Parameter(0.02 * rand(1, 5, 24))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(24, 4, 48, 0.1, batch_first=True, norm_first=True) for _ in range(2)
        )
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.first.expand(len(x), -1, -1), self.embed(x).flatten(2).transpose(1, 2)], 1) + self.place
        for block in self.blocks:
            if not self.training or torch.rand(()) > 0.2:
                x = block(x)
        return self.head(x[:, 0])


def vit_mixup(run: Run) -> None:
    """Mixed pictures, soft labels, blocks left out at random (no gradients for them)."""
    model = ViT()
    o = torch.optim.AdamW(model.parameters(), 1e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b[0]), b[1])

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        x, y = labelled(1, 8, 8)
        share = float(torch.rand(()))
        soft = F.one_hot(y, 4).float()
        batch = run.data(guard, (share * x + (1 - share) * x.flip(0), share * soft + (1 - share) * soft.flip(0)))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()


class Momentum(nn.Module):
    """A query network, its slow copy, a queue of keys in buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.q = mlp(12, 8)
        self.k = copy.deepcopy(self.q).requires_grad_(False)
        self.register_buffer("queue", F.normalize(rand(64, 8), dim=1))
        self.register_buffer("at", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            for slow, fast in zip(self.k.parameters(), self.q.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
            keys = F.normalize(self.k(x + 0.1 * noise), dim=1)
        q = F.normalize(self.q(x), dim=1)
        logits = torch.cat([(q * keys).sum(1, keepdim=True), q @ self.queue.clone().T], 1) / 0.2
        with torch.no_grad():
            at = int(self.at)
            self.queue[at : at + len(keys)] = keys
            self.at.fill_((at + len(keys)) % 64)
        return F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long))


def contrastive_queue(run: Run) -> None:
    """Buffers and a slow copy that the forward pass itself changes."""
    model = Momentum()
    o = torch.optim.SGD(model.q.parameters(), 0.05, momentum=0.9, weight_decay=1e-4)
    guard = run.guard(model, o, lambda m, b: m(*b))
    for _ in run.steps():
        batch = run.data(guard, (rand(16, 12), rand(16, 12)))
        o.zero_grad()
        run.see(guard, model(*batch)).backward()
        o.step()


def dqn(run: Run) -> None:
    """A replay memory, a target network that is copied now and then."""
    model = mlp()
    target = copy.deepcopy(model).requires_grad_(False)
    o = torch.optim.Adam(model.parameters(), 1e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, action, reward, after = b
        with torch.no_grad():
            goal = reward + 0.9 * target(after).amax(1)
        return F.smooth_l1_loss(m(x).gather(1, action[:, None])[:, 0], goal)

    guard = run.guard(model, o, loss)
    for step in run.steps():
        x, y = labelled(12)
        action = torch.where(torch.rand(16) < 0.5, torch.randint(4, (16,)), y)
        batch = run.data(guard, (x, action, (action == y).float(), rand(16, 12)))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()
        if step % 20 == 19:
            target.load_state_dict(model.state_dict())


class Actor(nn.Module):
    """A policy and a value with one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.policy, self.value = (
            nn.Sequential(nn.Linear(12, 32), nn.Tanh()),
            nn.Linear(32, 4),
            nn.Linear(32, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.policy(h), self.value(h)[:, 0]


def ppo(run: Run) -> None:
    """Three epochs over each rollout; advantages normalised; the first loss of each is about zero."""
    model = Actor()
    o = torch.optim.Adam(model.parameters(), 3e-3, eps=1e-5)
    guard = run.guard(model, o)
    epochs = 0
    for _ in run.steps():
        if epochs == 0:
            (x,) = run.data(guard, (rand(64, 12),))
            with torch.no_grad():
                logits, value = model(x)
                action = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
                old = logits.log_softmax(1).gather(1, action[:, None])[:, 0]
                returned = (action == x[:, :4].argmax(1)).float()
                advantage = returned - value
                advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        epochs = (epochs + 1) % 3
        logits, value = model(x)
        ratio = (logits.log_softmax(1).gather(1, action[:, None])[:, 0] - old).exp()
        actor = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
        entropy = torch.distributions.Categorical(logits=logits, validate_args=False).entropy().mean()
        o.zero_grad()
        run.see(guard, actor + 0.5 * F.mse_loss(value, returned) - 0.01 * entropy).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        o.step()


def maml(run: Run) -> None:
    """Steps within a step by `functional_call`, a graph through them."""
    model = mlp(1, 1)
    o = torch.optim.Adam(model.parameters(), 1e-3)
    guard = run.guard(model, o)
    for _ in run.steps():
        total = torch.zeros(())
        for _ in range(3):
            phase, (x,) = torch.rand(()) * 3, run.data(guard, (rand(16, 1),))
            y = (x + phase).sin()
            fast = dict(model.named_parameters())
            inner = F.mse_loss(torch.func.functional_call(model, fast, (x,)), y)
            slopes = torch.autograd.grad(inner, list(fast.values()), create_graph=True)
            fast = {n: p - 0.01 * s for (n, p), s in zip(fast.items(), slopes, strict=True)}
            total = total + F.mse_loss(torch.func.functional_call(model, fast, (x,)), y)
        o.zero_grad()
        run.see(guard, total / 3).backward()
        o.step()


def reptile(run: Run) -> None:
    """Weights are carried back towards where they were, outside the optimizer, every fifth step."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.05)
    guard = run.guard(model, o, classify)
    start = copy.deepcopy(model.state_dict())
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()
        if step % 5 == 4:
            now = model.state_dict()
            start = {k: torch.lerp(start[k], now[k], 0.5) for k in now}
            model.load_state_dict(start)


def distilled(run: Run) -> None:
    """A teacher without gradients, two losses."""
    model, teacher = mlp(), mlp().requires_grad_(False).eval()
    o = torch.optim.NAdam(model.parameters(), 1e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        soft = F.kl_div(m(b[0]).log_softmax(1), teacher(b[0]).softmax(1), reduction="batchmean")
        return soft + classify(m, b)

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()


def adversarial(run: Run) -> None:
    """Inputs moved by their own gradient first: three forward passes a step."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        x = x.requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
        moved = (x + 0.05 * slope.sign()).detach()
        o.zero_grad()
        run.see(guard, 0.5 * F.cross_entropy(model(x.detach()), y) + 0.5 * F.cross_entropy(model(moved), y)).backward()
        o.step()


def physics(run: Run) -> None:
    """A network whose second derivative is trained: double backward."""
    model = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 1))
    o = torch.optim.Adam(model.parameters(), 1e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x = b[0].detach().requires_grad_()
        u = m(x)
        (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
        return (second + u).square().mean() + (m(torch.zeros(1, 1)) - 1).square().mean()

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, (rand(32, 1),))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()


class Flow(nn.Module):
    """A normalising flow of two couplings: log likelihoods of any sign."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(mlp(6, 12) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        log = torch.zeros(len(x))
        for part in self.parts:
            a, b = x.chunk(2, 1)
            scale, shift = part(a).chunk(2, 1)
            x, log = torch.cat([b * scale.tanh().exp() + shift, a], 1), log + scale.tanh().sum(1)
        return 0.5 * x.square().sum(1) - log


def flow(run: Run) -> None:
    """Narrow data: the loss falls far below zero."""
    model = Flow()
    o = torch.optim.Adam(model.parameters(), 3e-3)
    guard = run.guard(model, o, lambda m, b: m(b[0]).mean())
    for _ in run.steps():
        batch = run.data(guard, (0.01 * rand(16, 12),))
        o.zero_grad()
        run.see(guard, model(batch[0]).mean()).backward()
        o.step()


class Experts(nn.Module):
    """Each sample goes to one of four experts; some get none."""

    def __init__(self) -> None:
        super().__init__()
        self.route, self.experts = nn.Linear(12, 4), nn.ModuleList(mlp() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        weight, who = self.route(x).softmax(1).max(1)
        out = torch.zeros(len(x), 4)
        for i, expert in enumerate(self.experts):
            mine = who == i
            if bool(mine.any()):
                out = out.index_put((mine.nonzero()[:, 0],), weight[mine, None] * expert(x[mine]))
        return out


def experts(run: Run) -> None:
    """A mixture whose parts are without gradients at times."""
    model = Experts()
    o = torch.optim.AdamW(model.parameters(), 3e-3)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12, size=8))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


def graph_network(run: Run) -> None:
    """Messages gathered by index_add; node features of one graph for the whole batch."""
    model = nn.ModuleDict({"a": nn.Linear(6, 24), "b": nn.Linear(24, 4)})
    o = torch.optim.Adamax(model.parameters(), 5e-3)

    def loss(m: Any, b: Any) -> Tensor:
        x, y, edges = b
        h = m["a"](x)
        h = (h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]])).relu()
        return F.cross_entropy(m["b"](h), y)

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        x, y = labelled(6, size=32)
        batch = run.data(guard, (x, y, torch.randint(32, (2, 60))))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()


def speech(run: Run) -> None:
    """CTC over series of different length."""
    model = nn.GRU(6, 8, batch_first=True)
    o = torch.optim.Adam(model.parameters(), 3e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        out = m(b[0])[0].log_softmax(2).transpose(0, 1)
        return F.ctc_loss(out, b[1], torch.full((len(b[0]),), 20), b[2], zero_infinity=True)

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, (rand(8, 20, 6), torch.randint(1, 8, (8, 5)), torch.randint(1, 6, (8,))))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        o.step()


def private(run: Run) -> None:
    """DP-SGD: a gradient for each sample by vmap, clipped and noised; p.grad is set by hand."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.1)
    guard = run.guard(model, o)
    names = [n for n, _ in model.named_parameters()]

    def one(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, weights, (x[None],)), y[None])

    each = torch.func.vmap(torch.func.grad_and_value(one), in_dims=(None, 0, 0))
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        weights = {n: p.detach() for n, p in model.named_parameters()}
        grads, losses = each(weights, x, y)
        norms = torch.stack([grads[n].flatten(1).norm(dim=1) for n in names]).norm(dim=0)
        share = (1.0 / norms).clamp(max=1.0)
        for n, p in model.named_parameters():
            p.grad = torch.einsum("b,b...->...", share, grads[n]) / len(x) + 0.01 * torch.randn_like(p)
        run.see(guard, losses.mean())
        o.step()


KINDS: dict[str, Any] = {
    f.__name__: f
    for f in (
        *(gan, wgan_penalty, wgan_clamp, vae_annealed, diffusion_ema, gpt_accumulated, lstm_through_time, vit_mixup),
        *(contrastive_queue, dqn, ppo, maml, reptile, distilled, adversarial, physics, flow, experts, graph_network),
        *(speech, private),
    )
}
