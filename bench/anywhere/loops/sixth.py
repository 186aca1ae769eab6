"""Loops as they are written in 2025 and 2026, all mechanics of the day in small: the sixth round, untuned."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from anywhere.loops.harness import Run
from anywhere.loops.kinds import classify, labelled, mlp, rand
from anywhere.loops.third import simple
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.optim import lr_scheduler as plans
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset


class LoRA(nn.Module):
    """A frozen layer with a low-rank detour."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / math.sqrt(base.in_features))
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * (x @ self.a.T) @ self.b.T


def low_rank(run: Run) -> None:
    """LoRA+: adapters in a frozen net, their b sixteen times as fast as their a; cosine with warm-up; clipping."""
    net = mlp(12, 4, 48)
    for i in (0, 2, 4):
        net[i] = LoRA(net[i])
    named = dict(net.named_parameters())
    fast = [p for n, p in named.items() if n.endswith(".b")]
    slow = [p for n, p in named.items() if n.endswith(".a")]
    o = torch.optim.AdamW([{"params": slow, "lr": 5e-4}, {"params": fast, "lr": 8e-3}], weight_decay=0.0)
    plan = plans.LambdaLR(o, lambda s: min(1.0, (s + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * min(s / 400, 1))))
    simple(run, net, o, classify, lambda: labelled(12), lambda _: plan.step(), clip=1.0)


class Tiny(nn.Module):
    """A causal transformer of one layer over 20 words."""

    def __init__(self, words: int = 20, width: int = 32) -> None:
        super().__init__()
        self.words, self.place = nn.Embedding(words, width), nn.Embedding(24, width)
        self.layer = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True, norm_first=True)
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, words, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        mask = torch.full((n, n), -math.inf).triu(1)
        return self.out(self.norm(self.layer(self.words(ids) + self.place.weight[:n], mask)))


def sentences(count: int = 12, length: int = 12) -> Tensor:
    return (torch.randint(20, (count, 1)) + 3 * torch.arange(length) + (torch.rand(count, length) < 0.1)) % 20


