"""Loops of kinds that the first two rounds did not have, written without a look at what the guard does: the third."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from anywhere.loops.harness import Run
from anywhere.loops.kinds import classify, labelled, mlp, rand
from torch import Tensor, nn
from torch.func import functional_call, grad, grad_and_value
from torch.nn import functional as F
from torch.optim import lr_scheduler as plans
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset


def simple(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss: Callable[[nn.Module, Any], Tensor],
    batch: Callable[[], Any],
    after: Callable[[int], None] = lambda step: None,
    clip: float = 0.0,
) -> None:
    """The loop of the tutorials."""
    guard = run.guard(model, optimizer, loss)
    for step in run.steps():
        given = run.data(guard, batch())
        optimizer.zero_grad()
        run.see(guard, loss(model, given)).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        after(step)


def penalised_pair(run: Run) -> None:
    """A critic with two steps and a penalty on its slope for one of the generator; Adam with betas (0, 0.9)."""
    g, d = mlp(8, 12), mlp(12, 1)
    og, od = (torch.optim.Adam(m.parameters(), 1e-4, (0.0, 0.9)) for m in (g, d))
    gd, gg = run.guard(d, od), run.guard(g, og)
    for step in run.steps():
        (real,) = run.data(gd, (rand(16, 12) + 1,))
        with torch.no_grad():
            fake = g(rand(16, 8))
        mix = torch.rand(16, 1)
        point = (mix * real + (1 - mix) * fake).requires_grad_(True)
        slope = torch.autograd.grad(d(point).sum(), point, create_graph=True)[0]
        loss = d(fake).mean() - d(real).mean() + 10 * (slope.flatten(1).norm(2, 1) - 1).pow(2).mean()
        od.zero_grad(set_to_none=True)
        run.see(gd, loss).backward()
        od.step()
        if step % 2:
            og.zero_grad(set_to_none=True)
            run.see(gg, -d(g(rand(16, 8))).mean()).backward()
            og.step()


class Reader(nn.Module):
    """A GRU over numbers, with its state handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.GRU(4, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        out, state = self.cell(x, state)
        return self.head(out), state


def carried(run: Run) -> None:
    """Truncated backpropagation: the state goes on into the next batch, cut off; begun anew every 25 steps."""
    model = Reader()
    o = torch.optim.RMSprop(model.parameters(), 2e-3)
    guard = run.guard(model, o)
    state = None
    for step in run.steps():
        (x,) = run.data(guard, (rand(8, 12, 4),))
        state = None if step % 25 == 0 or state is None or not bool(state.isfinite().all()) else state.detach()
        o.zero_grad()
        out, state = model(x, state)
        run.see(guard, F.mse_loss(out, x.cumsum(1).tanh())).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        o.step()


def raw_returns(run: Run) -> None:
    """A policy gradient with returns of up to thousands, never normalised."""
    model = mlp(12, 4)
    simple(
        run,
        model,
        torch.optim.Adam(model.parameters(), 1e-3),
        lambda m, b: -(m(b[0]).log_softmax(1).gather(1, b[1][:, None])[:, 0] * b[2]).mean(),
        lambda: (rand(16, 12), torch.randint(4, (16,)), 300 * rand(16) * rand(16).exp()),
    )


def whole_batch(run: Run) -> None:
    """LBFGS with a line search, on all the data at once."""
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 1))
    o = torch.optim.LBFGS(model.parameters(), 0.5, max_iter=4, line_search_fn="strong_wolfe")
    data = rand(64, 12)
    guard = run.guard(model, o)
    for _ in run.steps():
        (x,) = run.data(guard, (data,))

        def closure(x: Tensor = x) -> Tensor:
            o.zero_grad()
            loss = run.see(None, F.mse_loss(model(x)[:, 0], x[:, :3].sum(1)))
            loss.backward()
            return loss

        o.step(closure)


