"""Long honest trainings of the kinds that look worst: nothing is to be refused, nothing to be said.

    OMP_NUM_THREADS=1 python bench/anywhere/clean.py [--steps 20000] [--only NAME] [--seed 0] [--bare]

So many steps in all, shared out among the settings: label noise, warm restarts, dropout, bfloat16 autocast, two
networks against each other, line searches, policy gradients, targets with heavy tails, a class that counts a hundred
times, penalties that come and go, targets that move. Counted: steps refused or alarmed, warnings (findings too), and
settings whose weights are not those of the same run without a guard, bit for bit. ``--bare`` is ``Guard.step`` in the
place of `attach` where a setting has a loss of (model, batch).
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import lr_scheduler as plans

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from anywhere.loops.recipes import Orthogonal, SignDescent  # noqa: E402
from anywhere.models import Causal, Coder, Patches, Recurrent  # noqa: E402

from maskrcnn_coco import Guard, attach  # noqa: E402

Loss = Callable[[nn.Module, int], Tensor]


@dataclass
class Run:
    """One run, guarded or plain: what it is made of, and what was refused."""

    steps: int
    way: str
    models: list[nn.Module] = field(default_factory=list)
    refused: list[tuple[int, str]] = field(default_factory=list)

    def guard(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
        """The guard of one optimizer; None in a plain run."""
        self.models.append(model)
        if self.way == "plain":
            return None
        if self.way == "bare":
            return Guard(model, optimizer, max_grad_norm=None)
        return attach(model, optimizer)

    def took(self, guard: Any, step: int) -> None:
        """Note what became of a step."""
        if guard is not None and guard.alarm is not None:
            self.refused.append((step, guard.alarm.message))


def loop(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loss_of: Loss,
    *,
    plan: Any = None,
    clip: float = 0.0,
    after: Callable[[int], None] = lambda step: None,
) -> None:
    """The loop of the tutorials, or with ``Guard.step`` where the guard is a bare one."""
    guard = run.guard(model, optimizer)
    for step in range(run.steps):
        if run.way == "bare" and guard is not None:
            guard.step(lambda at: loss_of(model, at), step)
        else:
            optimizer.zero_grad()
            loss = loss_of(model, step)
            (loss if guard is None else guard.see(loss)).backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
        run.took(guard, step)
        if plan is not None:
            plan.step()
        after(step)


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape)


def mlp(a: int = 12, b: int = 4, dropout: float = 0.0) -> nn.Module:
    return nn.Sequential(
        *(nn.Linear(a, 48), nn.ReLU(), nn.Dropout(dropout), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, b))
    )


def noisy_labels(run: Run) -> None:
    """A third of the labels is wrong."""
    model = mlp(dropout=0.3)

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(32, 12)
        y = torch.where(torch.rand(32) < 0.33, torch.randint(4, (32,)), x[:, :4].argmax(1))
        return F.cross_entropy(m(x), y)

    loop(run, model, torch.optim.AdamW(model.parameters(), 3e-3), loss)


def warm_restarts(run: Run) -> None:
    """A CNN with BatchNorm; the rate jumps back up every 40 steps, then every 80, and so on."""
    model = nn.Sequential(
        *(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(12, 24, 3), nn.BatchNorm2d(24), nn.ReLU(), nn.Dropout2d(0.1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4)),
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.2, 0.9, weight_decay=5e-4, nesterov=True)

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(16, 1, 10, 10)
        y = (x[:, 0, :5].mean((1, 2)) > 0).long() + 2 * (x[:, 0, :, :5].mean((1, 2)) > 0).long()
        return F.cross_entropy(m(x), y)

    loop(run, model, optimizer, loss, plan=plans.CosineAnnealingWarmRestarts(optimizer, 40, 2))


def language(run: Run) -> None:
    """A causal transformer under bfloat16 autocast; warm-up, then a cosine."""
    model = Causal()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, (0.9, 0.95), weight_decay=0.1)
    plan = plans.LambdaLR(optimizer, lambda s: min((s + 1) / 50, 0.5 + 0.5 * math.cos(math.pi * s / run.steps)))

    def loss(m: nn.Module, _: int) -> Tensor:
        x = torch.randint(20, (16, 10)).cumsum(1) % 20
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(m(x)[:, :-1].flatten(0, 1), x[:, 1:].flatten())

    loop(run, model, optimizer, loss, plan=plan, clip=1.0)


def adversaries(run: Run) -> None:
    """A generator and its critic, in turn; neither loss means anything by itself."""
    g, d = mlp(6, 12), mlp(12, 1)
    og, od = (torch.optim.Adam(m.parameters(), 1e-3, (0.5, 0.999)) for m in (g, d))
    gg, gd = (run.guard(m, o) for m, o in ((g, og), (d, od)))
    for step in range(run.steps):
        real, fake = 0.5 * rand(16, 12) + 1, g(rand(16, 6)).detach()
        od.zero_grad()
        loss = F.softplus(-d(real)).mean() + F.softplus(d(fake)).mean()
        (loss if gd is None else gd.see(loss)).backward()
        od.step()
        run.took(gd, step)
        og.zero_grad()
        loss = F.softplus(-d(g(rand(16, 6)))).mean()
        (loss if gg is None else gg.see(loss)).backward()
        og.step()
        run.took(gg, step)


def line_search(run: Run) -> None:
    """LBFGS with strong Wolfe conditions on all of the data, which change every 100 steps."""
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = torch.optim.LBFGS(model.parameters(), 0.5, max_iter=4, line_search_fn="strong_wolfe")
    guard, data = run.guard(model, optimizer), rand(64, 8)
    for step in range(run.steps):
        data = rand(64, 8) if step % 100 == 0 else data

        def closure(data: Tensor = data) -> Tensor:
            optimizer.zero_grad()
            loss = F.mse_loss(model(data)[:, 0], data[:, :3].sin().sum(1)) + 1e-4 * sum(
                p.square().sum() for p in model.parameters()
            )
            loss.backward()
            return loss

        optimizer.step(closure)
        run.took(guard, step)


def policy(run: Run) -> None:
    """A policy gradient with a baseline: a loss around zero."""
    model = mlp()

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(16, 12)
        chosen = torch.distributions.Categorical(logits=m(x))
        action = chosen.sample()
        reward = (action == x[:, :4].argmax(1)).float() + 0.3 * rand(16)
        return -(chosen.log_prob(action) * (reward - reward.mean())).mean() - 0.01 * chosen.entropy().mean()

    loop(run, model, torch.optim.Adam(model.parameters(), 1e-3), loss)


def heavy_tails(run: Run) -> None:
    """Targets of a Student distribution with 1.5 degrees of freedom: now and then one is a thousand times another."""
    model = mlp(12, 1)
    noise = torch.distributions.StudentT(torch.tensor(1.5))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(32, 12)
        return (m(x)[:, 0] - x.sum(1) - noise.sample((32,))).square().mean()

    loop(run, model, optimizer, loss, clip=5.0)


def rare_class(run: Run) -> None:
    """A class that counts a hundred times, and comes in one batch of thirty."""
    model = mlp(12, 5)
    weight = torch.tensor([1.0, 1.0, 1.0, 1.0, 100.0])

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(16, 12)
        y = torch.where(x[:, 5] > 2.9, 4, x[:, :4].argmax(1))
        return (F.cross_entropy(m(x), y, reduction="none") * weight[y]).mean()

    loop(run, model, torch.optim.AdamW(model.parameters(), 2e-3), loss)


def series(run: Run) -> None:
    """An LSTM with clipping, series of every length."""
    model = Recurrent()

    def loss(m: nn.Module, step: int) -> Tensor:
        x = rand(16, 2 + step % 14, 4)
        return F.cross_entropy(m(x), x.sum(1).argmax(1))

    loop(run, model, torch.optim.RMSprop(model.parameters(), 2e-3), loss, clip=1.0)


def cyclic_penalty(run: Run) -> None:
    """A VAE whose KL term goes from nothing to its whole weight, over and over; its loss is a sum."""
    model = Coder()

    def loss(m: nn.Module, step: int) -> Tensor:
        x = rand(16, 12)
        out, mean, log = m(x)
        kl = -0.5 * (1 + log - mean.square() - log.exp()).sum()
        return F.mse_loss(out, x, reduction="sum") + 4 * min(1.0, (step % 100) / 50) * kl

    loop(run, model, torch.optim.Adagrad(model.parameters(), 3e-2), loss)


def contrasted(run: Run) -> None:
    """Pairs against all others with a learned temperature; sign descent."""
    model = nn.ModuleDict({"net": mlp(12, 16)})
    model.scale = nn.Parameter(torch.tensor(2.0))

    def loss(m: Any, _: int) -> Tensor:
        x = rand(24, 12)
        one, other = (F.normalize(m["net"](x + 0.1 * rand(24, 12)), dim=1) for _ in range(2))
        return F.cross_entropy(one @ other.T * m.scale.exp(), torch.arange(24))

    loop(run, model, SignDescent(model.parameters(), lr=3e-4, weight_decay=0.01), loss)


def orthogonal(run: Run) -> None:
    """Muon's kind of update on a network whose target turns slowly."""
    model = mlp(12, 2)

    def loss(m: nn.Module, step: int) -> Tensor:
        x = rand(32, 12)
        turn = step / 100
        return F.mse_loss(m(x), torch.stack([x[:, 0] * math.cos(turn), x[:, 1] * math.sin(turn)], 1))

    loop(run, model, Orthogonal(model.parameters(), lr=3e-3), loss)


