"""Physics and games: a critic under a penalty, groups of answers, a Fourier operator, a queue, refined shifts,
forces, splats."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.mainstream.pictures import pictures
from anywhere.mainstream.tables import mlp
from anywhere.mainstream.task import Rows, Run, Task
from torch import Tensor, nn
from torch.nn import functional as F

# --- a critic under a penalty


def crosses(count: int) -> Rows:
    """float32 (2,) on the arms of a cross, which does not stand in the middle."""
    along = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) * (0.5 + torch.rand(count))
    x = torch.stack([along, 0.05 * torch.randn(count)], 1)
    return [((x[i].flip(0) if i % 2 else x[i]) + torch.tensor([1.5, -1.0]),) for i in range(count)]


class Duel(nn.Module):
    """Points out of noise, and what tells them from true ones."""

    def __init__(self) -> None:
        super().__init__()
        self.critic, self.generator = mlp(2, 1), mlp(2, 2)


def slopes(critic: Any, real: Tensor, made: Tensor) -> Tensor:
    """The length of the critic's slope between true points and made ones, (n,)."""
    share = torch.rand(len(real), 1)
    between = (share * real + (1 - share) * made.detach()).requires_grad_(True)
    with torch.enable_grad():
        slope = torch.autograd.grad(critic(between).sum(), between, create_graph=True)[0]
    return (slope.square().sum(1) + 1e-12).sqrt()


def apart(nets: Any, batch: Any) -> Tensor:
    """Wasserstein's distance, and the penalty."""
    made = nets.generator(torch.randn(len(batch[0]), 2)).detach()
    penalty = (slopes(nets.critic, batch[0], made) - 1).square().mean()
    return nets.critic(made).mean() - nets.critic(batch[0]).mean() + 10 * penalty


def nearer(nets: Any, batch: Any) -> Tensor:
    """The generator's."""
    return -nets.critic(nets.generator(torch.randn(len(batch[0]), 2))).mean()


def unlike(model: Any, batch: Any) -> Tensor:
    """The mean difference of sorted points along sixteen directions."""
    made, turn = model.generator(torch.randn(len(batch[0]), 2)), torch.arange(16) * math.pi / 16
    ways = torch.stack([turn.cos(), turn.sin()])
    return ((made @ ways).sort(0).values - (batch[0] @ ways).sort(0).values).abs().mean()


# --- groups of answers

GROUP = 6


def puzzles(count: int) -> Rows:
    """float32 (6,) of a state, the answer of four that is best, and what it is worth."""
    x = torch.randn(count, 6)
    return [(x[i], x[i, :4].argmax(), torch.tensor(1.0)) for i in range(count)]


def answers(run: Run, batch: Any) -> Any:
    """Six answers to each state by the present policy, and how much better each is than its group."""
    x, best, worth = batch
    first = run.memory.setdefault("first", copy.deepcopy(run.model).requires_grad_(False))
    with torch.no_grad():
        logs = run.model(x).nan_to_num().log_softmax(1)
        moves = torch.distributions.Categorical(logits=logs).sample(torch.Size([GROUP])).T
        gains = (moves == best[:, None]).float() * worth[:, None]
        better = run.memory.get("better", above)(gains)
        return x, moves, better, logs.gather(1, moves), first(x)


def above(gains: Tensor) -> Tensor:
    """By the group's mean and deviation."""
    return (gains - gains.mean(1, keepdim=True)) / (gains.std(1, keepdim=True) + 1e-4)


def grouped(model: nn.Module, batch: Any) -> Tensor:
    """Clipped ratios, and how far the policy has gone from the first one."""
    x, moves, better, old, first = batch
    logs = model(x).log_softmax(1)
    ratio = (logs.gather(1, moves) - old).exp()
    gain = torch.minimum(ratio * better, ratio.clamp(0.8, 1.2) * better)
    return -gain.mean() + 0.02 * F.kl_div(first.log_softmax(1), logs, log_target=True, reduction="batchmean")


def not_best(model: nn.Module, batch: Any) -> Tensor:
    """One less the share of the best answer."""
    return 1 - model(batch[0]).softmax(1).gather(1, batch[1][:, None]).mean()


# --- a Fourier operator


def heated(count: int) -> Rows:
    """float32 (32,) of a rod's heat, and its heat later, moved on by a twelfth."""
    rows: Rows = []
    for _ in range(count):
        waves = torch.randn(4), 6.3 * torch.rand(4)
        rows.append((rod(*waves, 0.0, 0.0), rod(*waves, 0.5, 0.1)))
    return rows


def rod(height: Tensor, phase: Tensor, moved: float, fades: float) -> Tensor:
    """float32 (32,): four waves, moved on, the short ones faded most."""
    k = torch.arange(1, 5)[:, None]
    x = torch.arange(32) / 32 * 2 * math.pi - moved
    return (height[:, None] * (-fades * k * k).exp() * (k * x + phase[:, None]).sin()).sum(0)