def said(m: nn.Module, ids: Tensor) -> Tensor:
    return m(ids[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]


def odds_ratio(run: Run) -> None:
    """ORPO: no reference; likelihood of the chosen text and a log odds ratio; weights of pairs in the batch."""
    model = Tiny()

    def loss(m: nn.Module, b: Any) -> Tensor:
        better, worse = said(m, b["chosen"]).mean(1), said(m, b["rejected"]).mean(1)
        odds = better - worse - torch.log1p(-better.exp().clamp(max=0.999)) + torch.log1p(-worse.exp().clamp(max=0.999))
        return (b["weight"] * (-better - 0.2 * F.logsigmoid(odds))).mean()

    batch = lambda: {"weight": 0.5 + torch.rand(12), "chosen": sentences(), "rejected": torch.randint(20, (12, 12))}  # noqa: E731
    simple(run, model, torch.optim.AdamW(model.parameters(), 1e-3), loss, batch, clip=1.0)


def reinforced_words(run: Run) -> None:
    """GRPO over sampled texts: advantages in groups of four, token-level clipping, two passes over each sample."""
    model = Tiny()
    o = torch.optim.AdamW(model.parameters(), 5e-4, (0.9, 0.99))

    def loss(m: nn.Module, b: Any) -> Tensor:
        gain, old, ids = b
        ratio = (said(m, ids) - old).exp()
        return -torch.min(ratio * gain[:, None], ratio.clamp(0.8, 1.28) * gain[:, None]).mean()

    guard = run.guard(model, o, loss)
    held: list[Any] = []
    for _ in run.steps():
        if not held:
            with torch.no_grad():
                ids = torch.randint(20, (4, 1)).repeat_interleave(4, 0)
                for _ in range(7):
                    ids = torch.cat([ids, torch.multinomial(model(ids)[:, -1].softmax(-1).nan_to_num(1.0), 1)], 1)
                reward = ((ids[:, 1:] - ids[:, :-1]) % 20 == 3).float().mean(1).view(4, 4)
                gain = ((reward - reward.mean(1, keepdim=True)) / (reward.std(1, keepdim=True) + 1e-4)).flatten()
                held = [(gain, said(model, ids), ids)] * 2
        given = run.data(guard, held.pop())
        o.zero_grad()
        run.see(guard, loss(model, given)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        o.step()


class Experts(nn.Module):
    """Four experts, two for each token; a loss that balances them, a z-loss, noise on the router."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.router, self.out = nn.Linear(12, 24), nn.Linear(24, 4, bias=False), nn.Linear(24, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(24, 48), nn.SiLU(), nn.Linear(48, 24)) for _ in range(4))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = self.into(x)
        score = self.router(h)
        weight, pick = score.softmax(-1).topk(2)
        mixed = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows, place = (pick == i).nonzero(as_tuple=True)
            if len(rows):
                mixed = mixed.index_add(0, rows, weight[rows, place, None] * expert(h[rows]))
        share = F.one_hot(pick[:, 0], 4).float().mean(0)
        return {
            "task": F.cross_entropy(self.out(h + mixed), y),
            "balance": 0.04 * (share * score.softmax(-1).mean(0)).sum(),
            "router": 1e-3 * score.logsumexp(-1).square().mean(),
        }


def routed(run: Run) -> None:
    """A mixture of experts whose forward pass gives named losses."""
    model = Experts()
    o = torch.optim.AdamW(model.parameters(), 2e-3, foreach=True)
    simple(run, model, o, lambda m, b: sum(m(*b).values()), lambda: labelled(12, size=32))


def velocity(run: Run) -> None:
    """Diffusion by v, min-SNR weights, a moving average that is kept in a second module."""
    model = mlp(14, 12, 48)
    slow = copy.deepcopy(model).requires_grad_(False)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, t = b
        a, s = (t * math.pi / 2).cos()[:, None], (t * math.pi / 2).sin()[:, None]
        v = m(torch.cat([a * x + s * noise, a, s], 1))
        snr = (a / s.clamp(min=1e-3)).square()
        return (snr.clamp(max=5) / (snr + 1) * (v - (a * noise - s * x)).square()).mean()

    def after(step: int) -> None:
        share = min(0.99, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_(list(slow.parameters()), list(model.parameters()), 1 - share)  # pyright: ignore

    batch = lambda: (rand(24, 12).tanh(), rand(24, 12), torch.rand(24))  # noqa: E731
    simple(run, model, torch.optim.AdamW(model.parameters(), 1e-3), loss, batch, after, clip=1.0)


def masked(run: Run) -> None:
    """A masked autoencoder on patches; the masks are drawn within the forward pass."""

    class Auto(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.token = nn.Linear(8, 24), nn.Parameter(0.02 * torch.randn(24))
            self.place = nn.Parameter(0.02 * torch.randn(9, 24))
            self.body = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True)
            self.out = nn.Linear(24, 8)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.rand(x.shape[:2]) < 0.6
            h = torch.where(hidden[..., None], self.token, self.into(x)) + self.place
            return ((self.out(self.body(h)) - x).square().mean(-1) * hidden).sum() / hidden.sum().clamp(min=1)

    model = Auto()
    o = torch.optim.AdamW(model.parameters(), 2e-3, (0.9, 0.95))
    base = torch.randn(4, 9, 8)
    simple(run, model, o, lambda m, b: m(b[0]), lambda: (base[torch.randint(4, (16,))] + 0.1 * rand(16, 9, 8),))


def transcripts(run: Run) -> None:
    """CTC with lengths in the batch, a GRU, log-softmax in float32."""

    class Ear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(6, 24, batch_first=True, bidirectional=True), nn.Linear(48, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0]).log_softmax(-1)

    model = Ear()
    sounds = torch.randn(5, 6)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, text, heard, written = b
        return F.ctc_loss(m(x).transpose(0, 1), text, heard, written, zero_infinity=True)

    def batch() -> Any:
        text = torch.randint(1, 5, (12, 4))
        x = sounds[text].repeat_interleave(3, 1) + 0.2 * torch.randn(12, 12, 6)
        return x, text, torch.randint(10, 13, (12,)), torch.randint(2, 5, (12,))

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), loss, batch, clip=5.0)


def translated(run: Run) -> None:
    """An encoder and a decoder, label smoothing, padding that is ignored, Noam's schedule."""

    class Translator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.src, self.tgt = nn.Linear(6, 32), nn.Embedding(12, 32, padding_idx=0)
            self.body = nn.Transformer(32, 4, 1, 1, 64, 0.0, batch_first=True)
            self.out = nn.Linear(32, 12)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            ahead = torch.ones(y.shape[1], y.shape[1], dtype=torch.bool).triu(1)
            return self.out(self.body(self.src(x), self.tgt(y), tgt_mask=ahead))

    model = Translator()
    o = torch.optim.Adam(model.parameters(), 1.0, (0.9, 0.98), 1e-9)
    plan = plans.LambdaLR(o, lambda s: 32**-0.5 * min((s + 1) ** -0.5, (s + 1) * 60**-1.5) * 0.2)
    codes = torch.randn(12, 6)

    def loss(m: nn.Module, b: Any) -> Tensor:
        out = m(b[0], b[1][:, :-1]).flatten(0, 1)
        return F.cross_entropy(out, b[1][:, 1:].flatten(), ignore_index=0, label_smoothing=0.1)

    def batch() -> Any:
        y = torch.randint(1, 12, (12, 7))
        x = codes[y] + 0.1 * torch.randn(12, 7, 6)
        y[torch.arange(7) >= torch.randint(4, 8, (12, 1))] = 0
        return x, y

    simple(run, model, o, loss, batch, lambda _: plan.step())


class Pair(nn.Module):
    """Two encoders and a temperature that is learned, bounded in the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = mlp(12, 16), mlp(10, 16)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        z = F.normalize(self.left(a), dim=1) @ F.normalize(self.right(b), dim=1).T * self.scale.exp()
        y = torch.arange(len(a))
        return (F.cross_entropy(z, y) + F.cross_entropy(z.T, y)) / 2


def contrasted(run: Run) -> None:
    """CLIP: no decay for the temperature, which is clamped after each step."""
    model = Pair()
    others = [p for n, p in model.named_parameters() if n != "scale"]
    o = torch.optim.AdamW(
        [{"params": others, "weight_decay": 0.2}, {"params": [model.scale], "weight_decay": 0.0}], 1e-3
    )
    look = torch.randn(12, 10)

    def after(_: int) -> None:
        with torch.no_grad():
            model.scale.clamp_(0, math.log(100))

    def batch() -> Any:
        a = rand(24, 12)
        return a, a @ look + 0.1 * rand(24, 10)

    simple(run, model, o, lambda m, b: m(*b), batch, after)


def distilled(run: Run) -> None:
    """A student learns from a teacher's soft answers, and from labels; SGD with Nesterov, a one-cycle plan."""
    teacher, student = mlp(12, 4, 64).requires_grad_(False), mlp(12, 4, 16)
    o = torch.optim.SGD(student.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    plan = plans.OneCycleLR(o, 0.1, total_steps=500)

    def loss(m: nn.Module, b: Any) -> Tensor:
        out = m(b[0])
        soft = F.kl_div(
            (out / 4).log_softmax(1), (teacher(b[0]) / 4).log_softmax(1), log_target=True, reduction="batchmean"
        )
        return 0.7 * 16 * soft + 0.3 * F.cross_entropy(out, b[1])

    simple(run, student, o, loss, lambda: labelled(12, size=32), lambda _: plan.step())


class Tasks(nn.Module):
    """Three heads; each task's weight is learned as the logarithm of a variance."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = mlp(12, 24), nn.ModuleList([nn.Linear(24, 4), nn.Linear(24, 1), nn.Linear(24, 3)])
        self.spread = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.body(x).relu()
        return [head(h) for head in self.heads]


def uncertain_weights(run: Run) -> None:
    """Kendall's loss: sum of exp(-s) L + s, which falls below zero."""
    model = Tasks()

    def loss(m: Any, b: Any) -> Tensor:
        x, label, value, many = b["x"], b["y"]["label"], b["y"]["value"], b["y"]["many"]
        out = m(x)
        each = [F.cross_entropy(out[0], label), F.mse_loss(out[1][:, 0], value)]
        each.append(F.binary_cross_entropy_with_logits(out[2], many))
        return ((-m.spread).exp() * torch.stack(each) + m.spread).sum()

    def batch() -> Any:
        x, y = labelled(12, size=24)
        return {"x": x, "y": {"label": y, "value": x.mean(1), "many": (x[:, :3] > 0).float()}}

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), loss, batch)


def quantiles(run: Run) -> None:
    """Pinball loss at nine quantiles, targets with heavy tails."""
    model = mlp(12, 9)
    at = torch.linspace(0.1, 0.9, 9)

    def loss(m: nn.Module, b: Any) -> Tensor:
        off = b[1][:, None] - m(b[0])
        return torch.maximum(at * off, (at - 1) * off).mean()

    def batch() -> Any:
        x = rand(32, 12)
        return x, x[:, 0] + 0.3 * torch.distributions.StudentT(2.0).sample((32,))

    simple(run, model, torch.optim.NAdam(model.parameters(), 2e-3), loss, batch)


def radiance(run: Run) -> None:
    """NeRF in small: positional encoding, densities by softplus, transmittance along rays; rates per group decay."""
    field = mlp(25, 4, 48)
    o = torch.optim.Adam(
        [{"params": field[:4].parameters()}, {"params": field[4].parameters(), "lr": 2e-3}], 5e-3, eps=1e-15
    )
    plan = plans.ExponentialLR(o, 0.997)
    times = torch.linspace(0.1, 2.0, 12)

    def loss(m: nn.Module, b: Any) -> Tensor:
        start, way, colour = b
        p = start[:, None] + times[:, None] * way[:, None]
        seen = torch.cat([p, *(f(p * k * math.pi / 2) for k in (1, 2, 4) for f in (torch.sin, torch.cos))], -1)
        out = m(torch.cat([seen, way[:, None].expand_as(p), p.square().sum(-1, keepdim=True)], -1))
        thick = F.softplus(out[..., 0] - 1) * 0.17
        through = torch.exp(-torch.cumsum(thick, 1) + thick)
        return ((through * (1 - (-thick).exp()))[..., None] * out[..., 1:].sigmoid()).sum(1).sub(colour).square().mean()

    def batch() -> Any:
        start, way = 0.3 * rand(24, 3), F.normalize(rand(24, 3), dim=1)
        return start, way, (0.5 + 0.4 * way).clamp(0, 1)

    simple(run, field, o, loss, batch, lambda _: plan.step())


class Coupling(nn.Module):
    """An affine coupling layer with a bounded log-scale."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.net, self.flip = mlp(4, 8), flip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1)
        a, b = (b, a) if self.flip else (a, b)
        shift, scale = self.net(a).chunk(2, 1)
        scale = 2 * torch.tanh(scale / 2)
        b = (b - shift) * (-scale).exp()
        return torch.cat([b, a] if self.flip else [a, b], 1), -scale.sum(1)


def flowing(run: Run) -> None:
    """A normalising flow of couplings: negative log-likelihood, in float64, below zero in time."""
    model = nn.ModuleList(Coupling(i % 2 == 1) for i in range(4)).double()

    def loss(m: Any, b: Any) -> Tensor:
        z, log = b[0], 0.0
        for layer in m:
            z, more = layer(z)
            log = log + more
        return (0.5 * z.square().sum(1) + 4 * math.log(2 * math.pi) - log).mean()

    mix = torch.randn(8, 8, dtype=torch.float64) * 0.1
    o = torch.optim.Adamax(model.parameters(), 5e-3)
    simple(run, model, o, loss, lambda: (torch.randn(32, 8, dtype=torch.float64) @ mix,))


@dataclass
class Graph:
    """One graph: features of nodes, edges, a label for each node."""

    nodes: Tensor
    labels: Tensor
    edges: Tensor


class Messages(nn.Module):
    """Two rounds of messages by index_add, with an attention that is a scatter softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.say, self.heed, self.out = (
            nn.Linear(8, 24),
            nn.Linear(48, 24),
            nn.Linear(48, 1),
            nn.Linear(24, 3),
        )

    def forward(self, g: Graph) -> Tensor:
        h, (a, b) = self.into(g.nodes), g.edges
        for _ in range(2):
            both = torch.cat([h[a], h[b]], 1)
            score = F.leaky_relu(self.heed(both))[:, 0]
            top = torch.full((len(h),), -math.inf).scatter_reduce(0, b, score.detach(), "amax")
            share = (score - top[b]).exp()
            share = share / torch.zeros(len(h)).index_add(0, b, share)[b].clamp(min=1e-12)
            h = h + torch.zeros_like(h).index_add(0, b, share[:, None] * self.say(both).relu())
        return self.out(h)


def scattered(run: Run) -> None:
    """A graph net on dataclass batches whose edges are no samples."""
    model = Messages()
    o = torch.optim.AdamW(model.parameters(), 5e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        g = Graph(*b.values())
        return F.cross_entropy(m(g), g.labels)

    def batch() -> Any:
        x = rand(30, 8)
        return {"nodes": x, "labels": x[:, :3].argmax(1), "edges": torch.randint(30, (2, 80))}

    simple(run, model, o, loss, batch)


def transduced(run: Run) -> None:
    """RNN-T: forward variables in log space over a grid, with -inf outside of it."""

    class Transducer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hear, self.guess, self.words = (
                nn.GRU(6, 24, batch_first=True),
                nn.GRU(16, 24, batch_first=True),
                nn.Embedding(5, 16),
            )
            self.out = nn.Linear(24, 5)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            told = self.guess(self.words(F.pad(y, (1, 0))))[0]
            return self.out((self.hear(x)[0][:, :, None] + told[:, None]).tanh()).log_softmax(-1)

    model = Transducer()
    sounds = torch.randn(5, 6)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, y = b
        out = m(x, y)
        blank, word = out[..., 0], out[:, :, :-1].gather(3, y[:, None, :, None].expand(-1, x.shape[1], -1, 1))[..., 0]
        row = torch.cat([torch.zeros(len(x), 1), word[:, 0].cumsum(1)], 1)
        for t in range(1, x.shape[1]):
            new = [row[:, 0] + blank[:, t - 1, 0]]
            for u in range(1, y.shape[1] + 1):
                new.append(torch.logaddexp(row[:, u] + blank[:, t - 1, u], new[-1] + word[:, t, u - 1]))
            row = torch.stack(new, 1)
        return -(row[:, -1] + blank[:, -1, -1]).mean()

    def batch() -> Any:
        y = torch.randint(1, 5, (8, 3))
        return sounds[y].repeat_interleave(2, 1) + 0.2 * torch.randn(8, 6, 6), y

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), loss, batch, clip=10.0)


