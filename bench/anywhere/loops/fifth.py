"""Loops of what is trained in 2025 and 2026 that the first rounds did not have, written without tuning: the fifth."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.loops.harness import Run
from anywhere.loops.kinds import classify, labelled, mlp, rand
from anywhere.loops.third import simple
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as plans


def follow(slow: nn.Module, fast: nn.Module, share: float) -> None:
    """Moves the weights of a slow copy towards the fast one's."""
    with torch.no_grad():
        for p, q in zip(slow.parameters(), fast.parameters(), strict=True):
            p.lerp_(q, share)


def rectified(run: Run) -> None:
    """Flow matching on straight paths, times from a logistic normal, a moving average beside it."""
    model = mlp(13, 12)
    slow = copy.deepcopy(model)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, t = b
        at = t.sigmoid()[:, None]
        return F.mse_loss(m(torch.cat([at * x + (1 - at) * noise, at], 1)), x - noise)

    o = torch.optim.AdamW(model.parameters(), 2e-3, (0.9, 0.95), weight_decay=0.01)
    batch = lambda: (rand(24, 12).tanh() + 1, rand(24, 12), rand(24))  # noqa: E731
    simple(run, model, o, loss, batch, lambda _: follow(slow, model, 0.01), clip=1.0)


def preconditioned(run: Run) -> None:
    """Karras' diffusion: noise levels over four orders, input, output and loss scaled by level."""
    model = mlp(13, 12)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, level = b
        s = (level * 1.2 - 1.2).exp()[:, None]
        keep, out, into = 0.25 / (s**2 + 0.25), 0.5 * s / (s**2 + 0.25).sqrt(), 1 / (s**2 + 0.25).sqrt()
        noisy = x + s * noise
        made = keep * noisy + out * m(torch.cat([into * noisy, s.log() / 4], 1))
        return ((s**2 + 0.25) / (0.5 * s) ** 2 * (made - x).square()).mean()

    simple(
        run, model, torch.optim.Adam(model.parameters(), 2e-3), loss, lambda: (rand(32, 12) / 2, rand(32, 12), rand(32))
    )


def consistency(run: Run) -> None:
    """Consistency training: two neighbouring noise levels are to give the same; the levels get finer."""
    model, count = mlp(13, 8), [5]
    teacher = copy.deepcopy(model).requires_grad_(False)

    def made(m: nn.Module, x: Tensor, s: Tensor) -> Tensor:
        wide = torch.cat([x / (s**2 + 0.25).sqrt(), s, s.log(), x[:, :3]], 1)
        return 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * m(wide)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, place = b
        k = (place * count[0]).floor()[:, None]
        low, high = (0.01 + 4 * (i / count[0]) ** 3 for i in (k, k + 1))
        off = made(m, x + high * noise, high) - made(teacher, x + low * noise, low).detach()
        return ((off.square().sum(1) + 1e-3).sqrt() / (high - low)[:, 0]).mean()

    def after(step: int) -> None:
        count[0] = 5 + step // 20
        follow(teacher, model, 0.05)

    batch = lambda: (rand(24, 8).tanh(), rand(24, 8), torch.rand(24))  # noqa: E731
    simple(run, model, torch.optim.RAdam(model.parameters(), 1e-3), loss, batch, after)


class Words(nn.Module):
    """A small language model: rotary positions, RMS norms, gated layers, tied words."""

    def __init__(self, words: int = 24, width: int = 32) -> None:
        super().__init__()
        self.words, self.out = nn.Embedding(words, width), nn.RMSNorm(width)
        self.one, self.two = nn.RMSNorm(width), nn.RMSNorm(width)
        self.qkv, self.mix = nn.Linear(width, 2 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 128, bias=False), nn.Linear(64, width, bias=False)
        nn.init.normal_(self.words.weight, std=0.2)

    def turned(self, x: Tensor) -> Tensor:
        """Rotary positions."""
        angle = torch.arange(x.shape[-2])[:, None] * 100 ** -(torch.arange(x.shape[-1] // 2) / (x.shape[-1] // 2))
        a, b = x.chunk(2, -1)
        return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], -1)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        q, k, v = self.qkv(self.one(x)).split([32, 16, 16], -1)
        q = self.turned(q.unflatten(-1, (4, 8)).transpose(1, 2))
        k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (k, v))
        seen = F.scaled_dot_product_attention(q, self.turned(k), v, is_causal=True, enable_gqa=True)
        x = x + self.mix(seen.transpose(1, 2).flatten(2))
        gate, value = self.up(self.two(x)).chunk(2, -1)
        return self.out(x + self.down(F.silu(gate) * value)) @ self.words.weight.T


def texts(count: int = 12, length: int = 16) -> Tensor:
    """Words each of which says the next one, mostly."""
    start = torch.randint(24, (count, 1))
    ids = (start + 5 * torch.arange(length)) % 24
    return torch.where(torch.rand(count, length) < 0.1, torch.randint(24, ids.shape), ids)