class TwoStep(torch.optim.Optimizer):
    """Sharpness-aware minimisation with its two steps called one by one."""

    def __init__(self, params: Any, rho: float = 0.05) -> None:
        super().__init__(params, {"rho": rho, "lr": 0.05})

    @torch.no_grad()
    def climb(self) -> None:
        """To the worst point nearby."""
        every = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        norm = torch.stack([p.grad.norm() for p in every]).norm() + 1e-12
        for p in every:
            self.state[p]["up"] = self.param_groups[0]["rho"] * p.grad / norm
            p.add_(self.state[p]["up"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Back, and down."""
        for g in self.param_groups:
            for p in g["params"]:
                if p.grad is not None:
                    p.sub_(self.state[p].pop("up", torch.zeros(())))
                    p.sub_(g["lr"] * p.grad)


def two_step(run: Run) -> None:
    """SAM in two calls, the second of them ``step``; a batch that is not finite is not climbed along."""
    model = mlp()
    o = TwoStep(model.parameters())
    guard = run.guard(model, o)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        first = classify(model, batch)
        if bool(torch.isfinite(first)):
            first.backward()
            if all(bool(p.grad.isfinite().all()) for p in model.parameters()):
                o.climb()
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


class Deep(nn.Module):
    """Blocks whose activations are made twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(12, 32), nn.Linear(32, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.GELU()) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return self.last(x)


def checkpointed(run: Run) -> None:
    """Six residual blocks under gradient checkpointing, with a plan for the rate."""
    model = Deep()
    o = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.1)
    plan = plans.CosineAnnealingLR(o, 400)
    simple(run, model, o, classify, lambda: labelled(12), lambda _: plan.step(), clip=1.0)


def swa_at_last(run: Run) -> None:
    """Stochastic weight averaging from the middle on, with its own rate; BatchNorm is measured anew."""
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    o = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    mean, rate = swa_utils.AveragedModel(model), swa_utils.SWALR(o, swa_lr=0.02, anneal_epochs=5)

    def after(step: int) -> None:
        if step > 30:
            mean.update_parameters(model)
            rate.step()
        if step == 60:
            swa_utils.update_bn([labelled(12)[0] for _ in range(3)], mean)

    simple(run, model, o, classify, lambda: labelled(12), after)


def compiled_whole(run: Run) -> None:
    """The forward pass and its loss compiled as one function."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    made = torch.compile(lambda x, y: F.cross_entropy(model(x), y), backend="eager")
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, made(*batch)).backward()
        o.step()


def by_transform(run: Run) -> None:
    """Gradients by torch.func.grad_and_value, put into ``.grad`` by hand."""
    model = mlp()
    o = torch.optim.Adam(model.parameters(), 2e-3)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))

        def loss(held: dict[str, Tensor], batch: Any = batch) -> Tensor:
            return F.cross_entropy(functional_call(model, held, (batch[0],)), batch[1])

        gradients, value = grad_and_value(loss)({k: p.detach() for k, p in model.named_parameters()})
        run.see(guard, value)
        for name, p in model.named_parameters():
            p.grad = gradients[name]
        o.step()
        o.zero_grad()


def per_sample(run: Run) -> None:
    """Each sample's gradient by vmap, clipped, then summed."""
    model = nn.Linear(12, 4)
    o = torch.optim.SGD(model.parameters(), 0.2)
    guard = run.guard(model, o, classify)

    def one(held: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, held, (x[None],)), y[None])

    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        run.see(guard, classify(model, (x, y)).detach())
        each = torch.vmap(grad(one), (None, 0, 0))(dict(model.named_parameters()), x, y)
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in each.values()]).norm(dim=0)
        share = (1.0 / (norms + 1e-6)).clamp(max=1.0)
        for name, p in model.named_parameters():
            p.grad = torch.einsum("n,n...->...", share, each[name].detach()) / len(x)
        o.step()


def recommended(run: Run) -> None:
    """Factorised tables with sparse gradients by SparseAdam, the rest by AdamW, one backward pass."""

    class Factors(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.users, self.items = nn.Embedding(200, 8, sparse=True), nn.Embedding(100, 8, sparse=True)
            self.bias, self.scale = nn.Parameter(torch.zeros(1)), nn.Linear(1, 1)

        def forward(self, rating: Tensor, user: Tensor, item: Tensor) -> Tensor:
            score = (self.users(user) * self.items(item)).sum(1, keepdim=True)
            return F.mse_loss(self.scale(score)[:, 0] + self.bias, rating)

    model = Factors()
    tables = torch.optim.SparseAdam([*model.users.parameters(), *model.items.parameters()], 1e-2)
    rest = torch.optim.AdamW([model.bias, *model.scale.parameters()], 1e-2)
    guard = run.guard(model, [tables, rest])
    for _ in run.steps():
        batch = run.data(guard, (1 + 4 * torch.rand(32), torch.randint(200, (32,)), torch.randint(100, (32,))))
        tables.zero_grad()
        rest.zero_grad()
        run.see(guard, model(*batch)).backward()
        tables.step()
        rest.step()


def spectral_filter(run: Run) -> None:
    """Complex weights between a Fourier transform and its inverse, beside real ones."""

    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.randn(9, 8, dtype=torch.cfloat) * 0.1)
            self.head = nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            seen = torch.fft.irfft(torch.fft.rfft(x, dim=1)[..., None] * self.gain, n=16, dim=1)
            return self.head(seen.square().mean(1))

    model = Filter()
    simple(run, model, torch.optim.Adam(model.parameters(), 5e-3), classify, lambda: labelled(16))


