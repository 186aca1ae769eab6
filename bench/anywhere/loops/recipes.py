"""Loops after published recipes, written without a look at what the guard does: the second untuned round."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.loops.harness import Run
from anywhere.loops.kinds import classify, labelled, mlp, rand
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler as plans
from torch.optim import swa_utils
from torch.utils.checkpoint import checkpoint


class TiedLM(nn.Module):
    """Two blocks, a causal mask as a buffer, the head tied to the embedding; returns the mean loss of each text."""

    def __init__(self, words: int = 24, width: int = 32, length: int = 12) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Parameter(torch.zeros(length, width))
        layer = nn.TransformerEncoderLayer(width, 4, 64, 0.1, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("mask", torch.full((length, length), -math.inf).triu(1))

    def forward(self, ids: Tensor, weights: Tensor) -> Tensor:
        x = self.blocks(self.embed(ids) * 0.3 + self.place, mask=self.mask)
        words = self.head(self.norm(x))[:, :-1]
        loss = F.cross_entropy(words.flatten(0, 1), ids[:, 1:].flatten(), reduction="none").view(len(ids), -1)
        return (loss.mean(1) * weights).mean()


def texts(size: int = 8) -> tuple[Tensor, Tensor]:
    """Words that follow each other, and a weight of each text."""
    return (torch.randint(24, (size, 1)) + torch.arange(12)) % 24, torch.ones(size)


def lm_tied(run: Run) -> None:
    """A language model: warm-up and cosine, decay for matrices only, clipped."""
    model = TiedLM()
    flat = [p for p in model.parameters() if p.ndim < 2]
    wide = [p for p in model.parameters() if p.ndim >= 2]
    o = torch.optim.AdamW([{"params": wide, "weight_decay": 0.1}, {"params": flat, "weight_decay": 0.0}], 3e-3)
    plan = plans.LambdaLR(o, lambda n: min(1.0, (n + 1) / 10) * (0.55 + 0.45 * math.cos(n / 80)))
    guard = run.guard(model, o, lambda m, b: m(*b))
    for _ in run.steps():
        batch = run.data(guard, texts())
        o.zero_grad()
        run.see(guard, model(*batch)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        o.step()
        plan.step()


def ddpm(run: Run) -> None:
    """Noise is predicted; an average of the weights follows."""
    model = nn.Sequential(nn.Linear(13, 48), nn.SiLU(), nn.Linear(48, 12))
    mean = swa_utils.AveragedModel(model, multi_avg_fn=swa_utils.get_ema_multi_avg_fn(0.99))
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 100), 0)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x, noise, t = b
        noisy = kept[t].sqrt()[:, None] * x + (1 - kept[t]).sqrt()[:, None] * noise
        return F.mse_loss(m(torch.cat([noisy, t[:, None] / 100], 1)), noise)

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, (rand(16, 12) * 0.5, rand(16, 12), torch.randint(100, (16,))))
        o.zero_grad(set_to_none=False)
        run.see(guard, loss(model, batch)).backward()
        o.step()
        mean.update_parameters(model)


class FreeBits(nn.Module):
    """A VAE with free bits, in bfloat16 by autocast; returns (loss, parts)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 16), nn.Linear(8, 24)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, float]]:
        with torch.autocast("cpu", torch.bfloat16):
            mean, log = self.encode(x).float().chunk(2, 1)
            out, spread = self.decode(mean + torch.randn_like(mean) * (0.5 * log).exp()).float().chunk(2, 1)
        likelihood = torch.distributions.Normal(out, F.softplus(spread) + 1e-3, validate_args=False).log_prob(x)
        kl = (-0.5 * (1 + log - mean.square() - log.exp())).mean(0).clamp(min=0.05).sum()
        return kl - likelihood.sum(1).mean(), {"kl": float(kl.detach())}


def vae_free_bits(run: Run) -> None:
    """An ELBO that falls below zero."""
    model = FreeBits()
    o = torch.optim.Adamax(model.parameters(), 2e-3)
    guard = run.guard(model, o, lambda m, b: m(*b)[0])
    for _ in run.steps():
        batch = run.data(guard, (rand(16, 12) * 0.1,))
        o.zero_grad()
        run.see(guard, model(*batch)[0]).backward()
        o.step()


def moco_by_hand(run: Run) -> None:
    """Queue and slow encoder are the loop's own."""
    fast = mlp(12, 16)
    slow, queue = copy.deepcopy(fast).requires_grad_(False), F.normalize(rand(64, 16), dim=1)
    o = torch.optim.SGD(fast.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
    guard = run.guard(fast, o)
    for _ in run.steps():
        (x,) = run.data(guard, (rand(16, 12),))
        q = F.normalize(fast(x + 0.1 * rand(16, 12)), dim=1)
        with torch.no_grad():
            for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
                a.mul_(0.99).add_(b, alpha=0.01)
            k = F.normalize(slow(x + 0.1 * rand(16, 12)), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue.T], 1) / 0.1
        o.zero_grad()
        run.see(guard, F.cross_entropy(logits, torch.zeros(16, dtype=torch.long))).backward()
        o.step()
        if bool(k.isfinite().all()):
            queue = torch.cat([k, queue])[:64]