def modern_words(run: Run) -> None:
    """Such a model; warm-up, stable, decay; a z-loss; weights for each text's loss."""
    model = Words()
    o = torch.optim.AdamW(model.parameters(), 4e-3, (0.9, 0.95), weight_decay=0.1)
    plan = plans.LambdaLR(o, lambda s: min(1.0, (s + 1) / 20, max(0.05, (400 - s) / 100)))

    def loss(m: nn.Module, b: Any) -> Tensor:
        weight, ids = b
        out = m(ids[:, :-1])
        each = F.cross_entropy(out.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)
        return (weight * each).mean() + 1e-4 * out.logsumexp(-1).square().mean()

    simple(run, model, o, loss, lambda: (0.5 + torch.rand(12), texts()), lambda _: plan.step(), clip=1.0)


def said(m: nn.Module, ids: Tensor) -> Tensor:
    """Log-likelihood of each text."""
    return m(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None]).sum((1, 2))


def preferences(run: Run) -> None:
    """DPO: the better of two texts against a frozen reference; a margin for each pair."""
    model = Words()
    reference = copy.deepcopy(model).requires_grad_(False)

    def loss(m: nn.Module, b: Any) -> Tensor:
        margin, better, worse = b
        gain = said(m, better) - said(reference, better) - said(m, worse) + said(reference, worse)
        return -F.logsigmoid(0.1 * gain - 0.1 * margin).mean()

    batch = lambda: (torch.rand(12), texts(), torch.randint(24, (12, 16)))  # noqa: E731
    simple(run, model, torch.optim.RMSprop(model.parameters(), 2e-4), loss, batch, clip=10.0)


def groups(run: Run) -> None:
    """GRPO: rewards of four answers normed in their group, a clipped ratio, a KL to the reference."""
    model = mlp(12, 6)
    reference = copy.deepcopy(model).requires_grad_(False)
    o = torch.optim.AdamW(model.parameters(), 1e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, pick, gain, old = b
        now = m(x).log_softmax(1).gather(1, pick)
        ratio = (now - old).exp()
        apart = reference(x).log_softmax(1).gather(1, pick) - now
        return (
            -torch.minimum(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean() + 0.04 * (apart.exp() - apart - 1).mean()
        )

    def batch() -> Any:
        x = rand(16, 12)
        with torch.no_grad():
            known = model(x).nan_to_num().log_softmax(1)
        pick = torch.multinomial(known.exp(), 4, replacement=True)
        reward = (pick == x[:, :6].argmax(1, keepdim=True)).float()
        gain = (reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)
        return x, pick, gain, known.gather(1, pick)

    simple(run, model, o, loss, batch, clip=1.0)


class Student(nn.Module):
    """A trunk and a head; the teacher's centre is a buffer."""

    centre: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net, self.head = mlp(12, 16), nn.utils.parametrizations.weight_norm(nn.Linear(16, 32, bias=False))
        self.register_buffer("centre", torch.zeros(32))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.normalize(self.net(x), dim=1))


def self_taught(run: Run) -> None:
    """DINO: a slow teacher, sharpened and centred, says what two views should give; the last layer waits at first."""
    model = Student()
    teacher = copy.deepcopy(model).requires_grad_(False)
    o = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.04)
    guard = run.guard(model, o)
    for step in run.steps():
        (x,) = run.data(guard, (rand(24, 12),))
        views = [x + 0.2 * rand(24, 12) for _ in range(3)]
        with torch.no_grad():
            target = [((teacher(v) - teacher.centre) / 0.05).softmax(1) for v in views[:2]]
            teacher.centre.lerp_(torch.cat([teacher(v) for v in views[:2]]).mean(0).nan_to_num(), 0.1)
        out = [(model(v) / 0.1).log_softmax(1) for v in views]
        pairs = [-(t * s).sum(1).mean() for i, t in enumerate(target) for j, s in enumerate(out) if i != j]
        o.zero_grad()
        run.see(guard, torch.stack(pairs).mean()).backward()
        if step < 15:
            for p in model.head.parameters():
                p.grad = None
        o.step()
        follow(teacher, model, 0.02)


def variance_kept(run: Run) -> None:
    """VICReg: alike, spread out, uncorrelated."""
    model = mlp(12, 16)

    def loss(m: nn.Module, b: Any) -> Tensor:
        z = [m(v) for v in b]
        total = 25 * F.mse_loss(*z)
        for each in z:
            c = each - each.mean(0)
            spread = (c.var(0) + 1e-4).sqrt()
            cov = c.T @ c / (len(c) - 1)
            total = total + 25 * F.relu(1 - spread).mean() + (cov - cov.diag().diag()).square().sum() / 16
        return total

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x + 0.1 * rand(32, 12), x + 0.1 * rand(32, 12)

    simple(run, model, torch.optim.SGD(model.parameters(), 1e-3, 0.9, weight_decay=1e-4), loss, batch)


def redundancy(run: Run) -> None:
    """Barlow twins: the correlation of two views is to be the identity; BatchNorm before it."""
    model = nn.Sequential(
        nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 16), nn.BatchNorm1d(16, affine=False)
    )

    def loss(m: nn.Module, b: Any) -> Tensor:
        c = m(b[0]).T @ m(b[1]) / len(b[0])
        off = (c - torch.eye(16)).square()
        return off.diagonal().sum() + 0.01 * (off.sum() - off.diagonal().sum())

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x + 0.1 * rand(32, 12), x + 0.1 * rand(32, 12)

    simple(run, model, torch.optim.Adam(model.parameters(), 1e-3), loss, batch)


