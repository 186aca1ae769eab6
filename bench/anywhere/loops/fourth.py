"""Loops of kinds that the first three rounds did not have, again written without a look at the guard: the fourth."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from anywhere.loops.harness import Run
from anywhere.loops.kinds import classify, labelled, mlp, rand
from anywhere.loops.third import simple
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler as plans
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset


class Rows(Dataset):
    """A map-style data set whose items are dicts."""

    def __init__(self, count: int = 4000) -> None:
        self.x = rand(count, 12)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"inputs": self.x[i], "labels": self.x[i, :4].argmax()}


class WithLoss(nn.Module):
    """Returns its own loss beside its output, as models of a hub do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        out = self.net(inputs)
        return {"loss": F.cross_entropy(out, labels, label_smoothing=0.1), "logits": out}


def trainer(run: Run) -> None:
    """A trainer in one function: micro-batches, autocast, clipping, a plan with warm-up, evaluation in between."""
    model = WithLoss()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    rest = [p for p in model.parameters() if p.ndim < 2]
    o = torch.optim.AdamW([{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}], 2e-3)
    plan = plans.LambdaLR(o, lambda s: min(1.0, (s + 1) / 10) * max(0.1, 1 - s / 400))
    loader = iter(DataLoader(Rows(16 * 600), batch_size=16, shuffle=True))
    guard = run.guard(model, o, lambda m, b: m(**b)["loss"])
    for step in run.steps():
        for _ in range(2):
            batch = run.data(guard, next(loader))
            with torch.autocast("cpu", torch.bfloat16):
                loss = model(**batch)["loss"] / 2
            run.see(guard, loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        o.step()
        plan.step()
        o.zero_grad(set_to_none=True)
        if step % 20 == 19:
            model.eval()
            with torch.no_grad():
                model(rand(8, 12), torch.zeros(8, dtype=torch.long))
            model.train()


def supervised_contrast(run: Run) -> None:
    """All of one class are alike; a temperature that falls."""
    model, at = mlp(12, 8), [0]

    def loss(m: nn.Module, b: Any) -> Tensor:
        z = F.normalize(m(b[0]), dim=1)
        alike = (b[1][:, None] == b[1]).float().fill_diagonal_(0)
        log = (z @ z.T / max(0.1, 0.5 - at[0] / 200)).masked_fill(torch.eye(len(z), dtype=torch.bool), -1e4)
        return -(alike * log.log_softmax(1)).sum() / alike.sum().clamp(min=1)

    def after(step: int) -> None:
        at[0] = step

    simple(run, model, torch.optim.SGD(model.parameters(), 0.1, 0.9), loss, lambda: labelled(12), after)


def velocity(run: Run) -> None:
    """Diffusion that predicts v, time embedded by sines, a moving average of weights for samples."""
    model = nn.Sequential(nn.Linear(12 + 8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 12))
    slow = copy.deepcopy(model)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, t = b
        a, s = (t * math.pi / 2).cos()[:, None], (t * math.pi / 2).sin()[:, None]
        when = torch.cat([(t[:, None] * 2**i).sin() for i in range(8)], 1)
        return F.mse_loss(m(torch.cat([a * x + s * noise, when], 1)), a * noise - s * x)

    def after(_: int) -> None:
        with torch.no_grad():
            for p, q in zip(slow.parameters(), model.parameters(), strict=True):
                p.lerp_(q, 0.01)

    o = torch.optim.RAdam(model.parameters(), 2e-3)
    simple(run, model, o, loss, lambda: (rand(16, 12), rand(16, 12), torch.rand(16)), after)


def annealed(run: Run) -> None:
    """A VAE with Bernoulli pixels summed; the KL's weight rises from 1e-4 to 1, ten times every 20 steps."""
    model, weight = nn.ModuleDict({"e": nn.Linear(16, 12), "d": nn.Linear(6, 16)}), [1e-4]

    def loss(m: Any, b: Any) -> Tensor:
        mean, log = m["e"](b[0]).chunk(2, 1)
        out = m["d"](mean + (log / 2).exp() * b[1])
        kl = 0.5 * (mean.square() + log.exp() - 1 - log).sum()
        return F.binary_cross_entropy_with_logits(out, b[0], reduction="sum") + weight[0] * kl

    def after(step: int) -> None:
        weight[0] = min(1.0, 1e-4 * 10 ** (step / 20))

    o = torch.optim.Adamax(model.parameters(), 3e-3)
    simple(run, model, o, loss, lambda: (torch.rand(16, 16).round(), rand(16, 6)), after)


def chunks(run: Run) -> None:
    """Truncated backpropagation: four chunks of one series, a backward pass each, one step."""
    model = nn.LSTM(4, 16, 2, batch_first=True, proj_size=4)
    o = torch.optim.RMSprop(model.parameters(), 2e-3, momentum=0.5)
    guard = run.guard(model, o)
    for _ in run.steps():
        (x,) = run.data(guard, (rand(8, 24, 4),))
        o.zero_grad()
        state = None
        for part in x.chunk(4, 1):
            out, state = model(part, state)
            run.see(guard, F.mse_loss(out, part.tanh())).backward()
            state = tuple(s.detach() for s in state)
        nn.utils.clip_grad_value_(model.parameters(), 0.5)
        o.step()


class Mixed(nn.Module):
    """Two of four experts answer; a loss of its own keeps them busy alike."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(12, 4), nn.ModuleList(mlp(12, 4) for _ in range(4))
        self.register_buffer("load", torch.zeros(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        share = (self.gate(x) + 0.1 * torch.randn(len(x), 4)).softmax(1)
        top, who = share.topk(2, 1)
        out = torch.zeros(len(x), 4)
        for i, expert in enumerate(self.experts):
            row, place = (who == i).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, top[row, place, None] * expert(x[row]))
        used = F.one_hot(who, 4).float().mean((0, 1))
        self.load.lerp_(used.detach(), 0.1)
        return out, 4 * (used * share.mean(0)).sum()


def two_of_four(run: Run) -> None:
    """A mixture of experts with a balance loss and a z-loss."""
    model = Mixed()

    def loss(m: nn.Module, b: Any) -> Tensor:
        out, balance = m(b[0])
        return F.cross_entropy(out, b[1]) + 0.01 * balance + 1e-3 * out.logsumexp(1).square().mean()

    simple(run, model, torch.optim.AdamW(model.parameters(), 3e-3), loss, lambda: labelled(12))


class Small(nn.Module):
    """A U-Net of two levels with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, 1, 1), nn.Conv2d(8, 16, 3, 2, 1)
        self.norm, self.up, self.out = nn.InstanceNorm2d(16, affine=True), nn.Conv2d(24, 8, 3, 1, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.a(x).relu()
        deep = F.interpolate(self.norm(self.b(first)).relu(), scale_factor=2, mode="bilinear")
        return self.out(self.up(torch.cat([first, deep], 1)).relu())


def dice_and_entropy(run: Run) -> None:
    """Segmentation into three classes, void pixels ignored, channels last."""
    model = Small().to(memory_format=torch.channels_last)

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(6, 1, 12, 12)
        y = (F.avg_pool2d(x, 3, 1, 1)[:, 0] > 0.2).long() + (x[:, 0] > 1.5).long()
        return x.to(memory_format=torch.channels_last), torch.where(torch.rand(6, 12, 12) < 0.05, 255, y)

    def loss(m: nn.Module, b: Any) -> Tensor:
        out, known = m(b[0]), b[1] != 255
        p = out.softmax(1) * known[:, None]
        t = F.one_hot(b[1].clamp(max=2), 3).movedim(3, 1) * known[:, None]
        dice = 1 - (2 * (p * t).sum((2, 3)) + 1) / ((p + t).sum((2, 3)) + 1)
        return F.cross_entropy(out, b[1], ignore_index=255) + dice.mean()

    simple(run, model, torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=1e-4), loss, batch)