class _Rounding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, w: Tensor, size: Tensor) -> Tensor:
        ctx.save_for_backward(w, size)
        return (w / size).round().clamp(-8, 7) * size

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        w, size = ctx.saved_tensors
        scaled = w / size
        inside = (scaled > -8) & (scaled < 7)
        off = torch.where(inside, scaled.round() - scaled, scaled.clamp(-8, 7))
        return given[0] * inside, (given[0] * off).sum() / math.sqrt(w.numel() * 7)


class Stepped(nn.Module):
    """A layer of four bits whose step is learned."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.inner = nn.Linear(a, b)
        self.size = nn.Parameter(2 * self.inner.weight.detach().abs().mean() / math.sqrt(7))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, _Rounding.apply(self.inner.weight, self.size), self.inner.bias)


def learned_steps(run: Run) -> None:
    """Quantisation-aware training with learned step sizes."""
    model = nn.Sequential(Stepped(12, 32), nn.ReLU(), Stepped(32, 4))
    simple(run, model, torch.optim.SGD(model.parameters(), 0.05, 0.9), classify, lambda: labelled(12))


class LowRank(nn.Module):
    """A frozen layer and a trained product of two thin ones, which starts at zero."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(4, base.in_features) * 0.1)
        self.b = nn.Parameter(torch.zeros(base.out_features, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * F.linear(F.linear(x, self.a), self.b)


def merged_at_times(run: Run) -> None:
    """LoRA on a frozen bfloat16 base; for each evaluation it is merged into it and taken out again."""
    base = mlp()
    for i in (0, 2, 4):
        base[i] = LowRank(base[i])
    base[4].base.bias.requires_grad_(True)
    o = torch.optim.AdamW([p for p in base.parameters() if p.requires_grad], 1e-2)

    def after(step: int) -> None:
        if step % 20 == 19:
            with torch.no_grad():
                for sign in (1, -1):
                    for i in (0, 2, 4):
                        base[i].base.weight.add_(sign * 2 * base[i].b @ base[i].a)

    simple(run, base, o, classify, lambda: labelled(12), after)


class Towers(nn.Module):
    """Pictures and words with a learned temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(12, 16), nn.Linear(10, 16)
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        seen = self.scale.exp() * F.normalize(self.one(a), dim=1) @ F.normalize(self.two(b), dim=1).T
        target = torch.arange(len(a))
        return (F.cross_entropy(seen, target) + F.cross_entropy(seen.T, target)) / 2


def clip_like(run: Run) -> None:
    """Contrastive towers; the temperature is clamped after each step."""
    model = Towers()

    def batch() -> tuple[Tensor, Tensor]:
        a = rand(16, 12)
        return a, a[:, :10] + 0.1 * rand(16, 10)

    def after(_: int) -> None:
        with torch.no_grad():
            model.scale.clamp_(0, math.log(100))

    o = torch.optim.AdamW(model.parameters(), 1e-3, (0.9, 0.98), 1e-6, 0.2)
    simple(run, model, o, lambda m, b: m(*b), batch, after)


def weighted_noise(run: Run) -> None:
    """Diffusion over noise of every size, each sample's error weighed by one over its variance: heavy tails."""
    model = nn.Sequential(nn.Linear(13, 64), nn.SiLU(), nn.Linear(64, 12))

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, sigma = b
        inside = 1 / (sigma**2 + 0.25).sqrt()
        seen = m(torch.cat([inside[:, None] * (x + sigma[:, None] * noise), sigma.log()[:, None] / 4], 1))
        return ((sigma**2 + 0.25) / (0.5 * sigma) ** 2 * (seen - x).square().mean(1)).mean()

    simple(
        run,
        model,
        torch.optim.Adam(model.parameters(), 1e-3),
        loss,
        lambda: (0.5 * rand(16, 12), rand(16, 12), (1.2 * rand(16) - 1.2).exp()),
    )


def cyclic_kl(run: Run) -> None:
    """A VAE whose KL term goes from nothing to its whole weight, over and over."""
    model = nn.ModuleDict({"e": nn.Linear(12, 16), "d": nn.Linear(8, 12)})
    o = torch.optim.Adam(model.parameters(), 2e-3)
    guard = run.guard(model, o)
    for step in run.steps():
        (x,) = run.data(guard, (rand(16, 12),))
        mean, log = model["e"](x).chunk(2, 1)
        out = model["d"](mean + (0.5 * log).exp() * rand(16, 8))
        kl = 0.5 * (mean.square() + log.exp() - 1 - log).sum(1).mean()
        o.zero_grad()
        run.see(guard, (out - x).square().sum(1).mean() + 4 * min(1.0, (step % 50) / 25) * kl).backward()
        o.step()


def scaled_in_parts(run: Run) -> None:
    """A GradScaler, four micro-batches to a step, divided by four, unscaled and clipped."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    guard = run.guard(model, o, scaler=scaler)
    for _ in run.steps():
        o.zero_grad()
        for _ in range(4):
            batch = run.data(guard, labelled(12, size=8))
            with torch.autocast("cpu", torch.bfloat16):
                loss = classify(model, batch)
            scaler.scale(run.see(guard, loss) / 4).backward()
        scaler.unscale_(o)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(o)
        scaler.update()


def by_formula(run: Run) -> None:
    """Linear regression whose gradient is written down, no autograd at all."""
    model = nn.Linear(12, 1)
    o = torch.optim.SGD(model.parameters(), 0.05)
    guard = run.guard(model, o, lambda m, b: (m(b[0])[:, 0] - b[1]).square().mean())
    for _ in run.steps():
        x = rand(32, 12)
        x, y = run.data(guard, (x, x[:, 0] - 2 * x[:, 1]))
        with torch.no_grad():
            off = model(x)[:, 0] - y
            run.see(guard, off.square().mean())
            model.weight.grad = (2 * off[:, None] * x).mean(0, keepdim=True)
            model.bias.grad = (2 * off).mean()[None]
        o.step()


class ScheduleFree(torch.optim.Optimizer):
    """AdamW without a schedule: gradients at y, an average x, switched for evaluation."""

    def __init__(self, params: Any, lr: float = 2e-3) -> None:
        super().__init__(params, {"lr": lr, "k": 0, "train": True})

    @torch.no_grad()
    def switch(self, train: bool) -> None:
        """Weights become y for training, x for evaluation."""
        for g in self.param_groups:
            for p in g["params"]:
                if g["train"] != train and "z" in self.state[p]:
                    p.lerp_(self.state[p]["z"], 1 - 1 / 0.9 if not train else 0.1)
            g["train"] = train

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of z, and of the average."""
        for g in self.param_groups:
            g["k"] += 1
            share = 1 / g["k"]
            for p in g["params"]:
                if p.grad is None:
                    continue
                s = self.state[p]
                if not s:
                    s["z"], s["v"] = p.clone(), torch.zeros_like(p)
                s["v"].mul_(0.99).addcmul_(p.grad, p.grad, value=0.01)
                update = p.grad / (s["v"] / (1 - 0.99 ** g["k"])).sqrt().add_(1e-8)
                p.lerp_(s["z"], share)
                p.add_(update, alpha=g["lr"] * (0.9 * (1 - share) - 1))
                s["z"].sub_(update, alpha=g["lr"])


def schedule_free(run: Run) -> None:
    """Switched to its average every 15 steps, to be evaluated, and back."""
    model = mlp()
    o = ScheduleFree(model.parameters())

    def after(step: int) -> None:
        if step % 15 == 14:
            o.switch(False)
            model.eval()
            with torch.no_grad():
                model(rand(4, 12))
            model.train()
            o.switch(True)

    simple(run, model, o, classify, lambda: labelled(12), after)


def kept_graph(run: Run) -> None:
    """Two losses of one graph, backward one after the other."""
    body, one, two = nn.Linear(12, 32), nn.Linear(32, 4), nn.Linear(32, 1)
    model = nn.ModuleList([body, one, two])
    o = torch.optim.SGD(model.parameters(), 0.05)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        seen = body(x).relu()
        first, second = F.cross_entropy(one(seen), y), F.mse_loss(two(seen)[:, 0], x.sum(1))
        o.zero_grad()
        run.see(guard, first + 0.1 * second)
        first.backward(retain_graph=True)
        (0.1 * second).backward()
        o.step()


class Stream(IterableDataset):
    """Never ends; samples of a process of its own."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(1)
        while True:
            x = torch.randn(12, generator=generator)
            yield x, x[:4].argmax()


def streamed(run: Run) -> None:
    """An IterableDataset behind a DataLoader."""
    loader = iter(DataLoader(Stream(), batch_size=16))
    model = mlp()
    simple(run, model, torch.optim.NAdam(model.parameters(), 2e-3), classify, lambda: tuple(next(loader)))


def lengthening(run: Run) -> None:
    """A generator of series that become longer and longer, the loss summed over them."""

    def batches() -> Iterator[tuple[Tensor]]:
        length = 2
        while True:
            yield (rand(8, int(length), 4),)
            length = min(length * 1.02, 60)

    given, model = batches(), Reader()
    o = torch.optim.Adam(model.parameters(), 1e-3)
    simple(
        run, model, o, lambda m, b: (m(b[0], None)[0] - b[0]).square().sum() / len(b[0]), lambda: next(given), clip=1.0
    )


def packed(run: Run) -> None:
    """Sentences of unequal length, packed for an LSTM."""

    class Packed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.head = nn.LSTM(6, 20, batch_first=True), nn.Linear(20, 3)

        def forward(self, x: Tensor, long: Tensor) -> Tensor:
            held = nn.utils.rnn.pack_padded_sequence(x, long, batch_first=True, enforce_sorted=False)
            return self.head(self.read(held)[1][0][-1])

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        x, long = rand(12, 9, 6), torch.randint(1, 10, (12,))
        return x, long, x[:, 0, :3].argmax(1)

    model = Packed()
    o = torch.optim.Adam(model.parameters(), 5e-3)
    simple(run, model, o, lambda m, b: F.cross_entropy(m(b[0], b[1]), b[2]), batch)


def focal_dice(run: Run) -> None:
    """Segmentation of rare pixels: focal and Dice; batches without any object among them."""
    model = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Conv2d(8, 1, 3, 1, 1))

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(8, 1, 12, 12)
        mask = (F.avg_pool2d(x, 3, 1, 1) > 0.6).float() * (torch.rand(()) > 0.1)
        return x + mask, mask

    def loss(m: nn.Module, b: Any) -> Tensor:
        seen = m(b[0])
        p = seen.sigmoid()
        each = F.binary_cross_entropy_with_logits(seen, b[1], reduction="none")
        hard = (1 - (p * b[1] + (1 - p) * (1 - b[1]))).square()
        dice = 1 - (2 * (p * b[1]).sum((1, 2, 3)) + 1) / ((p + b[1]).sum((1, 2, 3)) + 1)
        return 20 * (hard * each).mean() + dice.mean()

    simple(run, model, torch.optim.AdamW(model.parameters(), 3e-3), loss, batch)


def hard_triplets(run: Run) -> None:
    """The hardest triplets of a batch; sometimes there is none, and the loss is nothing."""
    model = mlp(12, 8)

    def loss(m: nn.Module, b: Any) -> Tensor:
        seen = F.normalize(m(b[0]), dim=1)
        far = torch.cdist(seen, seen)
        same = b[1][:, None] == b[1]
        worst = (far - 9 * ~same).amax(1) - (far + 9 * same).amin(1) + 0.2
        hard = worst[worst > 0]
        return hard.mean() if len(hard) else seen.sum() * 0.0

    simple(run, model, torch.optim.SGD(model.parameters(), 0.1, 0.9), loss, lambda: labelled(12))


def byol(run: Run) -> None:
    """A slow copy as the target, outside the guarded model; nothing negative."""
    online = nn.ModuleDict({"net": mlp(12, 16), "guess": nn.Linear(16, 16)})
    target = copy.deepcopy(online["net"]).requires_grad_(False)
    o = torch.optim.AdamW(online.parameters(), 1e-3)
    guard = run.guard(online, o)
    for _ in run.steps():
        (x,) = run.data(guard, (rand(16, 12),))
        a, b = x + 0.1 * rand(16, 12), x + 0.1 * rand(16, 12)
        loss = sum(
            2 - 2 * F.cosine_similarity(online["guess"](online["net"](p)), target(q)).mean()
            for p, q in ((a, b), (b, a))
        )
        o.zero_grad()
        run.see(guard, loss).backward()
        o.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online["net"].parameters(), strict=True):
                slow.lerp_(fast, 0.01)


def prioritised(run: Run) -> None:
    """Q-learning with weights of importance; the target network is copied every 20 steps."""
    model = mlp()
    target = copy.deepcopy(model)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, a, reward, after, weight = b
        with torch.no_grad():
            best = reward + 0.9 * target(after).amax(1)
        q = m(x).gather(1, a[:, None])[:, 0]
        return (weight * F.huber_loss(q, best, reduction="none", delta=10.0)).mean()

    def after(step: int) -> None:
        if step % 20 == 19:
            target.load_state_dict(model.state_dict())

    simple(
        run,
        model,
        torch.optim.RMSprop(model.parameters(), 1e-3, centered=True),
        loss,
        lambda: (rand(16, 12), torch.randint(4, (16,)), 5 * rand(16), rand(16, 12), 1 / torch.rand(16).clamp(min=0.02)),
        after,
    )


def soft_actor(run: Run) -> None:
    """Critic, actor and temperature, each with an optimizer and a guard of its own."""
    critic, actor, log = mlp(16, 1), mlp(12, 8), nn.ParameterList([nn.Parameter(torch.zeros(()))])
    oc, oa, ot = (torch.optim.Adam(m.parameters(), 1e-3) for m in (critic, actor, log))
    gc, ga, gt = run.guard(critic, oc), run.guard(actor, oa), run.guard(log, ot)

    def act(x: Tensor) -> tuple[Tensor, Tensor]:
        mean, spread = actor(x).chunk(2, 1)
        made = torch.distributions.Normal(mean, spread.clamp(-5, 2).exp(), validate_args=False)
        raw = made.rsample()
        return raw.tanh(), (made.log_prob(raw) - (1 - raw.tanh().square() + 1e-6).log()).sum(1)

    for _ in run.steps():
        (x,) = run.data(gc, (rand(16, 12),))
        with torch.no_grad():
            done, chance = act(x)
            aim = x[:, 0] + 0.9 * (done.sum(1) - log[0].exp() * chance)
        oc.zero_grad()
        run.see(gc, F.mse_loss(critic(torch.cat([x, done], 1))[:, 0], aim)).backward()
        oc.step()
        done, chance = act(x)
        oa.zero_grad()
        value = critic(torch.cat([x, done], 1))[:, 0]
        run.see(ga, (log[0].exp().detach() * chance - value).mean()).backward()
        oa.step()
        ot.zero_grad()
        run.see(gt, -(log[0] * (chance.detach() + 2).mean())).backward()
        ot.step()


class Coupling(nn.Module):
    """Affine coupling; returns the mean negative log-likelihood."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(mlp(6, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for net in self.nets:
            a, b = x.chunk(2, 1)
            scale, shift = net(a).chunk(2, 1)
            scale = 2 * (scale / 2).tanh()
            x, total = torch.cat([b * scale.exp() + shift, a], 1), total + scale.sum(1)
        return (0.5 * x.square().sum(1) - total).mean()


def couplings(run: Run) -> None:
    """A normalising flow on narrow data: the loss falls far below zero."""
    model = Coupling()
    o = torch.optim.Adam(model.parameters(), 1e-3)
    simple(run, model, o, lambda m, b: m(b[0]), lambda: (0.05 * rand(32, 12) + 0.3,), clip=10.0)


def mean_and_spread(run: Run) -> None:
    """A Gaussian likelihood with a learned spread, softplus and a floor."""
    model = mlp(12, 2)

    def loss(m: nn.Module, b: Any) -> Tensor:
        mean, raw = m(b[0]).unbind(1)
        return F.gaussian_nll_loss(mean, b[1], F.softplus(raw) + 1e-4)

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x, x[:, 0] + 0.01 * rand(32)

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), loss, batch)