def assigned(run: Run) -> None:
    """SwAV: prototypes, Sinkhorn's assignment of one view is the target of the other; prototypes normed each step."""
    model: Any = nn.ModuleDict({"net": mlp(12, 16), "onto": nn.Linear(16, 10, bias=False)})

    def balanced(score: Tensor) -> Tensor:
        q = (score / 0.1).exp()
        for _ in range(3):
            q = q / q.sum(0, keepdim=True) / 10
            q = q / q.sum(1, keepdim=True) / len(q)
        return q * len(q)

    def loss(m: Any, b: Any) -> Tensor:
        scores = [m["onto"](F.normalize(m["net"](v), dim=1)) for v in b]
        with torch.no_grad():
            targets = [balanced(s) for s in scores]
        pairs = zip(targets, scores[::-1], strict=True)
        return -torch.stack([(t * (s / 0.2).log_softmax(1)).sum(1).mean() for t, s in pairs]).mean()

    def after(_: int) -> None:
        with torch.no_grad():
            model["onto"].weight.copy_(F.normalize(model["onto"].weight, dim=1))

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x + 0.1 * rand(32, 12), x + 0.1 * rand(32, 12)

    simple(run, model, torch.optim.SGD(model.parameters(), 0.05, 0.9), loss, batch, after)


def hidden_patches(run: Run) -> None:
    """A masked autoencoder: an encoder of the visible quarter, a light decoder with a learned mask token."""

    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.place = nn.Linear(6, 24), nn.Parameter(0.02 * torch.randn(12, 24))
            self.enc = nn.TransformerEncoderLayer(24, 3, 48, 0.0, "gelu", batch_first=True, norm_first=True)
            self.token, self.dec, self.out = nn.Parameter(torch.zeros(24)), mlp(24, 24), nn.Linear(24, 6)

        def forward(self, x: Tensor, order: Tensor) -> Tensor:
            keep = order[:, :4, None]
            h = self.into(x) + self.place
            seen = self.enc(h.gather(1, keep.expand(-1, -1, 24)))
            full = self.token.expand(len(x), 12, 24).scatter(1, keep.expand(-1, -1, 24), seen) + self.place
            made = self.out(full + self.dec(full.mean(1, keepdim=True)))
            hidden = torch.ones(len(x), 12).scatter(1, order[:, :4], 0.0)
            norm = (x - x.mean(2, keepdim=True)) / (x.var(2, keepdim=True) + 1e-6).sqrt()
            return ((made - norm).square().mean(2) * hidden).sum() / hidden.sum()

    model = Auto()
    o = torch.optim.AdamW(model.parameters(), 2e-3, (0.9, 0.95))
    batch = lambda: (rand(12, 1, 6) + 0.3 * rand(12, 12, 6), torch.rand(12, 12).argsort(1))  # noqa: E731
    simple(run, model, o, lambda m, b: m(*b), batch)