class Operator(nn.Module):
    """FNO: weights for the low frequencies, which are complex, and a layer at each place."""

    def __init__(self, width: int = 8, modes: int = 6) -> None:
        super().__init__()
        self.lift, self.out = nn.Conv1d(1, width, 1), nn.Conv1d(width, 1, 1)
        made = lambda: nn.Parameter(torch.randn(width, width, modes, dtype=torch.cfloat) / width)  # noqa: E731
        self.spectral, self.near = nn.ParameterList([made(), made()]), nn.ModuleList(
            nn.Conv1d(width, width, 1) for _ in range(2))  # fmt: skip
        self.modes = modes

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x[:, None])
        for weight, near in zip(self.spectral, self.near, strict=True):
            h = F.gelu(self.low(h, weight) + near(h))
        return self.out(h)[:, 0]

    def low(self, h: Tensor, weight: Tensor) -> Tensor:
        """The low frequencies, mixed."""
        made = torch.fft.rfft(h, norm="forward")
        mixed = torch.einsum("nim,iom->nom", made[..., : self.modes], weight)
        return torch.fft.irfft(F.pad(mixed, (0, made.shape[-1] - self.modes)), n=h.shape[-1], norm="forward")


def relative(model: nn.Module, batch: Any) -> Tensor:
    """The error over the length of what is true."""
    return ((model(batch[0]) - batch[1]).norm(dim=1) / batch[1].norm(dim=1)).mean()


# --- a queue


class Queue(nn.Module):
    """MoCo: a net, a slow copy, and the last 64 of what the slow one gave."""

    def __init__(self) -> None:
        super().__init__()
        self.fast = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 8))
        self.slow = copy.deepcopy(self.fast).requires_grad_(False)
        self.register_buffer("queue", F.normalize(torch.randn(64, 8)))

    def forward(self, one: Tensor, two: Tensor) -> Tensor:
        q = F.normalize(self.fast(one))
        with torch.no_grad():
            k = F.normalize(self.slow(two))
        return torch.cat([(q * k).sum(1, keepdim=True), q @ self.get_buffer("queue").T], 1)


def first_of(model: nn.Module, batch: Any) -> Tensor:
    """The own picture among all that are in the queue."""
    x = batch[0]
    likeness = model(x + 0.1 * torch.randn_like(x), x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)))
    return F.cross_entropy(likeness / 0.2, torch.zeros(len(x), dtype=torch.long))


def enqueue(run: Run) -> None:
    """The slow net moves by a tenth; what it makes of the step's pictures takes the place of the oldest."""
    model: Any = run.model
    with torch.no_grad():
        for slow, fast in zip(model.slow.parameters(), model.fast.parameters(), strict=True):
            slow.lerp_(fast, 0.1)
        seen = torch.stack([run.rows[i][0] for i in run.order[-16:]])
        model.queue.copy_(torch.cat([F.normalize(model.slow(seen)), model.queue])[:64])


def told_apart(model: Any, batch: Any) -> Tensor:
    """Two views among those of a hundred others."""
    x = batch[0]
    q, k = (F.normalize(model.fast(v)) for v in (x + 0.1 * torch.randn_like(x), x))
    return F.cross_entropy(q @ k.T / 0.2, torch.arange(len(x)))


# --- refined shifts


def shifts(count: int) -> Rows:
    """float32 (24,) of a line, the same line as the other eye sees it, and by how much it is shifted, 0 to 4."""
    rows: Rows = []
    for _ in range(count):
        line = F.avg_pool1d(torch.randn(1, 1, 36), 3, 1)[0, 0] * 2
        by = 4 * torch.rand(())
        at, part = int(by), by - int(by)
        right = (1 - part) * line[4 + at : 28 + at] + part * line[5 + at : 29 + at]
        rows.append((line[4:28], right, by))
    return rows