def mixture(run: Run) -> None:
    """A mixture density network: log-sum-exp of five Gaussians."""
    model = mlp(12, 15)

    def loss(m: nn.Module, b: Any) -> Tensor:
        share, mean, log = m(b[0]).chunk(3, 1)
        each = -0.5 * ((b[1][:, None] - mean) * (-log).exp()).square() - log
        return -torch.logsumexp(share.log_softmax(1) + each, 1).mean()

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x, x[:, 0].sign() * 2 + 0.1 * rand(32)

    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), loss, batch, clip=20.0)


def counts(run: Run) -> None:
    """Poisson regression with an exponential link and counts that differ by hundreds."""
    model = mlp(12, 1)

    def batch() -> tuple[Tensor, Tensor]:
        x = rand(32, 12)
        return x, torch.poisson((1.5 * x[:, 0] + 1).exp())

    simple(
        run,
        model,
        torch.optim.Adam(model.parameters(), 2e-3),
        lambda m, b: F.poisson_nll_loss(m(b[0])[:, 0], b[1]),
        batch,
        clip=50.0,
    )


def survival(run: Run) -> None:
    """Cox's partial likelihood: every sample's loss depends on the whole batch."""
    model = mlp(12, 1)

    def loss(m: nn.Module, b: Any) -> Tensor:
        order = b[1].argsort(descending=True)
        risk = m(b[0])[order, 0]
        return -((risk - risk.logcumsumexp(0)) * b[2][order]).sum() / b[2].sum().clamp(min=1)

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        x = rand(24, 12)
        return x, (-x[:, 0]).exp() * torch.rand(24), (torch.rand(24) > 0.3).float()

    simple(run, model, torch.optim.AdamW(model.parameters(), 2e-3), loss, batch)