def reversible_norm(run: Run) -> None:
    """Series in patches with a reversible instance norm; levels differ by a thousand."""

    class Series(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.shift = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(()))
            self.into, self.out = nn.Linear(8, 24), nn.Linear(4 * 24, 8)
            self.enc = nn.TransformerEncoderLayer(24, 2, 48, 0.1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            mean, spread = x.mean(1, keepdim=True).detach(), (x.var(1, keepdim=True) + 1e-5).sqrt().detach()
            z = (x - mean) / spread * self.scale + self.shift
            y = self.out(self.enc(self.into(z.unflatten(1, (4, 8)))).flatten(1))
            return (y - self.shift) / (self.scale + 1e-6) * spread + mean

    model = Series()

    def batch() -> tuple[Tensor, Tensor]:
        t = torch.arange(40) / 5
        whole = (3 * rand(16, 1)).exp() * (1 + 0.3 * (t + 6 * torch.rand(16, 1)).sin())
        return whole[:, :32], whole[:, 32:]

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.l1_loss(m(b[0]) / b[0].mean(1, keepdim=True), b[1] / b[0].mean(1, keepdim=True))

    simple(run, model, torch.optim.Adam(model.parameters(), 1e-3), loss, batch)


class Sine(nn.Module):
    """A layer of SIREN."""

    def __init__(self, into: int, out: int, first: bool = False) -> None:
        super().__init__()
        self.layer, self.fast = nn.Linear(into, out), 30.0 if first else 1.0
        most = 1 / into if first else math.sqrt(6 / into)
        nn.init.uniform_(self.layer.weight, -most, most)

    def forward(self, x: Tensor) -> Tensor:
        return (self.fast * self.layer(x)).sin()


def picture(run: Run) -> None:
    """SIREN learns a picture, its slopes too."""
    model = nn.Sequential(Sine(2, 48, first=True), Sine(48, 48), nn.Linear(48, 1))

    def loss(m: nn.Module, b: Any) -> Tensor:
        at = b[0].detach().requires_grad_(True)
        out = m(at)[:, 0]
        (slope,) = torch.autograd.grad(out.sum(), at, create_graph=True)
        return F.mse_loss(out, (4 * b[0]).sin().sum(1)) + 1e-3 * F.mse_loss(slope, 4 * (4 * b[0]).cos())

    simple(run, model, torch.optim.Adam(model.parameters(), 5e-4), loss, lambda: (2 * torch.rand(64, 2) - 1,))


def splats(run: Run) -> None:
    """Gaussian splats in the plane: each kind of parameter has a rate of its own; faded ones are set anew."""

    class Splats(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.at, self.size = nn.Parameter(2 * torch.rand(24, 2) - 1), nn.Parameter(torch.full((24, 2), -1.0))
            self.alpha, self.colour = nn.Parameter(torch.zeros(24)), nn.Parameter(torch.rand(24, 3))

        def forward(self, point: Tensor) -> Tensor:
            off = (point[:, None] - self.at) / self.size.exp()
            alpha = self.alpha.sigmoid() * (-0.5 * off.square().sum(2)).exp()
            left = torch.cumprod(torch.cat([torch.ones(len(point), 1), 1 - alpha.clamp(max=0.99)], 1), 1)[:, :-1]
            return ((alpha * left)[..., None] * self.colour).sum(1)

    model = Splats()
    rates = {"at": 2e-3, "size": 5e-3, "alpha": 5e-2, "colour": 2.5e-3}
    o = torch.optim.Adam([{"params": [getattr(model, k)], "lr": v, "name": k} for k, v in rates.items()], eps=1e-15)

    def loss(m: nn.Module, b: Any) -> Tensor:
        made, target = m(b[0]), (3 * b[0][:, :1] + torch.arange(3)).sin() / 2 + 0.5
        return 0.8 * F.l1_loss(made, target) + 0.2 * F.mse_loss(made, target)

    def after(step: int) -> None:
        if step % 40 == 39:
            with torch.no_grad():
                faded = model.alpha < -3
                model.at[faded] = 2 * torch.rand(int(faded.sum()), 2) - 1
                model.alpha.clamp_(min=-2)

    simple(run, model, o, loss, lambda: (2 * torch.rand(48, 2) - 1,), after)


def heat(run: Run) -> None:
    """The heat equation: second derivatives inside, edges that count twenty times."""
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, t = b[0][:, :1].detach().requires_grad_(True), b[0][:, 1:].detach().requires_grad_(True)
        u = m(torch.cat([x, t], 1))
        ux, ut = torch.autograd.grad(u.sum(), (x, t), create_graph=True)
        (uxx,) = torch.autograd.grad(ux.sum(), x, create_graph=True)
        begin = m(torch.cat([x, 0 * t], 1)) - (math.pi * x).sin()
        edge = m(torch.cat([x.round(), t], 1))
        return (ut - 0.1 * uxx).square().mean() + 20 * (begin.square().mean() + edge.square().mean())

    simple(run, model, torch.optim.NAdam(model.parameters(), 2e-3), loss, lambda: (torch.rand(48, 2),))


def chain(run: Run) -> None:
    """A linear-chain CRF over a recurrent net: all paths by the forward recursion."""

    class Tags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(6, 16, batch_first=True, bidirectional=True), nn.Linear(32, 5)
            self.step = nn.Parameter(0.1 * torch.randn(5, 5))

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            score = self.out(self.rnn(x)[0])
            path = score.gather(2, y[..., None]).sum((1, 2)) + self.step[y[:, :-1], y[:, 1:]].sum(1)
            every = score[:, 0]
            for i in range(1, x.shape[1]):
                every = score[:, i] + (every[:, :, None] + self.step).logsumexp(1)
            return (every.logsumexp(1) - path).mean()

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(12, 8, 6)
        return x, x[..., :5].argmax(2)

    model = Tags()
    simple(run, model, torch.optim.Adam(model.parameters(), 5e-3), lambda m, b: m(*b), batch, clip=5.0)


def duelling(run: Run) -> None:
    """Double Q-learning with value and advantage, a hard copy every 20 steps, returns of three steps."""

    class Q(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.value, self.gain = nn.Linear(8, 32), nn.Linear(32, 1), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.trunk(x).relu()
            gain = self.gain(h)
            return self.value(h) + gain - gain.mean(1, keepdim=True)

    model = Q()
    target = copy.deepcopy(model).requires_grad_(False)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, then, act, reward = b
        with torch.no_grad():
            best = m(then).argmax(1, keepdim=True)
            wanted = reward + 0.97 * target(then).gather(1, best)[:, 0]
        return F.smooth_l1_loss(m(x).gather(1, act[:, None])[:, 0], wanted)

    def batch() -> Any:
        x, act = rand(32, 8), torch.randint(4, (32,))
        return x, 0.8 * x + 0.3 * rand(32, 8), act, x.gather(1, act[:, None])[:, 0] + (torch.rand(32) < 0.05) * 5

    def after(step: int) -> None:
        if step % 20 == 19:
            target.load_state_dict(model.state_dict())

    simple(run, model, torch.optim.Adam(model.parameters(), 1e-3, eps=1.5e-4), loss, batch, after, clip=10.0)


def categorical_values(run: Run) -> None:
    """C51: the distribution of returns, projected on its atoms."""
    model, atoms = mlp(8, 3 * 21), torch.linspace(-5, 5, 21)
    target = copy.deepcopy(model).requires_grad_(False)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, then, act, reward = b
        with torch.no_grad():
            share = target(then).view(-1, 3, 21).softmax(2)
            best = (share @ atoms).argmax(1)
            share = share[torch.arange(len(x)), best]
            place = ((reward[:, None] + 0.9 * atoms).clamp(-5, 5) + 5) / 0.5
            wanted = (1 - (place[:, :, None] - torch.arange(21)).abs()).clamp(min=0).mul(share[..., None]).sum(1)
        out = m(x).view(-1, 3, 21)[torch.arange(len(x)), act]
        return -(wanted * out.log_softmax(1)).sum(1).mean()

    def batch() -> Any:
        x, act = rand(32, 8), torch.randint(3, (32,))
        return x, 0.8 * x + 0.3 * rand(32, 8), act, x.gather(1, act[:, None])[:, 0]

    def after(_: int) -> None:
        follow(target, model, 0.02)

    simple(run, model, torch.optim.Adam(model.parameters(), 1e-3), loss, batch, after)


def expectile(run: Run) -> None:
    """Implicit Q-learning: an expectile of values, Q on top, weights of the policy by exp of the advantage."""
    model = nn.ModuleDict({"q": mlp(12, 1), "v": mlp(8, 1), "pi": mlp(8, 4)})
    slow = copy.deepcopy(model["q"]).requires_grad_(False)

    def loss(m: Any, b: Any) -> Tensor:
        x, act, then, reward = b
        both = torch.cat([x, act], 1)
        off = slow(both)[:, 0] - m["v"](x)[:, 0]
        value = (torch.where(off > 0, 0.8, 0.2) * off.square()).mean()
        q = F.mse_loss(m["q"](both)[:, 0], reward + 0.9 * m["v"](then)[:, 0].detach())
        weight = (3 * off.detach()).exp().clamp(max=100)
        return value + q + (weight * (m["pi"](x) - act).square().mean(1)).mean()

    def batch() -> Any:
        x, act = rand(32, 8), rand(32, 4).tanh()
        return x, act, 0.8 * x + 0.3 * rand(32, 8), -(act - x[:, :4].tanh()).square().mean(1)

    simple(
        run, model, torch.optim.Adam(model.parameters(), 1e-3), loss, batch, lambda _: follow(slow, model["q"], 0.02)
    )


def dreamt(run: Run) -> None:
    """A world model: categorical states by straight-through, balanced KL with free bits, three steps ahead."""

    class World(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enc, self.prior, self.dec = mlp(28, 32), mlp(16, 32), mlp(48, 12)
            self.cell = nn.GRUCell(32, 16)

        def forward(self, x: Tensor) -> Tensor:
            h, total = torch.zeros(len(x), 16), torch.zeros(())
            for i in range(3):
                post = self.enc(torch.cat([h, x[:, i]], 1)).view(-1, 4, 8).log_softmax(2)
                prior = self.prior(h).view(-1, 4, 8).log_softmax(2)
                pick = torch.distributions.OneHotCategorical(logits=post.nan_to_num()).sample()
                z = (pick + post.exp() - post.exp().detach()).flatten(1)
                apart = [
                    (a.exp() * (a - b)).sum((1, 2)).mean().clamp(min=0.5)
                    for a, b in ((post.detach(), prior), (post, prior.detach()))
                ]
                total = total + F.mse_loss(self.dec(torch.cat([h, z], 1)), x[:, i]) + 0.8 * apart[0] + 0.2 * apart[1]
                h = self.cell(z, h)
            return total

    model = World()
    o = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-5)
    simple(run, model, o, lambda m, b: m(b[0]), lambda: (rand(16, 1, 12) + 0.2 * rand(16, 3, 12),), clip=100.0)


def codes(run: Run) -> None:
    """VQ-VAE whose codebook is a moving average in buffers; codes that nobody uses are drawn anew."""

    class Coded(nn.Module):
        book: Tensor
        used: Tensor
        sums: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.enc, self.dec = mlp(12, 6), mlp(6, 12)
            self.register_buffer("book", torch.randn(16, 6))
            self.register_buffer("used", torch.ones(16))
            self.register_buffer("sums", self.book.clone())

        def forward(self, x: Tensor) -> Tensor:
            z = self.enc(x)
            pick = torch.cdist(z.detach().nan_to_num(), self.book).argmin(1)
            hot = F.one_hot(pick, 16).float()
            if self.training:
                with torch.no_grad():
                    self.used.lerp_(hot.sum(0), 0.05)
                    self.sums.lerp_(hot.T @ z, 0.05)
                    self.book.copy_(self.sums / self.used.clamp(min=1e-3)[:, None])
                    dead = self.used < 0.05
                    self.book[dead] = z[torch.randint(len(z), (int(dead.sum()),))]
                    self.used[dead], self.sums[dead] = 1.0, self.book[dead]
            code = self.book[pick]
            return F.mse_loss(self.dec(z + (code - z).detach()), x) + 0.25 * F.mse_loss(z, code)

    model = Coded()
    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), lambda m, b: m(b[0]), lambda: (rand(32, 12),))


def finite_levels(run: Run) -> None:
    """Finite scalar quantisation: rounded with a straight-through gradient."""
    model = nn.ModuleDict({"e": mlp(12, 5), "d": mlp(5, 12)})

    def loss(m: Any, b: Any) -> Tensor:
        z = 3 * m["e"](b[0]).tanh()
        return F.l1_loss(m["d"](z + (z.round() - z).detach()), b[0])

    simple(run, model, torch.optim.Adamax(model.parameters(), 3e-3), loss, lambda: (rand(32, 12),))


def projected_conflicts(run: Run) -> None:
    """PCGrad: two tasks' gradients by hand, each without what works against the other."""
    body, heads = mlp(12, 16), nn.ModuleList([nn.Linear(16, 4), nn.Linear(16, 1)])
    model = nn.ModuleList([body, heads])
    o = torch.optim.Adam(model.parameters(), 2e-3)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        h = body(x)
        parts = [F.cross_entropy(heads[0](h), y), F.mse_loss(heads[1](h)[:, 0], x.prod(1).tanh())]
        run.see(guard, sum(parts))
        if run.fault == "nan_loss" and run.step == 40:
            parts[0] = parts[0] * math.nan
        given = list(model.parameters())
        rows = [torch.autograd.grad(p, given, retain_graph=True, allow_unused=True) for p in parts]
        flat = [
            torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(given, r, strict=True)])
            for r in rows
        ]
        made = [a - min(0.0, float(a @ b)) / float(b @ b + 1e-12) * b for a, b in (flat, flat[::-1])]
        total = made[0] + made[1]
        for p, g in zip(given, total.split([p.numel() for p in given]), strict=True):
            p.grad = g.view_as(p).clone()
        o.step()