def patches(run: Run) -> None:
    """A small ViT with mixed labels, by Adafactor."""
    model = Patches()

    def loss(m: nn.Module, _: int) -> Tensor:
        x, share = rand(16, 1, 8, 8), float(torch.rand(()))
        y, turn = x.flatten(1)[:, :4].argmax(1), torch.randperm(16)
        out = m(share * x + (1 - share) * x[turn])
        return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[turn])

    loop(run, model, torch.optim.Adafactor(model.parameters(), 1e-2), loss)


def values(run: Run) -> None:
    """Q-learning: the target is a copy of the network, made anew every 50 steps; rewards are rare and large."""
    model = mlp()
    target = copy.deepcopy(model)

    def loss(m: nn.Module, _: int) -> Tensor:
        x, action = rand(32, 12), torch.randint(4, (32, 1))
        reward = 10.0 * (torch.rand(32) < 0.03)
        with torch.no_grad():
            best = reward + 0.97 * target(x + 0.1 * rand(32, 12)).amax(1)
        return F.smooth_l1_loss(m(x).gather(1, action)[:, 0], best)

    def after(step: int) -> None:
        if step % 50 == 49:
            target.load_state_dict(model.state_dict())

    loop(run, model, torch.optim.RMSprop(model.parameters(), 1e-3, centered=True), loss, after=after)