def projected(run: Run) -> None:
    """Two tasks whose gradients are projected off each other by hand."""
    body, heads = nn.Linear(12, 24), nn.ModuleList([nn.Linear(24, 4), nn.Linear(24, 1)])
    model = nn.ModuleList([body, heads])
    o = torch.optim.Adam(model.parameters(), 2e-3)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        seen = body(x).tanh()
        losses = [F.cross_entropy(heads[0](seen), y), F.mse_loss(heads[1](seen)[:, 0], x[:, 0])]
        run.see(guard, losses[0] + losses[1])
        shared = [torch.autograd.grad(v, body.parameters(), retain_graph=True) for v in losses]
        o.zero_grad()
        (losses[0] + losses[1]).backward()
        for i, p in enumerate(body.parameters()):
            a, b = shared[0][i].flatten(), shared[1][i].flatten()
            meet = torch.dot(a, b)
            p.grad = (a + b if meet >= 0 else a + b - meet / (b @ b) * b - meet / (a @ a) * a).view_as(p)
        o.step()


def adaptive_clip(run: Run) -> None:
    """Each tensor's gradient clipped to a share of its own norm; no BatchNorm."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.1, 0.9, nesterov=True)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        for p in model.parameters():
            most = 0.04 * p.detach().norm().clamp(min=1e-3)
            p.grad.mul_((most / p.grad.norm().clamp(min=1e-6)).clamp(max=1.0))
        o.step()


def pruned_by_steps(run: Run) -> None:
    """The smallest weights are set to zero every 30 steps, and kept there."""
    model = mlp()
    masks = {n: torch.ones_like(p) for n, p in model.named_parameters() if p.ndim > 1}

    def after(step: int) -> None:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name in masks:
                    if step % 30 == 29:
                        masks[name] = (p.abs() > p.abs().flatten().quantile(0.2 + step / 1000)).float()
                    p.mul_(masks[name])

    simple(run, model, torch.optim.AdamW(model.parameters(), 3e-3), classify, lambda: labelled(12), after)


def masked_patches(run: Run) -> None:
    """A masked autoencoder: three of four patches are hidden, the loss is of those."""

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place, self.blank = (
                nn.Linear(8, 24),
                nn.Parameter(0.1 * rand(8, 24)),
                nn.Parameter(rand(24)),
            )
            layer = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True, norm_first=True)
            self.body, self.out = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(24, 8)

        def forward(self, x: Tensor, hidden: Tensor) -> Tensor:
            seen = torch.where(hidden[..., None], self.blank, self.embed(x)) + self.place
            off = (self.out(self.body(seen)) - x).square().mean(2)
            return (off * hidden).sum() / hidden.sum().clamp(min=1)

    model = Masked()
    o = torch.optim.AdamW(model.parameters(), 1.5e-3, (0.9, 0.95), weight_decay=0.05)
    simple(run, model, o, lambda m, b: m(*b), lambda: (rand(16, 8, 8), torch.rand(16, 8) < 0.75))


def hyper(run: Run) -> None:
    """A network that writes the weights of another, for each sample."""
    model = mlp(12, 44)

    def loss(m: nn.Module, b: Any) -> Tensor:
        made = m(b[0])
        w, c = made[:, :40].view(-1, 4, 10), made[:, 40:]
        return F.cross_entropy(torch.einsum("noi,ni->no", w, b[1]) + c, b[2])

    def batch() -> tuple[Tensor, Tensor, Tensor]:
        z, x = rand(16, 12), rand(16, 10)
        return z, x, x[:, :4].argmax(1)

    simple(run, model, torch.optim.Adam(model.parameters(), 1e-3), loss, batch)


class _Fixed(torch.autograd.Function):
    """A fixed point, with the gradient of the implicit function theorem."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, x: Tensor) -> Tensor:
        z = torch.zeros_like(x)
        for _ in range(30):
            z = torch.tanh(0.5 * z @ w.T + x)
        ctx.save_for_backward(w, z)
        return z

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, Tensor]:
        w, z = ctx.saved_tensors
        slope, u = 1 - z.square(), given[0]
        for _ in range(30):
            u = given[0] + 0.5 * (u * slope) @ w
        return 0.5 * (u * slope).T @ z, u * slope