def averaged_weights(run: Run) -> None:
    """Dynamic weight averaging: two losses weighed by how fast each fell."""
    model, seen = mlp(12, 5), [[1.0, 1.0], [1.0, 1.0]]

    def loss(m: nn.Module, b: Any) -> Tensor:
        out = m(b[0])
        parts = [F.cross_entropy(out[:, :4], b[1]), F.mse_loss(out[:, 4], b[0].sum(1))]
        w = 2 * torch.tensor([a / max(c, 1e-6) / 2 for a, c in zip(seen[1], seen[0], strict=True)]).softmax(0)
        if m is model and m.training:
            seen.append([min(float(p.detach().nan_to_num()), 1e6) for p in parts])
            del seen[0]
        return (w * torch.stack(parts)).sum()

    simple(run, model, torch.optim.AdamW(model.parameters(), 2e-3), loss, lambda: labelled(12))


class Looks(torch.optim.Optimizer):
    """Lookahead around another optimizer."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.param_groups, self.taken = inner, inner.param_groups, 0
        super().__init__(inner.param_groups, {})
        self.param_groups = inner.param_groups
        self.slow = [p.detach().clone() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """The inner step; every fifth time half of the way back."""
        self.inner.step()
        self.taken += 1
        if self.taken % 5 == 0:
            for p, kept in zip((p for g in self.param_groups for p in g["params"]), self.slow, strict=True):
                p.copy_(kept.lerp_(p, 0.5))


def looks_ahead(run: Run) -> None:
    """A wrapped optimizer that goes half of the way back every fifth step."""
    model = mlp()
    simple(run, model, Looks(torch.optim.AdamW(model.parameters(), 3e-3)), classify, lambda: labelled(12))


class Adan(torch.optim.Optimizer):
    """Adan: also the difference of gradients has a mean."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Three means."""
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                s, g = self.state[p], p.grad
                if not s:
                    s.update(m=torch.zeros_like(p), d=torch.zeros_like(p), n=torch.zeros_like(p), old=g.clone())
                off = g - s["old"]
                s["m"].lerp_(g, 0.02)
                s["d"].lerp_(off, 0.08)
                s["n"].lerp_((g + 0.92 * off).square(), 0.01)
                s["old"].copy_(g)
                p.sub_(group["lr"] * (s["m"] + 0.92 * s["d"]) / (s["n"].sqrt() + 1e-8))