def ppo(run: Run) -> None:
    """Three epochs over each roll-out; rewards below zero, advantages normalised."""
    policy, value = mlp(6, 3), mlp(6, 1)
    both = nn.ModuleDict({"policy": policy, "value": value})
    o = torch.optim.Adam(both.parameters(), 3e-4, eps=1e-5)
    guard = run.guard(both, o)
    for step in run.steps():
        if step % 3 == 0:
            seen = rand(32, 6)
            with torch.no_grad():
                chances = torch.log_softmax(policy(seen), 1)
                acts = torch.multinomial(chances.exp(), 1)
                old = chances.gather(1, acts)
                returns = -100.0 + 20 * (acts[:, 0] == seen[:, :3].argmax(1)).float()
        (shown,) = run.data(guard, (seen,))
        estimate = value(shown)[:, 0]
        gain = returns - estimate.detach()
        gain = (gain - gain.mean()) / (gain.std() + 1e-8)
        chances = torch.log_softmax(policy(shown), 1)
        ratio = (chances.gather(1, acts) - old).exp()[:, 0]
        clipped = torch.min(ratio * gain, ratio.clamp(0.8, 1.2) * gain).mean()
        bonus = -(chances.exp() * chances).sum(1).mean()
        o.zero_grad()
        run.see(guard, -clipped + 0.5 * F.mse_loss(estimate, returns) / 1e3 - 0.01 * bonus).backward()
        nn.utils.clip_grad_norm_(both.parameters(), 0.5)
        o.step()


def actor_critic(run: Run) -> None:
    """Soft actor-critic: three optimizers in turn, a temperature that is learned, targets that follow."""
    actor, critic, target = mlp(4, 4), mlp(6, 1), mlp(6, 1)
    target.load_state_dict(critic.state_dict())
    heat = nn.ParameterDict({"log": nn.Parameter(torch.zeros(()))})
    oa, oc, oh = (torch.optim.Adam(m.parameters(), 1e-3) for m in (actor, critic, heat))
    gc, ga, gh = run.guard(critic, oc), run.guard(actor, oa), run.guard(heat, oh)
    for _ in run.steps():
        (s,) = run.data(gc, (rand(16, 4),))

        def drawn(s: Tensor) -> tuple[Tensor, Tensor]:
            mean, log = actor(s).chunk(2, 1)
            law = torch.distributions.Normal(mean, log.clamp(-5, 2).exp(), validate_args=False)
            a = law.rsample()
            return a.tanh(), (law.log_prob(a) - torch.log1p(-a.tanh().square() + 1e-6)).sum(1)

        with torch.no_grad():
            a, chance = drawn(s)
            aim = -a.square().sum(1) + 0.9 * (target(torch.cat([s, a], 1))[:, 0] - heat["log"].exp() * chance)
        oc.zero_grad()
        run.see(gc, F.mse_loss(critic(torch.cat([s, a], 1))[:, 0], aim)).backward()
        oc.step()
        a, chance = drawn(s)
        oa.zero_grad()
        run.see(ga, (heat["log"].detach().exp() * chance - critic(torch.cat([s, a], 1))[:, 0]).mean()).backward()
        oa.step()
        oh.zero_grad()
        run.see(gh, -(heat["log"] * (chance.detach() - 2.0)).mean()).backward()
        oh.step()
        with torch.no_grad():
            for slow, p in zip(target.parameters(), critic.parameters(), strict=True):
                slow.lerp_(p, 0.01)


def hinge_gan(run: Run) -> None:
    """Spectral norms, hinge losses, a penalty every fourth step."""
    g = mlp(8, 12)
    d = nn.Sequential(parametrizations.spectral_norm(nn.Linear(12, 32)), nn.LeakyReLU(0.2), nn.Linear(32, 1))
    og, od = torch.optim.Adam(g.parameters(), 1e-4, (0.0, 0.9)), torch.optim.Adam(d.parameters(), 4e-4, (0.0, 0.9))
    gd, gg = run.guard(d, od), run.guard(g, og)
    for step in run.steps():
        (real,) = run.data(gd, (rand(16, 12) + 2,))
        od.zero_grad()
        real = real.requires_grad_(step % 4 == 0)
        score = d(real)
        loss = F.relu(1 - score).mean() + F.relu(1 + d(g(rand(16, 8)).detach())).mean()
        if step % 4 == 0:
            (slope,) = torch.autograd.grad(score.sum(), real, create_graph=True)
            loss = loss + 2.0 * slope.square().sum(1).mean()
        run.see(gd, loss).backward()
        od.step()
        og.zero_grad()
        run.see(gg, -d(g(rand(16, 8))).mean()).backward()
        og.step()


def truncated(run: Run) -> None:
    """Back-propagation through time, truncated: the state goes on, detached."""
    model = nn.ModuleDict({"cell": nn.LSTM(4, 24, batch_first=True), "out": nn.Linear(24, 4)})
    o = torch.optim.RMSprop(model.parameters(), 1e-3)
    guard = run.guard(model, o)
    state: Any = None
    for _ in run.steps():
        (x,) = run.data(guard, (rand(8, 6, 4),))
        out, new = model["cell"](x, state)
        loss = run.see(guard, F.mse_loss(model["out"](out[:, :-1]), x[:, 1:]))
        o.zero_grad()
        loss.backward()
        nn.utils.clip_grad_value_(model.parameters(), 1.0)
        o.step()
        state = tuple(t.detach() for t in new) if bool(new[0].isfinite().all()) else None