def equilibrium(run: Run) -> None:
    """A deep equilibrium model with a backward pass of its own."""

    class Equal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.w, self.out = nn.Linear(12, 16), nn.Parameter(0.1 * rand(16, 16)), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(_Fixed.apply(self.w, self.read(x)))

    model = Equal()
    simple(run, model, torch.optim.Adam(model.parameters(), 2e-3), classify, lambda: labelled(12))


def cooling(run: Run) -> None:
    """Gumbel-softmax with a temperature that falls, straight through."""
    first, second = mlp(12, 8), nn.Linear(8, 12)
    model = nn.ModuleList([first, second])
    o = torch.optim.Adam(model.parameters(), 2e-3)
    guard = run.guard(model, o)
    for step in run.steps():
        (x,) = run.data(guard, (rand(16, 12),))
        code = F.gumbel_softmax(first(x), tau=max(0.2, 0.98**step), hard=True)
        o.zero_grad()
        run.see(guard, F.mse_loss(second(code), x)).backward()
        o.step()


def energy(run: Run) -> None:
    """An energy-based model with samples by Langevin steps: a loss around zero."""
    model = mlp(12, 1)
    o = torch.optim.Adam(model.parameters(), 1e-4)
    guard = run.guard(model, o)
    bank = rand(64, 12)
    for _ in run.steps():
        (real,) = run.data(guard, (0.5 * rand(16, 12) + 1,))
        pick = torch.randint(64, (16,))
        x = bank[pick].clone().requires_grad_(True)
        for _ in range(5):
            (slope,) = torch.autograd.grad(model(x).sum(), x)
            x = (x - 0.1 * slope.clamp(-1, 1) + 0.05 * rand(16, 12)).detach().requires_grad_(True)
        bank[pick] = x.detach()
        up, down = model(real)[:, 0], model(x.detach())[:, 0]
        o.zero_grad()
        run.see(guard, (up - down).mean() + 0.1 * (up.square() + down.square()).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        o.step()


def missing_values(run: Run) -> None:
    """A table with NaN where nothing was measured; the model fills it in and is told where."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fill, self.net = nn.Parameter(torch.zeros(12)), mlp(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            gone = x.isnan()
            return self.net(torch.cat([torch.where(gone, self.fill, x.nan_to_num()), gone.float()], 1))

    def batch() -> tuple[Tensor, Tensor]:
        x, y = labelled(12)
        return torch.where(torch.rand(16, 12) < 0.1, math.nan, x), y

    model = Table()
    simple(run, model, torch.optim.Adam(model.parameters(), 3e-3), classify, batch)


def smooth_jacobian(run: Run) -> None:
    """The Jacobian's norm is part of the loss: twice through the graph."""
    model = nn.Sequential(nn.Linear(12, 32), nn.Softplus(), nn.Linear(32, 4))
    o = torch.optim.SGD(model.parameters(), 0.05, 0.9)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        x.requires_grad_(True)
        out = model(x)
        way = F.normalize(torch.randn_like(out), dim=1)
        (slope,) = torch.autograd.grad((out * way).sum(), x, create_graph=True)
        o.zero_grad()
        run.see(guard, F.cross_entropy(out, y) + 0.05 * slope.square().sum(1).mean()).backward()
        o.step()


def heavier_at_once(run: Run) -> None:
    """From step 60 on the second task counts fifty times as much, and nobody says so."""
    body, heads = nn.Linear(12, 24), nn.ModuleList([nn.Linear(24, 4), nn.Linear(24, 1)])
    model = nn.ModuleList([body, heads])
    o = torch.optim.AdamW(model.parameters(), 1e-3)
    guard = run.guard(model, o)
    for step in run.steps():
        x, y = run.data(guard, labelled(12))
        seen = body(x).tanh()
        second = F.l1_loss(heads[1](seen)[:, 0], x.sum(1))
        o.zero_grad()
        run.see(guard, F.cross_entropy(heads[0](seen), y) + (50.0 if step >= 60 else 1.0) * second).backward()
        o.step()


def gradual(run: Run) -> None:
    """One block more is thawed every 20 steps, with a rate that falls from block to block."""
    model = Deep()
    blocks = [model.last, *reversed(list(model.blocks)), model.first]
    for block in blocks[1:]:
        block.requires_grad_(False)
    o = torch.optim.AdamW([{"params": list(b.parameters()), "lr": 2e-3 * 0.8**i} for i, b in enumerate(blocks)])

    def after(step: int) -> None:
        if step % 20 == 19 and step // 20 + 1 < len(blocks):
            blocks[step // 20 + 1].requires_grad_(True)

    simple(run, model, o, classify, lambda: labelled(12), after)


THIRD: dict[str, Any] = {
    loop.__name__: loop
    for loop in (
        *(penalised_pair, carried, raw_returns, whole_batch, two_step, checkpointed, swa_at_last, compiled_whole),
        *(by_transform, per_sample, recommended, spectral_filter, learned_steps, merged_at_times, clip_like),
        *(weighted_noise, cyclic_kl, scaled_in_parts, by_formula, schedule_free, kept_graph, streamed, lengthening),
        *(packed, focal_dice, hard_triplets, byol, prioritised, soft_actor, couplings, mean_and_spread, mixture),
        *(counts, survival, projected, adaptive_clip, pruned_by_steps, masked_patches, hyper, equilibrium, cooling),
        *(energy, missing_values, smooth_jacobian, heavier_at_once, gradual),
    )
}