def own_optimizer(run: Run) -> None:
    """Somebody's own optimizer with four states of each weight."""
    model = mlp()
    simple(run, model, Adan(model.parameters(), 2e-3), classify, lambda: labelled(12))


def half_weights(run: Run) -> None:
    """Weights, gradients and states in bfloat16."""
    model = mlp().bfloat16()

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b[0].bfloat16()).float(), b[1])

    simple(run, model, torch.optim.AdamW(model.parameters(), 3e-3), loss, lambda: labelled(12))


def operator(run: Run) -> None:
    """A Fourier neural operator: complex weights on the lowest waves."""

    class Waves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down, self.skip = nn.Conv1d(1, 8, 1), nn.Conv1d(8, 1, 1), nn.Conv1d(8, 8, 1)
            self.weight = nn.Parameter(torch.randn(8, 8, 6, dtype=torch.cfloat) / 8)

        def forward(self, x: Tensor) -> Tensor:
            h = self.up(x[:, None])
            low = torch.einsum("nik,iok->nok", torch.fft.rfft(h)[..., :6], self.weight)
            return self.down(F.gelu(torch.fft.irfft(low, n=x.shape[1]) + self.skip(h)))[:, 0]

    model = Waves()

    def batch() -> tuple[Tensor, Tensor]:
        x = torch.fft.irfft(torch.fft.rfft(rand(16, 32))[..., :6], n=32)
        return x, x.cumsum(1) / 8

    def loss(m: nn.Module, b: Any) -> Tensor:
        return ((m(b[0]) - b[1]).norm(dim=1) / b[1].norm(dim=1).clamp(min=1e-3)).mean()

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), loss, batch)