def ranked(run: Run) -> None:
    """LambdaRank: every pair of a list, weighed by what a swap would change."""
    model = mlp(12, 1)

    def loss(m: nn.Module, b: Any) -> Tensor:
        score, gain = m(b[0]).squeeze(-1), 2 ** b[1].float() - 1
        place = score.detach().argsort(1, descending=True).argsort(1)
        cost = 1 / (place + 2.0).log2()
        weight = ((gain[:, :, None] - gain[:, None]) * (cost[:, :, None] - cost[:, None])).abs()
        better = b[1][:, :, None] > b[1][:, None]
        return (weight * better * F.softplus(score[:, None] - score[:, :, None])).sum() / better.sum().clamp(min=1)

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(10, 8, 12)
        return x, (x[..., 0] * 1.5 + 1.5).clamp(0, 3).round().long()

    simple(run, model, torch.optim.Adam(model.parameters(), 1e-3), loss, batch)


def spoken(run: Run) -> None:
    """CTC over series; targets of every length, one that cannot be said now and then."""

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = nn.GRU(6, 16, batch_first=True, bidirectional=True), nn.Linear(32, 7)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.rnn(x)[0]).log_softmax(2).transpose(0, 1)

    model = Reads()

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.ctc_loss(m(b[0]), b[1], torch.full((len(b[0]),), 12), b[2], zero_infinity=True)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        return rand(8, 12, 6), torch.randint(1, 7, (8, 9)), torch.randint(1, 10, (8,))

    simple(run, model, torch.optim.AdamW(model.parameters(), 3e-3), loss, batch, clip=5.0)