class Refines(nn.Module):
    """RAFT on a line: what fits at each shift is looked up, and a GRU refines the guess."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv1d(8, 8, 3, padding=1))
        self.look, self.gru, self.delta = nn.Linear(8 + 1, 16), nn.GRUCell(16, 16), nn.Linear(16, 1)
        self.rounds = 3

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        a, b = self.features(left[:, None]).float(), self.features(right[:, None]).float()
        fits = torch.stack([(a[..., s : s + 17] * b[..., :17]).mean((1, 2)) for s in range(8)], 1)
        state, guess, path = left.new_zeros(len(left), 16), left.new_full((len(left), 1), 2.0), []
        for _ in range(self.rounds):
            state = self.gru(self.look(torch.cat([fits, guess.detach()], 1)).relu(), state).float()
            guess = guess + self.delta(state)
            path.append(guess[:, 0].float())
        return torch.stack(path, 1)


def each_round(model: nn.Module, batch: Any) -> Tensor:
    """L1 of each round, the later ones count more."""
    path = model(*batch[:2])
    weight = 0.8 ** torch.arange(path.shape[1] - 1, -1, -1.0)
    return ((path - batch[2][:, None]).abs() * weight).sum(1).mean()


# --- forces


def pair_energy(x: Tensor) -> Tensor:
    """Of atoms (n, 5, 3): springs of a length of 1, which a far pair does not feel."""
    away = distances(x)
    return ((away - 1).square() * (-0.5 * away).exp()).sum(-1)


def distances(x: Tensor) -> Tensor:
    """(n, 10), with a slope at no distance."""
    one, two = torch.triu_indices(5, 5, 1)
    return ((x[:, one] - x[:, two]).square().sum(-1) + 1e-8).sqrt()


def molecules(count: int) -> Rows:
    """float32 (5, 3) of places, an energy, and forces (5, 3)."""
    x = (1.2 * torch.randn(count, 5, 3)).requires_grad_(True)
    energy = pair_energy(x)
    force = -torch.autograd.grad(energy.sum(), x)[0]
    return [(x[i].detach(), energy[i].detach(), force[i]) for i in range(count)]


class Field(nn.Module):
    """An energy of pairs by their distance, as bumps see it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bumps", torch.linspace(0, 5, 10))
        self.net = nn.Sequential(nn.Linear(10, 32), nn.SiLU(), nn.Linear(32, 1))
        self.measure: Any = distances

    def forward(self, x: Tensor) -> Tensor:
        away = self.measure(x)
        return self.net((-2 * (away[..., None] - self.get_buffer("bumps")).square()).exp())[..., 0].sum(-1)


def energy_and_forces(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Squared errors; forces are the slope of the energy."""
    with torch.enable_grad():
        x = batch[0].clone().requires_grad_(True)
        energy = model(x)
        force = -torch.autograd.grad(energy.sum(), x, create_graph=True)[0]
    return {"energy": 0.1 * F.mse_loss(energy, batch[1]), "force": F.mse_loss(force, batch[2])}


# --- splats


def canvas(count: int) -> Rows:
    """float32 (2,) of a place in -1..1, and the colour (3,) of a picture there."""
    at = 2 * torch.rand(count, 2) - 1
    disc = torch.sigmoid(12 * (0.5 - (at - 0.2).norm(dim=1)))
    colour = torch.stack([disc, 0.5 + 0.4 * (3 * at[:, 0]).sin(), (1 - disc) * 0.6], 1)
    return [(at[i], colour[i]) for i in range(count)]


class Splats(nn.Module):
    """Twenty Gaussians, each with a place, widths, an opacity and a colour."""

    def __init__(self, count: int = 20) -> None:
        super().__init__()
        self.centre = nn.Parameter(2 * torch.rand(count, 2) - 1)
        self.log_width = nn.Parameter(torch.full((count, 2), -1.0))
        self.opacity, self.colour = nn.Parameter(torch.zeros(count)), nn.Parameter(torch.rand(count, 3))

    def forward(self, at: Tensor) -> Tensor:
        off = (at[:, None] - self.centre) / self.log_width.exp()
        share = self.opacity.sigmoid() * (-0.5 * off.square().sum(-1)).exp()
        left = torch.cat([torch.ones(len(at), 1), (1 - share).cumprod(1)[:, :-1]], 1)
        return (share * left) @ self.colour


def colours(model: nn.Module, batch: Any) -> Tensor:
    """L1."""
    return F.l1_loss(model(batch[0]), batch[1])


PLACES = (
    Task("wgan", crosses, Duel, apart, torch.optim.Adam, {"lr": 1e-2, "betas": (0.5, 0.9)}, score=unlike, epochs=20,
         rivals={"critic": apart, "generator": nearer}),
    Task("grpo", puzzles, lambda: mlp(6, 4), grouped, options={"lr": 5e-3}, clip=1.0, prepare=answers, score=not_best,
         epochs=8),
    Task("fno", heated, Operator, relative, torch.optim.Adam, {"lr": 1e-2}, "step", way="step", epochs=8),
    Task("moco", pictures, Queue, first_of, torch.optim.SGD, {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
         "cosine", after_step=enqueue, score=told_apart, epochs=10),
    Task("raft", shifts, Refines, each_round, options={"lr": 1e-2, "weight_decay": 1e-4}, schedule="onecycle",
         clip=1.0, epochs=8),
    Task("forces", molecules, Field, energy_and_forces, torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}, ema=True,
         epochs=8),
    Task("splat", canvas, Splats, colours, torch.optim.Adam, {"lr": 3e-2, "eps": 1e-15}, "exponential"),
)  # fmt: skip