def two_towers(run: Run) -> None:
    """Retrieval: the other rows of the batch are the wrong answers, corrected by how common they are."""
    model = nn.ModuleDict({"q": mlp(12, 8), "table": nn.Embedding(40, 8)})

    def loss(m: Any, b: Any) -> Tensor:
        q, d = F.normalize(m["q"](b[0]), dim=1), F.normalize(m["table"](b[1]), dim=1)
        common = (b[1][:, None] == b[1]).float().mean(0).log()
        score = q @ d.T / 0.1 - common
        score = score.masked_fill((b[1][:, None] == b[1]) & ~torch.eye(len(q), dtype=torch.bool), -1e4)
        return F.cross_entropy(score, torch.arange(len(q)))

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(24, 12)
        return x, (x[:, 0].abs() * 15).long().clamp(max=39)

    simple(run, model, torch.optim.Adagrad(model.parameters(), 0.05), loss, batch)


def angular(run: Run) -> None:
    """ArcFace: a margin added to the angle, a scale of 30."""
    model = nn.ModuleDict({"net": mlp(12, 8), "onto": nn.Linear(8, 4, bias=False)})

    def loss(m: Any, b: Any) -> Tensor:
        cos = (F.normalize(m["net"](b[0]), dim=1) @ F.normalize(m["onto"].weight, dim=1).T).clamp(-1 + 1e-6, 1 - 1e-6)
        hot = F.one_hot(b[1], 4).bool()
        return F.cross_entropy(30 * torch.where(hot, (cos.acos() + 0.3).cos(), cos), b[1])

    simple(run, model, torch.optim.SGD(model.parameters(), 0.02, 0.9), loss, lambda: labelled(12), clip=5.0)