def quantiles(run: Run) -> None:
    """Three quantiles of a target with heavy tails."""
    model, q = mlp(12, 3), torch.tensor([0.1, 0.5, 0.9])

    def loss(m: nn.Module, b: Any) -> Tensor:
        off = b[1][:, None] - m(b[0])
        return torch.maximum(q * off, (q - 1) * off).mean()

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x, x[:, 0] + rand(32) / (rand(32).abs() + 0.1)

    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), loss, batch)


def mean_teacher(run: Run) -> None:
    """A slow teacher says what unlabelled data should give; its weight ramps up."""
    model = mlp()
    teacher = copy.deepcopy(model).requires_grad_(False)
    at = [0]

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, y, other, noise = b
        ramp = math.exp(-5 * (1 - min(1, at[0] / 60)) ** 2)
        with torch.no_grad():
            said = teacher(other).softmax(1)
        return F.cross_entropy(m(x), y) + 10 * ramp * F.mse_loss(m(other + noise).softmax(1), said)

    def after(step: int) -> None:
        at[0] = step
        with torch.no_grad():
            for p, r in zip(teacher.parameters(), model.parameters(), strict=True):
                p.lerp_(r, 0.02)

    simple(
        run,
        model,
        torch.optim.Adam(model.parameters(), 2e-3),
        loss,
        lambda: (*labelled(12), rand(16, 12), 0.2 * rand(16, 12)),
        after,
    )


class Sharp(torch.optim.Optimizer):
    """SAM around a base optimizer, with a closure for the second pass."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base = base(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Up, the closure, down, the base's step."""
        given = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in given]).norm() + 1e-12
        held = [p.clone() for p in given]
        for p in given:
            p.add_(p.grad, alpha=float(0.05 / norm))
        with torch.enable_grad():
            closure()
        for p, kept in zip(given, held, strict=True):
            p.copy_(kept)
        self.base.step()


def sharpness(run: Run) -> None:
    """The first pass by the loop, the second by the optimizer's closure."""
    model = mlp()
    o = Sharp(model.parameters(), torch.optim.SGD, lr=0.05, momentum=0.9)
    guard = run.guard(model, o)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()

        def closure(batch: Any = batch) -> Tensor:
            o.zero_grad()
            loss = run.see(None, classify(model, batch)) if run.fault != "nan_loss" else classify(model, batch)
            loss.backward()
            return loss

        o.step(closure)