class StateSpace(nn.Module):
    """A diagonal state space of complex numbers, scanned."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.decay, self.turn = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.linspace(0, 3, width))
        self.read = nn.Parameter(torch.randn(width, 4, dtype=torch.complex64) / 4)
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        pole = torch.polar(torch.exp(-F.softplus(self.decay)), self.turn)
        h = torch.zeros(len(x), len(pole), dtype=torch.complex64)
        rows = []
        for step in x.unbind(1):
            h = pole * h + step.to(torch.complex64) @ self.read.T
            rows.append(h.real)
        return self.out(torch.stack(rows, 1))


def state_space(run: Run) -> None:
    """Complex weights, a scan, AdamW."""
    model = StateSpace()
    o = torch.optim.AdamW(model.parameters(), 3e-3)
    guard = run.guard(model, o, lambda m, b: F.mse_loss(m(b[0][:, :-1]), b[0][:, 1:]))
    for _ in run.steps():
        (x,) = run.data(guard, (rand(8, 8, 4).cumsum(1) * 0.3,))
        o.zero_grad()
        run.see(guard, F.mse_loss(model(x[:, :-1]), x[:, 1:])).backward()
        o.step()


class Messages(nn.Module):
    """Two rounds of messages, added up at each node, then over each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor, edges: Tensor, owner: Tensor) -> Tensor:
        for layer in (self.first, self.second):
            h = layer(x)
            x = F.relu(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]) / 3)
        return self.out(torch.zeros(int(owner.max()) + 1, 24).index_add(0, owner, x))


def graphs(run: Run) -> None:
    """Graphs of different sizes in one batch: dimensions that are no samples."""
    model = Messages()
    o = torch.optim.Adam(model.parameters(), 3e-3, weight_decay=5e-4)
    guard = run.guard(model, o, lambda m, b: F.cross_entropy(m(b["x"], b["edges"], b["owner"]), b["y"]))
    for _ in run.steps():
        sizes = torch.randint(4, 7, (8,))
        owner = torch.repeat_interleave(torch.arange(8), sizes)
        count = int(sizes.sum())
        batch = {"x": rand(count, 8), "edges": torch.randint(count, (2, 3 * count)), "owner": owner}
        batch["y"] = torch.zeros(8, 8).index_add(0, owner, batch["x"])[:, :3].argmax(1)
        batch = run.data(guard, batch)
        o.zero_grad()
        run.see(guard, F.cross_entropy(model(batch["x"], batch["edges"], batch["owner"]), batch["y"])).backward()
        o.step()


class Adapted(nn.Module):
    """A frozen layer in bfloat16 and a low-rank one beside it in float32."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.base = nn.Linear(wide, out).to(torch.bfloat16).requires_grad_(False)
        self.a, self.b = nn.Parameter(torch.randn(4, wide) / 8), nn.Parameter(torch.zeros(out, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x.to(torch.bfloat16)).float() + 2.0 * (x @ self.a.T) @ self.b.T


def lora(run: Run) -> None:
    """Low-rank adapters over a frozen base, constant rate, a paged optimizer's habits: none of them here."""
    model = nn.Sequential(Adapted(12, 32), nn.ReLU(), Adapted(32, 4))
    o = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


class Rounded(nn.Module):
    """A layer whose weights are rounded to 4 bits with a learned step (LSQ), the gradient going straight through."""

    def __init__(self, wide: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, wide) / math.sqrt(wide))
        self.size = nn.Parameter(self.weight.detach().abs().mean() * 2 / math.sqrt(7))
        self.register_buffer("lowest", torch.tensor(math.inf))
        self.register_buffer("highest", torch.tensor(-math.inf))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.lowest.copy_(torch.minimum(self.lowest, x.min()))
            self.highest.copy_(torch.maximum(self.highest, x.max()))
        scaled = (self.weight / self.size).clamp(-8, 7)
        return F.linear(x, (scaled + (scaled.round() - scaled).detach()) * self.size)


def quantised(run: Run) -> None:
    """Quantisation-aware training with observers that start at ±inf."""
    model = nn.Sequential(Rounded(12, 32), nn.ReLU(), Rounded(32, 4))
    o = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