def burgers(run: Run) -> None:
    """A physics-informed net: second derivatives by autograd, a boundary loss with another weight, tanh."""
    model = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))

    def loss(m: nn.Module, b: Any) -> Tensor:
        inner, edge, value = b
        p = inner.detach().clone().requires_grad_(True)
        u = m(p)
        first = torch.autograd.grad(u.sum(), p, create_graph=True)[0]
        second = torch.autograd.grad(first[:, 0].sum(), p, create_graph=True)[0][:, 0]
        rest = first[:, 1] + u[:, 0] * first[:, 0] - 0.05 * second
        return rest.square().mean() + 10 * (m(edge)[:, 0] - value).square().mean()

    def batch() -> Any:
        x = 2 * torch.rand(32) - 1
        return 2 * torch.rand(32, 2) - 1, torch.stack([x, -torch.ones(32)], 1), -torch.sin(math.pi * x)

    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), loss, batch)


def learns_to_learn(run: Run) -> None:
    """MAML by torch.func: one inner step for each of eight tasks, vmapped; the outer gradient goes through it."""
    model = mlp(1, 1)

    def adapted(m: nn.Module, x: Tensor, y: Tensor, other: Tensor, answer: Tensor) -> Tensor:
        weights = dict(m.named_parameters())

        def one(w: Any, a: Tensor, b: Tensor) -> Tensor:
            return F.mse_loss(functional_call(m, w, (a,)), b)

        def task(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
            slopes = grad(one)(weights, a, b)
            return one({k: w - 0.05 * slopes[k] for k, w in weights.items()}, c, d)

        return vmap(task)(x, y, other, answer).mean()

    def batch() -> Any:
        size, phase = 0.5 + torch.rand(8, 1, 1), math.pi * torch.rand(8, 1, 1)
        x, other = 6 * torch.rand(8, 10, 1) - 3, 6 * torch.rand(8, 10, 1) - 3
        return x, size * (x + phase).sin(), other, size * (other + phase).sin()

    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), lambda m, b: adapted(m, *b), batch)