def lazy_penalty(run: Run) -> None:
    """A critic whose slope is punished only every eighth step, and then eight times as much."""
    g, d = mlp(6, 12), mlp(12, 1)
    og, od = (torch.optim.Adam(m.parameters(), 1e-3, (0.0, 0.99)) for m in (g, d))
    gd, gg = run.guard(d, od), run.guard(g, og)
    for step in run.steps():
        (real,) = run.data(gd, (0.5 * rand(16, 12) + 1,))
        real = real.clone().requires_grad_(step % 8 == 0)
        up = d(real)
        loss = F.softplus(-up).mean() + F.softplus(d(g(rand(16, 6)).detach())).mean()
        if step % 8 == 0:
            (slope,) = torch.autograd.grad(up.sum(), real, create_graph=True)
            loss = loss + 8 * 5 * slope.square().sum(1).mean()
        od.zero_grad()
        run.see(gd, loss).backward()
        od.step()
        og.zero_grad()
        run.see(gg, F.softplus(-d(g(rand(16, 6)))).mean()).backward()
        og.step()


class Adapted(nn.Module):
    """A frozen layer and two thin trained ones beside it, with dropout."""

    def __init__(self, inner: nn.Linear) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.down, self.up = nn.Linear(inner.in_features, 4, bias=False), nn.Linear(4, inner.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + 4 * self.up(self.down(F.dropout(x, 0.1, self.training)))


def adapters(run: Run) -> None:
    """LoRA+ : the second matrix learns sixteen times as fast; the base is half precision."""
    model = mlp()
    for i in (0, 2, 4):
        model[i] = Adapted(model[i])
    groups = [
        {"params": [m.down.weight for m in model if isinstance(m, Adapted)], "lr": 1e-3},
        {"params": [m.up.weight for m in model if isinstance(m, Adapted)], "lr": 1.6e-2},
    ]
    simple(run, model, torch.optim.AdamW(groups), classify, lambda: labelled(12))


def by_layer(run: Run) -> None:
    """Rates that fall by a third from layer to layer, biases and norms without decay."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(12, 12), nn.LayerNorm(12), nn.GELU()) for _ in range(4)))
    model.append(nn.Linear(12, 4))
    groups = [
        {"params": [p], "lr": 3e-3 * 0.65 ** (4 - i), "weight_decay": 0.05 if p.ndim > 1 else 0.0}
        for i, part in enumerate(model)
        for p in part.parameters()
    ]
    simple(run, model, torch.optim.AdamW(groups, betas=(0.9, 0.98)), classify, lambda: labelled(12), clip=1.0)


def factored(run: Run) -> None:
    """Adafactor, bfloat16 weights."""
    model = mlp().bfloat16()

    def loss(m: nn.Module, b: Any) -> Tensor:
        return F.cross_entropy(m(b[0].bfloat16()).float(), b[1])

    simple(run, model, torch.optim.Adafactor(model.parameters(), 2e-2), loss, lambda: labelled(12))


def compiled_model(run: Run) -> None:
    """torch.compile around the model, the loop as ever."""
    model = mlp()
    fast = torch.compile(model, backend="aot_eager")
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, F.cross_entropy(fast(batch[0]), batch[1])).backward()
        o.step()


class Again(nn.Module):
    """Blocks whose activations are made twice, the old way."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 24), nn.Linear(24, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Dropout(0.1)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=True)
        return self.last(x)


def reentrant(run: Run) -> None:
    """Checkpoints with dropout inside, by Rprop's cousin."""
    model = Again()
    simple(run, model, torch.optim.NAdam(model.parameters(), 1e-3), classify, lambda: labelled(12))


def uncertain(run: Run) -> None:
    """Three tasks weighed by what is learned of their noise: the loss goes below zero."""
    model = nn.ModuleDict({"net": mlp(12, 6)})
    model.log = nn.Parameter(torch.zeros(3))

    def loss(m: Any, b: Any) -> Tensor:
        out = m["net"](b[0])
        each = [F.cross_entropy(out[:, :4], b[1]), F.mse_loss(out[:, 4], b[0][:, 0]), F.l1_loss(out[:, 5], b[0][:, 1])]
        return sum((-s).exp() * v + s / 2 for s, v in zip(m.log, each, strict=True))

    simple(run, model, torch.optim.Adam(model.parameters(), 5e-3), loss, lambda: labelled(12))


def inner_loop(run: Run) -> None:
    """MAML: two inner steps by hand, the outer one through them."""
    model = mlp(4, 1)

    def loss(m: nn.Module, b: Any) -> Tensor:
        total = torch.zeros(())
        for x, a in zip(*b, strict=True):
            held = dict(m.named_parameters())
            y = (x[:, :1] * a).sin()
            for _ in range(2):
                off = F.mse_loss(functional_call(m, held, (x[:6],)), y[:6])
                slopes = torch.autograd.grad(off, list(held.values()), create_graph=True)
                held = {n: p - 0.05 * s for (n, p), s in zip(held.items(), slopes, strict=True)}
            total = total + F.mse_loss(functional_call(m, held, (x[6:],)), y[6:])
        return total / len(b[0])

    simple(run, model, torch.optim.Adam(model.parameters(), 1e-3), loss, lambda: (rand(6, 12, 4), 1 + torch.rand(6)))


def listed(run: Run) -> None:
    """A batch is a list of samples of unequal length; the model pads them."""

    class Pads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.out = nn.Linear(6, 24), nn.Linear(24, 3)

        def forward(self, samples: list[Tensor]) -> Tensor:
            x = nn.utils.rnn.pad_sequence(samples, batch_first=True)
            real = torch.arange(x.shape[1]) < torch.tensor([len(s) for s in samples])[:, None]
            return self.out((self.embed(x).tanh() * real[..., None]).sum(1) / real.sum(1, keepdim=True))

    model = Pads()

    def batches() -> Iterator[Any]:
        while True:
            x = [rand(int(n), 6) for n in torch.randint(2, 9, (12,))]
            yield x, torch.stack([s.mean(0)[:3].argmax() for s in x])

    given = batches()
    loss = lambda m, b: F.cross_entropy(m(list(b[0])), b[1])  # noqa: E731
    simple(run, model, torch.optim.AdamW(model.parameters(), 3e-3), loss, lambda: next(given))


def noisy_centred(run: Run) -> None:
    """Gradients centred by row, and noise that dies out added to them."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    guard = run.guard(model, o, classify)
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        for p in model.parameters():
            if p.ndim > 1:
                p.grad -= p.grad.mean(1, keepdim=True)
            p.grad += 0.01 / (1 + step) ** 0.55 * torch.randn_like(p)
        o.step()


def distilled(run: Run) -> None:
    """A student at temperature four, its loss times sixteen."""
    teacher, model = mlp().requires_grad_(False), mlp()

    def loss(m: nn.Module, b: Any) -> Tensor:
        out, said = m(b[0]), teacher(b[0])
        soft = F.kl_div((out / 4).log_softmax(1), (said * 8).softmax(1), reduction="batchmean") * 16
        return 0.9 * soft + 0.1 * F.cross_entropy(out, b[1])

    simple(run, model, torch.optim.SGD(model.parameters(), 0.02, 0.9, nesterov=True), loss, lambda: labelled(12))


def mixed_up(run: Run) -> None:
    """Mixed samples, smoothed labels, BatchNorm, a polynomial plan."""
    model = nn.Sequential(
        *(nn.Conv1d(1, 8, 3, padding=1), nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8)),
        *(nn.SiLU(), nn.Flatten(), nn.Linear(80, 4)),
    )
    o = torch.optim.SGD(model.parameters(), 0.1, 0.9, weight_decay=1e-3)
    plan = plans.PolynomialLR(o, 400, 2.0)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, y, share = b
        out = m((share * x + (1 - share) * x.roll(1, 0))[:, None])
        one, two = (F.cross_entropy(out, t, label_smoothing=0.1) for t in (y, y.roll(1, 0)))
        return share * one + (1 - share) * two

    simple(run, model, o, loss, lambda: (*labelled(12), torch.rand(())), lambda _: plan.step())


def twins(run: Run) -> None:
    """Two of a kind near, others further than a margin."""
    model = mlp(12, 6)

    def loss(m: nn.Module, b: Any) -> Tensor:
        a, c = m(b[0]), m(b[1])
        far = (a - c).square().sum(1).add(1e-8).sqrt()
        return (b[2] * far.square() + (1 - b[2]) * (1 - far).clamp(min=0).square()).mean()

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        x, y = rand(16, 12), rand(16, 12)
        return x, y, ((x[:, 0] > 0) == (y[:, 0] > 0)).float()

    simple(run, model, torch.optim.Adadelta(model.parameters()), loss, batch)


def clouds(run: Run) -> None:
    """Clouds of points, near in both directions."""
    model = nn.ModuleDict({"e": mlp(3, 16), "d": nn.Linear(16, 36)})

    def loss(m: Any, b: Any) -> Tensor:
        made = m["d"](m["e"](b[0]).amax(1)).view(-1, 12, 3)
        far = torch.cdist(made, b[0]).square()
        return far.amin(1).mean() + far.amin(2).mean()

    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), loss, lambda: (rand(8, 20, 3).tanh(),))


def messages(run: Run) -> None:
    """A graph for each batch: edges point at nodes, the batch cannot be cut."""

    class Graph(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.out = nn.Linear(16, 16), nn.Linear(32, 16), nn.Linear(16, 3)
            self.into = nn.Linear(8, 16)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            h = self.into(x).relu()
            for _ in range(2):
                heard = torch.zeros_like(h).index_add(0, edges[1], self.one(h)[edges[0]].relu())
                h = h + self.two(torch.cat([h, heard], 1)).relu()
            return self.out(h)

    model = Graph()

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        x = rand(30, 8)
        return x, torch.randint(30, (2, 80)), x[:, :3].argmax(1)

    o = torch.optim.Adam(model.parameters(), 3e-3)
    simple(run, model, o, lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]), batch)


def translated(run: Run) -> None:
    """Sequence to sequence with attention; now the truth, now its own word is fed back."""

    class Speaks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.write = nn.GRU(6, 16, batch_first=True), nn.GRUCell(16 + 5, 16)
            self.out = nn.Linear(16, 5)

        def forward(self, x: Tensor, y: Tensor, truth: float) -> Tensor:
            seen, state = self.read(x)
            h, word, total = state[0], torch.zeros(len(x), 5), torch.zeros(())
            for i in range(y.shape[1]):
                at = torch.einsum("nth,nh->nt", seen, h).softmax(1)
                h = self.write(torch.cat([torch.einsum("nt,nth->nh", at, seen), word], 1), h)
                said = self.out(h)
                total = total + F.cross_entropy(said, y[:, i])
                word = F.one_hot(y[:, i] if float(torch.rand(())) < truth else said.argmax(1), 5).float()
            return total / y.shape[1]

    model = Speaks()

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(10, 5, 6)
        return x, x[..., :5].argmax(2)

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), lambda m, b: m(b[0], b[1], 0.7), batch, clip=2.0)


def rays(run: Run) -> None:
    """Colours along rays: densities, transmittance, a product along each."""
    model = nn.Sequential(nn.Linear(18, 48), nn.ReLU(), nn.Linear(48, 4))

    def loss(m: nn.Module, b: Any) -> Tensor:
        t = torch.linspace(0, 2, 12)
        points = b[0][:, None, :3] + t[:, None] * b[0][:, None, 3:]
        waves = torch.cat([(points * 2**i).sin() for i in range(3)] + [(points * 2**i).cos() for i in range(3)], 2)
        out = m(waves)
        alpha = 1 - (-F.softplus(out[..., 3]) * 0.2).exp()
        left = torch.cumprod(torch.cat([torch.ones(len(b[0]), 1), 1 - alpha + 1e-10], 1), 1)[:, :-1]
        return F.mse_loss(((alpha * left)[..., None] * out[..., :3].sigmoid()).sum(1), b[1])

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(24, 6)
        return x, (x[:, :3] * 2).sin() / 2 + 0.5

    o = torch.optim.Adam(model.parameters(), 5e-3, eps=1e-15)
    simple(run, model, o, loss, batch)


def evidence(run: Run) -> None:
    """A Gaussian process on learned features: the likelihood of the whole batch, by Cholesky."""
    model = nn.ModuleDict({"net": mlp(6, 4)})
    model.scale, model.noise = nn.Parameter(torch.zeros(())), nn.Parameter(torch.tensor(-1.0))

    def loss(m: Any, b: Any) -> Tensor:
        z = m["net"](b[0])
        k = m.scale.exp() * (-0.5 * torch.cdist(z, z).square()).exp()
        low = torch.linalg.cholesky(k + (m.noise.exp() + 1e-3) * torch.eye(len(z)))
        half = torch.linalg.solve_triangular(low, b[1][:, None], upper=False)
        return (0.5 * half.square().sum() + low.diagonal().log().sum()) / len(z)

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(16, 6)
        return x, x[:, 0].sin() + 0.1 * rand(16)

    simple(run, model, torch.optim.Adam(model.parameters(), 5e-3), loss, batch)


def advantage(run: Run) -> None:
    """An actor and a critic on one trunk, several steps of a rollout, returns normalised by a running spread."""

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk, self.act, self.value = nn.Linear(12, 32), nn.Linear(32, 4), nn.Linear(32, 1)
            self.register_buffer("spread", torch.ones(()))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.trunk(x).tanh()
            return self.act(h), self.value(h)[:, 0]

    model = Both()
    o = torch.optim.RMSprop(model.parameters(), 1e-3, eps=1e-5)
    guard = run.guard(model, o)
    for _ in run.steps():
        (x,) = run.data(guard, (rand(24, 12),))
        logits, value = model(x)
        chosen = torch.distributions.Categorical(logits=logits.nan_to_num())
        action = chosen.sample()
        reward = 10.0 * (action == x[:, :4].argmax(1)).float()
        with torch.no_grad():
            model.spread.lerp_(reward.std(), 0.05)
        gain = reward / model.spread - value
        loss = -(logits.log_softmax(1).gather(1, action[:, None])[:, 0] * gain.detach()).mean() + gain.square().mean()
        o.zero_grad()
        run.see(guard, loss - 0.01 * chosen.entropy().mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        o.step()


def normalised_weights(run: Run) -> None:
    """Weight normalisation by parametrisation, one layer orthogonal."""
    model = nn.Sequential(
        parametrizations.weight_norm(nn.Linear(12, 32)),
        nn.ReLU(),
        parametrizations.orthogonal(nn.Linear(32, 32)),
        nn.ReLU(),
        nn.Linear(32, 4),
    )
    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), classify, lambda: labelled(12))


def many_words(run: Run) -> None:
    """An adaptive softmax over many words, embeddings of few."""

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.out = nn.Linear(12, 16), nn.AdaptiveLogSoftmaxWithLoss(16, 60, [10, 30])

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.out(self.body(x).relu(), y).loss

    model = Words()

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(24, 12)
        return x, (x[:, 0].abs() * 20).long().clamp(max=59)

    simple(run, model, torch.optim.Adagrad(model.parameters(), 0.05), lambda m, b: m(*b), batch)


class _Spike(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x.isnan(), x, (x > 0).float())

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return given[0] / (1 + 10 * x.abs()).square()


def spikes(run: Run) -> None:
    """Spiking neurons over time, with a gradient that is made up."""
    model = nn.ModuleDict({"a": nn.Linear(12, 32), "b": nn.Linear(32, 4)})

    def loss(m: Any, b: Any) -> Tensor:
        held, out = torch.zeros(len(b[0]), 32), torch.zeros(len(b[0]), 4)
        for _ in range(5):
            held = 0.8 * held + m["a"](b[0])
            fired = _Spike.apply(held - 1)
            held = held - fired
            out = out + m["b"](fired)
        return F.cross_entropy(out, b[1]) + 1e-2 * held.square().mean()

    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), loss, lambda: labelled(12))


FOURTH: dict[str, Any] = {
    loop.__name__: loop
    for loop in (
        *(trainer, supervised_contrast, velocity, annealed, chunks, two_of_four, dice_and_entropy, ranked, spoken),
        *(quantiles, mean_teacher, sharpness, lazy_penalty, adapters, by_layer, factored, compiled_model, reentrant),
        *(uncertain, inner_loop, listed, noisy_centred, distilled, mixed_up, twins, clouds, messages, translated),
        *(rays, evidence, advantage, normalised_weights, many_words, spikes),
    )
}