def scale_by_hand(run: Run) -> None:
    """A static loss scale, divided out by the loop before the step."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        (run.see(guard, classify(model, batch)) * 1024).backward()
        for p in model.parameters():
            p.grad.div_(1024)
        o.step()


def half_scaled(run: Run) -> None:
    """float16 by autocast with a GradScaler that is shown, and a clip after unscaling."""
    model = mlp()
    o, scaler = torch.optim.AdamW(model.parameters(), 2e-3), torch.amp.GradScaler("cpu", init_scale=2.0**10)

    def loss(m: nn.Module, b: Any) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return classify(m, b)

    guard = run.guard(model, o, loss, scaler=scaler)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        scaler.scale(run.see(guard, loss(model, batch))).backward()
        scaler.unscale_(o)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(o)
        scaler.update()


def compiled_loss(run: Run) -> None:
    """The function of model and batch is compiled, not the model."""
    model = mlp()
    o = torch.optim.NAdam(model.parameters(), 1e-3)
    loss = torch.compile(lambda b: classify(model, b), backend="eager")
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, loss(batch)).backward()
        o.step()


def reentrant(run: Run) -> None:
    """Checkpoints of the old kind, with dropout inside."""
    model = nn.ModuleList([nn.Sequential(nn.Linear(12, 12), nn.Dropout(0.1), nn.GELU()) for _ in range(3)])
    head = nn.Linear(12, 4)
    whole = nn.ModuleDict({"body": model, "head": head})
    o = torch.optim.AdamW(whole.parameters(), 2e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x = b[0].requires_grad_()
        for part in m["body"]:  # type: ignore[index]
            x = checkpoint(part, x, use_reentrant=True)
        return F.cross_entropy(m["head"](x), b[1])  # type: ignore[index]

    guard = run.guard(whole, o, loss)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, loss(whole, batch)).backward()
        o.step()


def wolfe(run: Run) -> None:
    """LBFGS with a line search on a whole data set."""
    model = mlp(4, 1, 8)
    o = torch.optim.LBFGS(model.parameters(), 0.5, max_iter=4, history_size=5, line_search_fn="strong_wolfe")
    guard = run.guard(model, o)
    x = rand(32, 4)
    for _ in run.steps():
        (shown,) = run.data(guard, (x,))

        def closure(shown: Tensor = shown) -> Tensor:
            o.zero_grad()
            loss = F.mse_loss(model(shown)[:, 0], x.sin().sum(1))
            loss.backward()
            return loss

        o.step(closure)
        run.losses.append(float(F.mse_loss(model(x)[:, 0], x.sin().sum(1)).detach()))


class Orthogonal(torch.optim.Optimizer):
    """Muon and AdamW in one: matrices by Newton-Schulz, all else by Adam."""

    def __init__(self, params: Any, lr: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.95})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                state["n"] = state.get("n", 0) + 1
                if p.ndim == 2:
                    m = state.setdefault("momentum_buffer", torch.zeros_like(p)).mul_(0.95).add_(p.grad)
                    x = (p.grad + 0.95 * m) / ((p.grad + 0.95 * m).norm() + 1e-7)
                    x = x.T if p.shape[0] > p.shape[1] else x
                    for _ in range(5):
                        a = x @ x.T
                        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
                    p.sub_(group["lr"] * (x.T if p.shape[0] > p.shape[1] else x))
                else:
                    one = state.setdefault("one", torch.zeros_like(p)).lerp_(p.grad, 0.1)
                    two = state.setdefault("two", torch.zeros_like(p)).lerp_(p.grad.square(), 0.05)
                    p.sub_(group["lr"] * one / (two.sqrt() + 1e-8))


class Shampoo(torch.optim.Optimizer):
    """Preconditioners on both sides, their roots by eigenvalues every fifth step."""

    def __init__(self, params: Any, lr: float = 0.02) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                g = p.grad.reshape(len(p), -1)
                state = self.state[p]
                if not state:
                    state.update(n=0, left=torch.eye(g.shape[0]) * 1e-2, right=torch.eye(g.shape[1]) * 1e-2)
                state["left"] += g @ g.T
                state["right"] += g.T @ g
                if state["n"] % 5 == 0:
                    state["roots"] = [self._root(state[k]) for k in ("left", "right")]
                state["n"] += 1
                a, b = state["roots"]
                p.sub_(group["lr"] * (a @ g @ b).view_as(p))

    @staticmethod
    def _root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return vectors @ torch.diag(values.clamp(min=1e-6).pow(-0.25)) @ vectors.T


class SignDescent(torch.optim.Optimizer):
    """Lion with decoupled decay, its momentum in bfloat16."""

    def __init__(self, params: Any, lr: float = 3e-4, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for p in (p for p in group["params"] if p.grad is not None):
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p, dtype=torch.bfloat16))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.sub_(group["lr"] * (0.9 * m.float() + 0.1 * p.grad).sign())
                m.copy_(0.99 * m.float() + 0.01 * p.grad)


def _plain(make: Any, what: str) -> Any:
    def loop(run: Run) -> None:
        model = mlp()
        o = make(model)
        guard = run.guard(model, o, classify)
        for _ in run.steps():
            batch = run.data(guard, labelled(12))
            o.zero_grad()
            run.see(guard, classify(model, batch)).backward()
            o.step()

    loop.__doc__ = what
    return loop


def sam_by_hand(run: Run) -> None:
    """The loop climbs, takes the gradient there, comes back, and steps: weights change outside of every step."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        classify(model, batch).backward()
        with torch.no_grad():
            norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm() + 1e-12
            moved = [0.05 * p.grad / norm for p in model.parameters()]
            for p, e in zip(model.parameters(), moved, strict=True):
                p.add_(e)
        o.zero_grad()
        loss = run.see(guard, classify(model, batch))
        loss.backward()
        with torch.no_grad():
            for p, e in zip(model.parameters(), moved, strict=True):
                p.sub_(e if bool(e.isfinite().all()) else torch.zeros_like(e))
        o.step()


def lookahead_by_hand(run: Run) -> None:
    """Every fifth step the weights go half way back to slow ones."""
    model = mlp()
    o = torch.optim.Adam(model.parameters(), 3e-3)
    slow = [p.detach().clone() for p in model.parameters()]
    guard = run.guard(model, o, classify)
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()
        if step % 5 == 4:
            for s, p in zip(slow, model.parameters(), strict=True):
                s.lerp_(p.detach(), 0.5)
                p.data.copy_(s)