def many_exits(run: Run) -> None:
    """A head after each layer, LayerScale from nearly nothing, layers left out by chance."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into = nn.Linear(12, 24)
            self.layers = nn.ModuleList(nn.Sequential(nn.LayerNorm(24), mlp(24, 24)) for _ in range(4))
            self.scales = nn.ParameterList(nn.Parameter(torch.full((24,), 1e-4)) for _ in range(4))
            self.heads = nn.ModuleList(nn.Linear(24, 4) for _ in range(4))

        def forward(self, x: Tensor) -> list[Tensor]:
            h, out = self.into(x), []
            for layer, scale, head in zip(self.layers, self.scales, self.heads, strict=True):
                keep = (torch.rand(len(x), 1) < 0.8).float() / 0.8 if self.training else 1.0
                h = h + keep * scale * layer(h)
                out.append(head(h))
            return out

    model = Deep()

    def loss(m: nn.Module, b: Any) -> Tensor:
        out = m(b[0])
        last = out[-1].detach().softmax(1)
        deep = [(i + 1) / 10 * F.cross_entropy(o, b[1]) for i, o in enumerate(out)]
        alike = [0.1 * F.kl_div(o.log_softmax(1), last, reduction="batchmean") for o in out]
        return torch.stack(deep + alike).sum()

    simple(run, model, torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05), loss, lambda: labelled(12))


def energy_kept(run: Run) -> None:
    """A Hamiltonian net: the derivative of what it gives is what is trained."""
    model = nn.Sequential(nn.Linear(4, 48), nn.Softplus(), nn.Linear(48, 48), nn.Softplus(), nn.Linear(48, 1))

    def loss(m: nn.Module, b: Any) -> Tensor:
        at = b[0].detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(m(at).sum(), at, create_graph=True)
        return F.mse_loss(torch.cat([slope[:, 2:], -slope[:, :2]], 1), b[1])

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 4)
        return x, torch.cat([x[:, 2:], -x[:, :2].sin()], 1)

    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), loss, batch)


def noise_levels(run: Run) -> None:
    """Denoising score matching at ten levels of noise, each weighed by its square."""
    model = mlp(13, 12)
    levels = torch.logspace(0.5, -1.5, 10)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, which = b
        s = levels[which][:, None]
        score = m(torch.cat([x + s * noise, s.log()], 1)) / s
        return 0.5 * (s * score + noise).square().sum(1).mean()

    o = torch.optim.Adam(model.parameters(), 1e-3)
    simple(
        run, model, o, loss, lambda: (rand(32, 12).sign() + 0.1 * rand(32, 12), rand(32, 12), torch.randint(10, (32,)))
    )


def matched(run: Run) -> None:
    """Boxes by queries: each true one takes the cheapest query, overlap and distance, a class weighed down for none."""

    class Boxes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.query = nn.Linear(16, 32), nn.Parameter(torch.randn(6, 32))
            self.kind, self.box = nn.Linear(32, 4), nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = (self.body(x)[:, None] + self.query).relu()
            return self.kind(h), self.box(h).sigmoid()

    def corners(b: Tensor) -> Tensor:
        return torch.cat([b[..., :2] - b[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2], -1)

    def overlap(a: Tensor, b: Tensor) -> Tensor:
        a, b = corners(a), corners(b)
        size = [(c[..., 2:] - c[..., :2]).clamp(min=0).prod(-1) for c in (a, b)]
        both = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
        hull = (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0).prod(-1)
        union = size[0] + size[1] - both
        return both / (union + 1e-7) - (hull - union) / (hull + 1e-7)

    model = Boxes()

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, true, kind = b
        logits, boxes = m(x)
        pick = torch.cdist(boxes.detach(), true).argmin(1)
        mine = boxes.gather(1, pick[..., None].expand(-1, -1, 4))
        labels = torch.full(logits.shape[:2], 3).scatter(1, pick, kind)
        weight = torch.tensor([1.0, 1.0, 1.0, 0.1])
        said = F.cross_entropy(logits.transpose(1, 2), labels, weight)
        return said + 5 * F.l1_loss(mine, true) + 2 * (1 - overlap(mine, true)).mean()

    def batch() -> Any:
        x = rand(12, 16)
        true = torch.stack([x[:, i * 4 : i * 4 + 4].sigmoid() * 0.5 + 0.25 for i in range(2)], 1)
        return x, true, (x[:, :2] > 0).long() + (x[:, 2:4] > 1).long()

    simple(run, model, torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=1e-4), loss, batch, clip=0.1)


def evidential(run: Run) -> None:
    """Deep evidential regression: a normal-inverse-gamma likelihood."""
    model = mlp(12, 4)

    def loss(m: nn.Module, b: Any) -> Tensor:
        mean, v, a, s = m(b[0]).unbind(1)
        v, a, s = F.softplus(v) + 1e-3, F.softplus(a) + 1.001, F.softplus(s) + 1e-3
        o, off = 2 * s * (1 + v), b[1] - mean
        likely = 0.5 * (math.pi / v).log() - a * o.log() + (a + 0.5) * (off.square() * v + o).log()
        return (likely + torch.lgamma(a) - torch.lgamma(a + 0.5) + 0.01 * off.abs() * (2 * v + a)).mean()

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x, x[:, 0] + 0.1 * x[:, 1].abs() * rand(32)

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), loss, batch)


def ordered_classes(run: Run) -> None:
    """CORAL: one score, thresholds that are learned, a class for each that it passes."""
    model = mlp(12, 1)
    model.steps = nn.Parameter(torch.tensor([1.0, 0.0, -1.0]))

    def loss(m: Any, b: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(b[0]) + m.steps, (b[1][:, None] > torch.arange(3)).float())

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x, (x[:, 0] * 1.5 + 1.5).clamp(0, 3).round().long()

    simple(run, model, torch.optim.RMSprop(model.parameters(), 1e-3, alpha=0.9, momentum=0.9), loss, batch)


def zero_surface(run: Run) -> None:
    """A signed distance with an eikonal term: slopes of length one, double backward, geometric start."""
    model = nn.Sequential(nn.Linear(3, 48), nn.Softplus(20), nn.Linear(48, 48), nn.Softplus(20), nn.Linear(48, 1))

    def loss(m: nn.Module, b: Any) -> Tensor:
        on = F.normalize(b[0], dim=1)
        free = b[1].detach().requires_grad_(True)
        (slope,) = torch.autograd.grad(m(free).sum(), free, create_graph=True)
        return (
            m(on).abs().mean()
            + 0.1 * (slope.norm(dim=1) - 1).square().mean()
            + 0.1 * (-10 * m(free).abs()).exp().mean()
        )

    o = torch.optim.Adam(model.parameters(), 1e-3, weight_decay=1e-5)
    simple(run, model, o, loss, lambda: (rand(24, 3), rand(24, 3)))


def matched_features(run: Run) -> None:
    """A student of a wider teacher: hidden layers compared through learned projections, its temperature falls."""
    teacher, model = (
        mlp(12, 4).requires_grad_(False),
        nn.ModuleDict({"a": nn.Linear(12, 16), "b": nn.Linear(16, 4), "onto": nn.Linear(16, 32)}),
    )
    at = [4.0]

    def loss(m: Any, b: Any) -> Tensor:
        h = m["a"](b[0]).relu()
        out, hidden, told = m["b"](h), teacher[0](b[0]).relu(), teacher(b[0])
        soft = F.kl_div((out / at[0]).log_softmax(1), (4 * told / at[0]).softmax(1), reduction="batchmean") * at[0] ** 2
        near = 1 - F.cosine_similarity(m["onto"](h), hidden).mean()
        return soft + near + 0.5 * F.cross_entropy(out, b[1])

    def after(step: int) -> None:
        at[0] = max(1.0, 4 - step / 50)

    simple(run, model, torch.optim.NAdam(model.parameters(), 2e-3), loss, lambda: labelled(12), after)


FIFTH: dict[str, Any] = {
    loop.__name__: loop
    for loop in (
        *(rectified, preconditioned, consistency, modern_words, preferences, groups, self_taught, variance_kept),
        *(redundancy, assigned, hidden_patches, reversible_norm, picture, splats, heat, chain, duelling),
        *(categorical_values, expectile, dreamt, codes, finite_levels, projected_conflicts, averaged_weights),
        *(looks_ahead, own_optimizer, half_weights, operator, two_towers, angular, many_exits, energy_kept),
        *(noise_levels, matched, evidential, ordered_classes, zero_surface, matched_features),
    )
}