def one_cycle(run: Run) -> None:
    """Super-convergence: a rate that goes up to the edge, and down; data in order of difficulty."""
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.02, 0.95)
    plan = plans.OneCycleLR(optimizer, 0.3, run.steps + 1)

    def loss(m: nn.Module, step: int) -> Tensor:
        x = rand(32, 12) * (0.5 + step / run.steps)
        return F.cross_entropy(m(x), x[:, :4].argmax(1))

    loop(run, model, optimizer, loss, plan=plan)


def likelihood(run: Run) -> None:
    """Mean and spread of a target that is nearly known: a loss that falls far below zero."""
    model = mlp(12, 2)

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(32, 12)
        mean, log = m(x).unbind(1)
        log = log.clamp(-6, 6)
        return (log + 0.5 * (x[:, 0] + 0.05 * rand(32) - mean).square() * (-2 * log).exp()).mean()

    loop(run, model, torch.optim.NAdam(model.parameters(), 1e-3), loss, clip=10.0)


def units(run: Run) -> None:
    """A table as it was found: a salary, a time stamp, a share. A norm makes numbers of it that a network can use."""
    model = nn.Sequential(nn.BatchNorm1d(12), mlp(12, 4))
    scale = torch.logspace(-6, 10, 12)

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(32, 12) + 3
        return F.cross_entropy(m(x * scale), x[:, :4].argmax(1))

    loop(run, model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), loss)


def people(run: Run) -> None:
    """Populations as they are: squares of 1e9 are the first loss, and of their gradients what Adam keeps."""
    model = mlp(12, 1)

    def loss(m: nn.Module, _: int) -> Tensor:
        x = rand(32, 12)
        return (m(x)[:, 0] - 1e9 * (2 + x[:, 0])).square().mean()

    loop(run, model, torch.optim.Adam(model.parameters(), 1e-2), loss)


SETTINGS: dict[str, Callable[[Run], None]] = {
    f.__name__: f
    for f in (
        *(noisy_labels, warm_restarts, language, adversaries, line_search, policy, heavy_tails, rare_class, series),
        *(cyclic_penalty, contrasted, orthogonal, patches, values, one_cycle, likelihood),
        *(units, people),
    )
}
OWN_LOOP = ("adversaries", "line_search")
"""Settings that step by themselves: no loss of (model, batch)."""


def tried(name: str, steps: int, seed: int = 0, way: str = "attach") -> tuple[list[str], bool]:
    """What was refused or said in one run, and whether its weights are those of the plain run, bit for bit."""
    runs = {}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for each in (way, "plain"):
            torch.manual_seed(seed)
            runs[each] = Run(steps, each)
            SETTINGS[name](runs[each])
    ours = [str(w.message) for w in said if "maskrcnn_coco" in type(w.message).__module__]
    pairs = zip(runs[way].models, runs["plain"].models, strict=True)
    alike = all(torch.equal(p, q) for a, b in pairs for p, q in zip(a.parameters(), b.parameters(), strict=True))
    return [*(f"step {s}: {m}" for s, m in runs[way].refused), *ours], alike


def main() -> None:
    """Every setting; a line for each, and for what was said."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20_000)
    parser.add_argument("--only", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bare", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    way = "bare" if args.bare else "attach"
    names = [n for n in SETTINGS if args.only in n and not (args.bare and n in OWN_LOOP)]
    share, wrong, other = -(-args.steps // len(names)), 0, 0
    for name in names:
        began = time.thread_time()
        said, alike = tried(name, share, args.seed, way)
        wrong, other = wrong + len(said), other + (not alike)
        print(
            f"{name:16s} {time.thread_time() - began:5.1f} s  {'' if alike else 'OTHER BITS'}  {said[:3]}", flush=True
        )
    print(f"{share * len(names):,} clean steps in {len(names)} settings by {way}: {wrong} refused, alarmed or said; "
          f"{other} settings with other bits than the plain run")  # fmt: skip


if __name__ == "__main__":
    main()