def averaged(run: Run) -> None:
    """SWA: a high constant rate from the middle on, an average of weights, statistics of norms at the end."""
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    mean = swa_utils.AveragedModel(model)
    o = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    plan, late = plans.CosineAnnealingLR(o, 40), swa_utils.SWALR(o, swa_lr=0.05, anneal_epochs=5)
    guard = run.guard(model, o, classify)
    for step in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()
        if step > 30:
            mean.update_parameters(model)
            late.step()
        else:
            plan.step()
    swa_utils.update_bn([labelled(12)[0] for _ in range(3)], mean)


def one_cycle(run: Run) -> None:
    """The rate rises to ten times and falls, the momentum the other way."""
    model = mlp()
    o = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, nesterov=True)
    plan = plans.OneCycleLR(o, 0.3, total_steps=run.count + 1, cycle_momentum=True)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()
        plan.step()


def restarts(run: Run) -> None:
    """The rate leaps back up every 15 steps."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 1e-2)
    plan = plans.CosineAnnealingWarmRestarts(o, 15, eta_min=1e-5)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()
        plan.step()


def thawing(run: Run) -> None:
    """A head first; every 12 steps one layer more is thawed and gets a group of its own."""
    model = mlp()
    layers = [m for m in model if isinstance(m, nn.Linear)]
    for m in layers[:-1]:
        m.requires_grad_(False)
    o = torch.optim.AdamW(layers[-1].parameters(), 3e-3)
    guard = run.guard(model, o, classify)
    for step in run.steps():
        if step in (12, 24):
            layer = layers[1 - (step == 24)]
            layer.requires_grad_(True)
            o.add_param_group({"params": list(layer.parameters()), "lr": 1e-3})
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


class Mirror(nn.Module):
    """An autoencoder whose decoder is its encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 12) / 4), nn.Parameter(torch.zeros(12))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.weight).tanh(), self.weight.T, self.bias)


def mirrored(run: Run) -> None:
    """Weights used twice, Adagrad."""
    model = Mirror()
    o = torch.optim.Adagrad(model.parameters(), 0.05)
    guard = run.guard(model, o, lambda m, b: F.mse_loss(m(b[0]), b[0]))
    for _ in run.steps():
        batch = run.data(guard, (rand(16, 12),))
        o.zero_grad()
        run.see(guard, F.mse_loss(model(batch[0]), batch[0])).backward()
        o.step()


class Pairs(nn.Module):
    """Two sparse tables and a weight of each pair."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Embedding(50, 8, sparse=True), nn.Embedding(50, 8, sparse=True)
        self.scale = nn.Linear(1, 1)

    def forward(self, a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        score = self.scale((self.left(a) * self.right(b)).sum(1, keepdim=True))[:, 0]
        aim = ((a + b) % 2).float()
        return (F.binary_cross_entropy_with_logits(score, aim, reduction="none") * weight).mean()


def sparse_tables(run: Run) -> None:
    """SparseAdam for the tables and AdamW for the rest, one backward pass."""
    model = Pairs()
    o = torch.optim.SparseAdam([*model.left.parameters(), *model.right.parameters()], 1e-2)
    dense = torch.optim.AdamW(model.scale.parameters(), 1e-2)
    guard = run.guard(model, [o, dense])
    for _ in run.steps():
        batch = run.data(guard, (torch.randint(50, (16,)), torch.randint(50, (16,)), torch.ones(16)))
        o.zero_grad()
        dense.zero_grad()
        run.see(guard, model(*batch)).backward()
        o.step()
        dense.step()


class Waves(nn.Module):
    """Complex weights in the frequency domain."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(7, dtype=torch.complex64) / 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(x) * self.filter, n=12)


def spectral(run: Run) -> None:
    """Complex weights under momentum."""
    model = Waves()
    o = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    guard = run.guard(model, o, lambda m, b: F.mse_loss(m(b[0]), b[0].roll(1, 1)))
    for _ in run.steps():
        (x,) = run.data(guard, (rand(16, 12),))
        o.zero_grad()
        run.see(guard, F.mse_loss(model(x), x.roll(1, 1))).backward()
        o.step()