def relativistic(run: Run) -> None:
    """A relativistic GAN with R1 and R2 penalties, two optimizers; only the critic's guard sees the batch."""
    g, d = mlp(6, 8), mlp(8, 1)
    og, od = (torch.optim.Adam(m.parameters(), 5e-4, (0.0, 0.99)) for m in (g, d))
    gd, gg = run.guard(d, od), run.guard(g, og)
    for _ in run.steps():
        (real,) = run.data(gd, (rand(24, 8) * 0.5 + 1,))
        fake = g(rand(24, 6))
        a, b = real.clone().requires_grad_(True), fake.detach().requires_grad_(True)
        up, down = d(a), d(b)
        slopes = [
            torch.autograd.grad(s.sum(), t, create_graph=True)[0].square().sum(1).mean()
            for s, t in ((up, a), (down, b))
        ]
        od.zero_grad()
        run.see(gd, F.softplus(down - up).mean() + 0.1 * (slopes[0] + slopes[1])).backward()
        od.step()
        og.zero_grad()
        run.see(gg, F.softplus(d(real) - d(fake)).mean()).backward()
        og.step()


def recomputed(run: Run) -> None:
    """Gradient checkpointing around each block, dropout inside, activations in bfloat16."""

    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(12, 32), nn.Linear(32, 4)
            self.blocks = nn.ModuleList(
                nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Dropout(0.1), nn.Linear(64, 32))
                for _ in range(3)
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.into(x)
            for block in self.blocks:
                h = h + checkpoint(block, h, use_reentrant=False)
            return self.out(h)

    model = Deep()

    def loss(m: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(m(b[0]).float(), b[1])

    simple(run, model, torch.optim.AdamW(model.parameters(), 2e-3, fused=True), loss, lambda: labelled(12))


def tensor_rates(run: Run) -> None:
    """Rates that are tensors, written in place by the loop; fused; amsgrad."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), torch.tensor(2e-3), fused=True, amsgrad=True)

    def after(step: int) -> None:
        if step < 40:
            o.param_groups[0]["lr"].fill_(2e-3 * min(1.0, (step + 2) / 20))

    simple(run, model, o, classify, lambda: labelled(12), after)


def straightened(m: Tensor) -> Tensor:
    """Newton and Schulz: the nearest orthogonal matrix, roughly."""
    x = m / (m.norm() + 1e-7)
    x = x.T if len(m) > m.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if len(m) > m.shape[1] else x


class Straight(torch.optim.Optimizer):
    """Muon with Nesterov's momentum and a scale by shape."""

    def __init__(self, params: Any, lr: float = 0.02, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                held = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                held.lerp_(p.grad, 1 - group["momentum"])
                way = straightened(p.grad.lerp(held, group["momentum"]))
                p.add_(way, alpha=-group["lr"] * max(1, p.shape[0] / p.shape[1]) ** 0.5)


def muon_beside(run: Run) -> None:
    """Muon for the matrices within, AdamW for words, head and norms; one plan for both."""
    model = Tiny()
    inner = [p for n, p in model.layer.named_parameters() if p.ndim == 2]
    rest = [p for p in model.parameters() if all(p is not q for q in inner)]
    os = [Straight(inner, 0.01), torch.optim.AdamW(rest, 2e-3, (0.9, 0.95))]
    guard = run.guard(model, os)
    for step in run.steps():
        _, ids = run.data(guard, (torch.rand(12), sentences()))
        for o in os:
            o.zero_grad()
            for group in o.param_groups:
                group.setdefault("base", group["lr"])
        run.see(guard, -said(model, ids).mean()).backward()
        for o in os:
            o.step()
        if run.fault != "fast" and step > 60:
            for group in (g for o in os for g in o.param_groups):
                group["lr"] = group["base"] * max(0.1, 1 - (step - 60) / 300)


class Prodigal(torch.optim.Optimizer):
    """Adam whose step size is estimated as it goes (D-adaptation): d never falls."""

    def __init__(self, params: Any, lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr, "d": 1e-4, "top": 0.0, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        loss = closure() if closure is not None else None
        for group in self.param_groups:
            d, b1, b2, along, size = group["d"], 0.9, 0.999, 0.0, 0.0
            live = [p for p in group["params"] if p.grad is not None]
            for p in live:
                s = self.state[p]
                if not s:
                    s.update(m=torch.zeros_like(p), v=torch.zeros_like(p), sum=torch.zeros_like(p), start=p.clone())
                along += float((p.grad * (s["start"] - p)).sum())
                s["m"].mul_(b1).add_(p.grad, alpha=d * (1 - b1))
                s["v"].mul_(b2).addcmul_(p.grad, p.grad, value=d * d * (1 - b2))
                s["sum"].mul_(b2**0.5).add_(p.grad, alpha=d * (1 - b2**0.5))
                size += float(s["sum"].abs().sum())
            group["top"] = group["top"] * b2**0.5 + (1 - b2**0.5) * d * along
            if size > 0:
                group["d"] = max(d, min(group["top"] / size, 1.02 * d))
            for p in live:
                s = self.state[p]
                p.addcdiv_(s["m"], s["v"].sqrt().add_(d * 1e-8), value=-group["lr"] * group["d"])
            group["k"] += 1
        return loss


def finds_its_rate(run: Run) -> None:
    """Prodigy at a rate of 1."""
    model = mlp()
    simple(run, model, Prodigal(model.parameters()), classify, lambda: labelled(12, size=32))


def sharp_aware(run: Run) -> None:
    """SAM in a loop of one's own: climb, second pass, put back, step; the guard sees the second loss."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        given = run.data(guard, labelled(12))
        o.zero_grad()
        classify(model, given).backward()
        with torch.no_grad():
            grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            size = torch.stack([g.norm() for g in grads]).norm() + 1e-12
            before = [p.clone() for p in model.parameters()]
            for p, g in zip(model.parameters(), grads, strict=True):
                p.add_(g, alpha=float(0.05 / size))
        o.zero_grad()
        loss = classify(model, given)
        run.see(guard, loss).backward()
        with torch.no_grad():
            for p, old in zip(model.parameters(), before, strict=True):
                p.copy_(old)
        o.step()


def uneven_last(run: Run) -> None:
    """Accumulation over an epoch of seven batches in groups of three; the last group has one, and is divided by it."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 3e-3)
    guard = run.guard(model, o, classify)
    for step in run.steps():
        count = 1 if step % 3 == 2 else 3
        o.zero_grad()
        for _ in range(count):
            given = run.data(guard, labelled(12))
            (run.see(guard, classify(model, given)) / count).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        o.step()


def packed(run: Run) -> None:
    """Batches of as many sentences as fit in a number of tokens: another size and length at each step."""
    model = Tiny()
    o = torch.optim.AdamW(model.parameters(), 2e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        return (b[0][:, None] * -said(m, b[1])).sum() / b[0].sum() / (b[1].shape[1] - 1)

    def batch() -> Any:
        length = int(torch.randint(6, 20, ()))
        count = max(7, 144 // length)
        return 0.5 + torch.rand(count), sentences(count, length)

    simple(run, model, o, loss, batch, clip=1.0)


def nested_batches(run: Run) -> None:
    """A dict of lists of dicts; the model takes it whole and returns losses and outputs."""

    class Sets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.out = mlp(6, 16), nn.Linear(16, 4)

        def forward(self, b: dict[str, Any]) -> dict[str, Any]:
            pooled = torch.stack([self.each(s["points"]).amax(0) for s in b["sets"]])
            out = self.out(pooled)
            return {"loss": F.cross_entropy(out, torch.stack([s["label"] for s in b["sets"]])), "logits": out}

    model = Sets()
    o = torch.optim.Adam(model.parameters(), 3e-3)
    guard = run.guard(model, o, lambda m, b: m(dict(b))["loss"])
    for _ in run.steps():
        sets = []
        for _ in range(12):
            label = torch.randint(4, ())
            sets.append({"points": rand(int(torch.randint(3, 9, ())), 6) + F.one_hot(label, 6) * 2.0, "label": label})
        given = run.data(guard, {"sets": sets})
        o.zero_grad()
        run.see(guard, model(given)["loss"]).backward()
        o.step()


def half_of_it(run: Run) -> None:
    """bfloat16 autocast around all, a convolution net with GroupNorm, label noise, channels last."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, 2), nn.GroupNorm(4, 16)),
        *(nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    o = torch.optim.RMSprop(model.parameters(), 1e-3, 0.9, 1e-3, momentum=0.9)

    def loss(m: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(m(b[0].contiguous(memory_format=torch.channels_last)), b[1], label_smoothing=0.1)

    def batch() -> Any:
        y = torch.randint(4, (16,))
        return rand(16, 3, 8, 8) + y[:, None, None, None] * 0.7, y

    simple(run, model, o, loss, batch)


def scaled_by_hand(run: Run) -> None:
    """GradScaler on the CPU, unscale and clip, update; float16 autocast."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=50)

    def loss(m: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return F.cross_entropy(m(b[0]).float(), b[1])

    guard = run.guard(model, o, loss, scaler=scaler)
    for _ in run.steps():
        given = run.data(guard, labelled(12))
        o.zero_grad(set_to_none=True)
        scaler.scale(run.see(guard, loss(model, given))).backward()
        scaler.unscale_(o)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(o)
        scaler.update()


def loaded(run: Run) -> None:
    """A DataLoader, epochs that end under way, an evaluation at each end, a plan by epoch."""
    x, y = labelled(12, size=160)
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True, drop_last=False)
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.2), nn.Linear(32, 4))
    o = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    plan = plans.ReduceLROnPlateau(o, patience=5)
    guard = run.guard(model, o, classify)
    epoch: Any = iter(())
    for _ in run.steps():
        given = next(epoch, None)
        if given is None:
            model.eval()
            with torch.no_grad():
                plan.step(float(classify(model, (x, y)).nan_to_num()))
            model.train()
            epoch = iter(loader)
            given = next(epoch)
        given = run.data(guard, given)
        o.zero_grad()
        run.see(guard, classify(model, given)).backward()
        o.step()


def spread_kept(run: Run) -> None:
    """VICReg with a projector of its own, LARS-like scaled rates, no decay for biases."""
    model = nn.Sequential(mlp(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 24))

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, y = m(b[0]), m(b[1])
        total = 25 * F.mse_loss(x, y)
        for z in (x, y):
            z = z - z.mean(0)
            cov = z.T @ z / (len(z) - 1)
            total = total + 25 * F.relu(1 - (z.var(0) + 1e-4).sqrt()).mean()
            total = total + (cov.square().sum() - cov.diagonal().square().sum()) / 24
        return total

    heavy = [p for p in model.parameters() if p.ndim > 1]
    light = [p for p in model.parameters() if p.ndim < 2]
    o = torch.optim.AdamW([{"params": heavy}, {"params": light, "weight_decay": 0.0}], 1e-3)

    def batch() -> Any:
        x = rand(32, 12)
        return x + 0.1 * rand(32, 12), x + 0.1 * rand(32, 12)

    simple(run, model, o, loss, batch)


SIXTH: dict[str, Any] = {
    loop.__name__: loop
    for loop in (
        *(low_rank, odds_ratio, reinforced_words, routed, velocity, masked, transcripts, translated, contrasted),
        *(distilled, uncertain_weights, quantiles, radiance, flowing, scattered, transduced, burgers, learns_to_learn),
        *(relativistic, recomputed, tensor_rates, muon_beside, finds_its_rate, sharp_aware, uneven_last, packed),
        *(nested_batches, half_of_it, scaled_by_hand, loaded, spread_kept),
    )
}