def maml(run: Run) -> None:
    """Two inner steps by `functional_call` in each of four tasks, second-order gradients outside."""
    model = mlp(2, 1, 16)
    o = torch.optim.Adam(model.parameters(), 1e-3)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, shift = run.data(guard, (rand(16, 10, 2), rand(16, 1)))
        total = torch.zeros(())
        for xs, phase in zip(x[:8], shift[:8], strict=True):
            y = (xs.sum(1) + phase).sin()
            weights = dict(model.named_parameters())
            for _ in range(2):
                inner = F.mse_loss(functional_call(model, weights, xs[:5])[:, 0], y[:5])
                slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
                weights = {n: w - 0.05 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
            total = total + F.mse_loss(functional_call(model, weights, xs[5:])[:, 0], y[5:]) / 8
        o.zero_grad()
        run.see(guard, total).backward()
        o.step()


class Ensemble(nn.Module):
    """Four networks as one by `vmap`; only their stacked weights are parameters."""

    def __init__(self) -> None:
        super().__init__()
        parts = [mlp() for _ in range(4)]
        self.base = [copy.deepcopy(parts[0]).to("meta")]  # in a list: no module of this one
        weights, _ = stack_module_state(parts)
        self.stacked = nn.ParameterDict({n.replace(".", "-"): nn.Parameter(w.detach()) for n, w in weights.items()})

    def forward(self, x: Tensor) -> Tensor:
        weights = {n.replace("-", "."): w for n, w in self.stacked.items()}
        return vmap(lambda w, x: functional_call(self.base[0], w, x), (0, None))(weights, x).mean(0)


def ensemble(run: Run) -> None:
    """`vmap` over stacked weights."""
    model = Ensemble()
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


def gradnorm(run: Run) -> None:
    """Two tasks whose weights are learned so that their gradients are alike, then normalised."""
    body, heads = nn.Linear(12, 24), nn.ModuleList([nn.Linear(24, 4), nn.Linear(24, 1)])
    model = nn.ModuleDict({"body": body, "heads": heads})
    weights = nn.Parameter(torch.ones(2))
    o = torch.optim.Adam(model.parameters(), 2e-3)
    ow = torch.optim.Adam([weights], 1e-2)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        h = body(x).relu()
        losses = torch.stack([F.cross_entropy(heads[0](h), y), 50 * F.mse_loss(heads[1](h)[:, 0], x.sum(1))])
        o.zero_grad()
        run.see(guard, (weights.detach() * losses).sum()).backward(retain_graph=True)
        norms = torch.stack([torch.autograd.grad(v, body.weight, retain_graph=True)[0].norm() for v in losses])
        ow.zero_grad()
        sizes = weights * norms.detach()
        (sizes - sizes.mean().detach()).abs().sum().backward()
        if bool(weights.grad.isfinite().all()):
            ow.step()
        o.step()
        with torch.no_grad():
            weights.clamp_(min=0.05).mul_(2 / weights.sum())


def curriculum(run: Run) -> None:
    """The loss is weighed three times as much every 20 steps; the last time by far, which the guard is told."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 1e-3)
    guard = run.guard(model, o, classify)
    for step in run.steps():
        weight = 3.0 ** (min(step, 59) // 20) if step < 70 else 1000.0
        if step == 70 and guard is not None:
            guard.new_regime()
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, weight * classify(model, batch)).backward()
        o.step()


class Uncertain(nn.Module):
    """Returns a dict of losses weighed by learned variances: their sum falls below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.one, self.two = nn.Linear(12, 24), nn.Linear(24, 4), nn.Linear(24, 1)
        self.logs = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = self.body(x).relu()
        a, b = F.cross_entropy(self.one(h), y), F.mse_loss(self.two(h)[:, 0], x[:, 0])
        return {
            "class": a * (-self.logs[0]).exp() + self.logs[0],
            "value": b * (-self.logs[1]).exp() + self.logs[1],
            "count": torch.tensor(1.0) * 0,
        }


def uncertain(run: Run) -> None:
    """A dict of losses, nothing shown to the guard."""
    model = Uncertain()
    o = torch.optim.Adam(model.parameters(), 1e-2)
    guard = run.guard(model, o, lambda m, b: m(*b))
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        losses = model(*batch)
        o.zero_grad()
        run.see(guard, sum(losses.values())).backward()
        o.step()


def langevin(run: Run) -> None:
    """An energy model: samples are drawn by its own gradients before each step, from a buffer that is kept."""
    model = mlp(6, 1)
    o = torch.optim.Adam(model.parameters(), 5e-4, betas=(0.0, 0.999))
    guard = run.guard(model, o)
    kept = rand(64, 6)
    for _ in run.steps():
        (real,) = run.data(guard, (rand(16, 6) * 0.3 + 1,))
        at = torch.randint(64, (16,))
        x = kept[at].clone()
        for _ in range(5):
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(model(x).sum(), x)
            x = (x - 0.1 * slope.clamp(-1, 1) + 0.02 * rand(16, 6)).clamp(-3, 3)
        kept[at] = x.detach()
        high, low = model(real), model(x.detach())
        o.zero_grad()
        run.see(guard, (high - low).mean() + 0.1 * (high.square() + low.square()).mean()).backward()
        o.step()


def distilled(run: Run) -> None:
    """A teacher beside, temperature 4, gradients centralised by the loop."""
    teacher, model = mlp(width=64).eval(), mlp(width=16)
    o = torch.optim.RAdam(model.parameters(), 3e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        with torch.no_grad():
            aim = torch.log_softmax(teacher(b[0]) / 4, 1)
        soft = F.kl_div(torch.log_softmax(m(b[0]) / 4, 1), aim, log_target=True, reduction="batchmean")
        return 16 * soft + classify(m, b)

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        for p in model.parameters():
            if p.ndim > 1:
                p.grad.sub_(p.grad.mean(1, keepdim=True))
        o.step()


def ragged(run: Run) -> None:
    """Pixels to ignore, batches of one to six, some with nothing to learn at all, which the loop leaves out."""
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.InstanceNorm2d(8, affine=True), nn.ReLU(), nn.Conv2d(8, 3, 1)
    )
    o = torch.optim.AdamW(model.parameters(), 3e-3)

    def loss(m: nn.Module, b: Any) -> Tensor:
        out, keep = m(b[0]), b[1] != 255
        dice = 1 - 2 * (out.softmax(1)[:, 1] * (b[1] == 1)).sum() / (out.softmax(1)[:, 1].sum() + (b[1] == 1).sum() + 1)
        return (F.cross_entropy(out, b[1], ignore_index=255, reduction="sum") + 0 * keep.sum()) / keep.sum() + dice

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        x = rand(int(torch.randint(6, 9, ())), 1, 8, 8)
        y = (x[:, 0] > 0.5).long()
        y[torch.rand(y.shape) < 0.5] = 255
        x, y = run.data(guard, (x, y))
        if torch.rand(()) < 0.1 or not bool((y != 255).any()):
            continue
        o.zero_grad()
        run.see(guard, loss(model, (x, y))).backward()
        o.step()


def reinforce(run: Run) -> None:
    """Returns of -1000 and more, a running baseline: the loss's sign and size leap."""
    model = mlp(6, 3)
    o = torch.optim.Adam(model.parameters(), 1e-3)
    guard = run.guard(model, o)
    base = -1000.0
    for _ in run.steps():
        (s,) = run.data(guard, (rand(16, 6),))
        chances = torch.log_softmax(model(s), 1)
        acts = torch.multinomial(chances.detach().exp().nan_to_num(0.3), 1)[:, 0]
        returns = -1000.0 - 500 * torch.rand(16).pow(3) + 300 * (acts == s[:, :3].argmax(1)).float()
        o.zero_grad()
        loss = -((returns - base) * chances.gather(1, acts[:, None])[:, 0]).mean()
        run.see(guard, loss).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        o.step()
        base += 0.1 * (float(returns.mean()) - base)


def master_copy(run: Run) -> None:
    """Weights in bfloat16; the optimizer has float32 copies that the loop fills and reads."""
    model = mlp().to(torch.bfloat16)
    master = [nn.Parameter(p.detach().float()) for p in model.parameters()]
    o = torch.optim.AdamW(master, 2e-3)
    guard = run.guard(model, o)
    for _ in run.steps():
        x, y = run.data(guard, labelled(12))
        loss = run.see(guard, F.cross_entropy(model(x.to(torch.bfloat16)).float(), y))
        model.zero_grad()
        loss.backward()
        for m, p in zip(master, model.parameters(), strict=True):
            m.grad = p.grad.float()
        o.step()
        with torch.no_grad():
            for m, p in zip(master, model.parameters(), strict=True):
                p.copy_(m)


def by_words(run: Run) -> None:
    """Two to four micro-batches a step, each loss a sum over its words, divided by all words of the step."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    guard = run.guard(model, o)
    for step in run.steps():
        count = 2 + step % 3
        batches = [labelled(12, size=8 + 4 * i) for i in range(count)]
        total = sum(len(b[1]) for b in batches)
        o.zero_grad()
        for b in batches:
            x, y = run.data(guard, b)
            run.see(guard, F.cross_entropy(model(x), y, reduction="sum") / total).backward()
        o.step()


def physics(run: Run) -> None:
    """A differential equation: second derivatives in the loss, AMSGrad."""
    model = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 1))
    o = torch.optim.Adam(model.parameters(), 2e-3, amsgrad=True)

    def loss(m: nn.Module, b: Any) -> Tensor:
        x = b[0].detach().requires_grad_()
        u = m(x)
        (du,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        (ddu,) = torch.autograd.grad(du.sum(), x, create_graph=True)
        return (ddu + u).square().mean() + 10 * (m(torch.zeros(1, 1)) - 1).square().mean()

    guard = run.guard(model, o, loss)
    for _ in run.steps():
        batch = run.data(guard, (torch.rand(16, 1) * 3,))
        o.zero_grad()
        run.see(guard, loss(model, batch)).backward()
        o.step()


class Euler(torch.autograd.Function):
    """Ten steps of an equation; its gradient by recomputing them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        for _ in range(10):
            x = x + 0.1 * (x @ w).tanh()
        return x

    @staticmethod
    def backward(ctx: Any, out: Tensor) -> Any:  # type: ignore[override]
        x, w = (t.detach().requires_grad_() for t in ctx.saved_tensors)
        with torch.enable_grad():
            y = x
            for _ in range(10):
                y = y + 0.1 * (y @ w).tanh()
            return torch.autograd.grad(y, (x, w), out)


class Flow(nn.Module):
    """An equation and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.head = nn.Parameter(torch.randn(12, 12) / 6), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(Euler.apply(x, self.w))


def neural_ode(run: Run) -> None:
    """A gradient of the caller's own."""
    model = Flow()
    o = torch.optim.Adadelta(model.parameters(), 0.5)
    guard = run.guard(model, o, classify)
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


class Codebook(nn.Module):
    """VQ-VAE whose code book is kept up by averages in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 6), nn.Linear(6, 12)
        self.register_buffer("codes", torch.randn(16, 6))
        self.register_buffer("counts", torch.ones(16))
        self.register_buffer("sums", self.codes.clone())

    def forward(self, x: Tensor) -> Tensor:
        z = self.encode(x)
        nearest = torch.cdist(z, self.codes).argmin(1)
        with torch.no_grad():
            hot = F.one_hot(nearest, 16).float()
            self.counts.mul_(0.95).add_(hot.sum(0), alpha=0.05)
            self.sums.mul_(0.95).add_(hot.T @ z, alpha=0.05)
            self.codes.copy_(self.sums / (self.counts[:, None] + 1e-5))
        q = self.codes[nearest]
        return F.mse_loss(self.decode(z + (q - z).detach()), x) + 0.25 * F.mse_loss(z, q)


def codebook(run: Run) -> None:
    """Buffers that are learned; the model returns its loss."""
    model = Codebook()
    o = torch.optim.Adam(model.parameters(), 2e-3)
    guard = run.guard(model, o, lambda m, b: m(*b))
    for _ in run.steps():
        batch = run.data(guard, (rand(16, 12),))
        o.zero_grad()
        run.see(guard, model(*batch)).backward()
        o.step()


def begun_anew(run: Run) -> None:
    """The optimizer is made anew half way, and the guard with it."""
    model = mlp()
    o = torch.optim.AdamW(model.parameters(), 2e-3)
    guard = run.guard(model, o, classify)
    for step in run.steps():
        if step == 20:
            if guard is not None:
                guard.detach()
            o = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
            guard = run.guard(model, o, classify)
        batch = run.data(guard, labelled(12))
        o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        o.step()


def two_tasks(run: Run) -> None:
    """Every fourth step is of another task, whose loss is a hundred times as large."""
    model = nn.ModuleDict({"body": nn.Linear(12, 24), "one": nn.Linear(24, 4), "two": nn.Linear(24, 1)})
    o = torch.optim.AdamW(model.parameters(), 1e-3)
    guard = run.guard(model, o)
    for step in run.steps():
        x, y = run.data(guard, labelled(12))
        h = model["body"](x).relu()
        other = step % 4 == 3
        loss = (
            100 * (model["two"](h)[:, 0] - 3 * x[:, 0]).square().mean()
            if other
            else F.cross_entropy(model["one"](h), y)
        )
        o.zero_grad()
        run.see(guard, loss).backward()
        o.step()


def heavy_tails(run: Run) -> None:
    """Targets with tails: now and then a loss thirty times the usual, and nothing is wrong."""
    model = mlp(6, 1)
    o = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    guard = run.guard(model, o, lambda m, b: F.huber_loss(m(b[0])[:, 0], b[1], delta=5.0))
    for _ in run.steps():
        x = rand(16, 6)
        y = x.sum(1) + torch.distributions.StudentT(1.5).sample((16,))
        batch = run.data(guard, (x, y))
        o.zero_grad()
        run.see(guard, F.huber_loss(model(batch[0])[:, 0], batch[1], delta=5.0)).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        o.step()


def one_each(run: Run) -> None:
    """An optimizer for each parameter, all stepped after one backward pass."""
    model = mlp()
    each = {p: torch.optim.SGD([p], 0.05, momentum=0.9) for p in model.parameters()}
    guard = run.guard(model, list(each.values()))
    for _ in run.steps():
        batch = run.data(guard, labelled(12))
        for o in each.values():
            o.zero_grad()
        run.see(guard, classify(model, batch)).backward()
        for o in each.values():
            o.step()


RECIPES: dict[str, Any] = {
    "lm_tied": lm_tied,
    "ddpm": ddpm,
    "vae_free_bits": vae_free_bits,
    "moco_by_hand": moco_by_hand,
    "ppo": ppo,
    "actor_critic": actor_critic,
    "hinge_gan": hinge_gan,
    "truncated": truncated,
    "state_space": state_space,
    "graphs": graphs,
    "lora": lora,
    "quantised": quantised,
    "scale_by_hand": scale_by_hand,
    "half_scaled": half_scaled,
    "compiled_loss": compiled_loss,
    "reentrant": reentrant,
    "wolfe": wolfe,
    "muon_in_one": _plain(lambda m: Orthogonal(m.parameters()), "Muon and Adam in one optimizer."),
    "shampoo": _plain(lambda m: Shampoo(m.parameters()), "Preconditioned from both sides."),
    "lion_bf16": _plain(lambda m: SignDescent(m.parameters()), "Signs, with a momentum in bfloat16."),
    "adafactor": _plain(lambda m: torch.optim.Adafactor(m.parameters(), 1e-2), "torch's own Adafactor."),
    "asgd": _plain(lambda m: torch.optim.ASGD(m.parameters(), 0.05), "An average kept by the optimizer."),
    "rprop": _plain(lambda m: torch.optim.Rprop(m.parameters(), 1e-3), "Step sizes of each weight's own."),
    "sam_by_hand": sam_by_hand,
    "lookahead_by_hand": lookahead_by_hand,
    "averaged": averaged,
    "one_cycle": one_cycle,
    "restarts": restarts,
    "thawing": thawing,
    "mirrored": mirrored,
    "sparse_tables": sparse_tables,
    "spectral": spectral,
    "maml": maml,
    "ensemble": ensemble,
    "gradnorm": gradnorm,
    "curriculum": curriculum,
    "uncertain": uncertain,
    "langevin": langevin,
    "distilled": distilled,
    "ragged": ragged,
    "reinforce": reinforce,
    "master_copy": master_copy,
    "by_words": by_words,
    "physics": physics,
    "neural_ode": neural_ode,
    "codebook": codebook,
    "begun_anew": begun_anew,
    "two_tasks": two_tasks,
    "heavy_tails": heavy_tails,
    "one_each": one_each,
}
