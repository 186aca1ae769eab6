"""Numbers: a curve by LBFGS, an equation of motion, denoising at all levels, SAC, a tree, a kernel, neighbours."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.mainstream.tables import mlp, squares
from anywhere.mainstream.task import Rows, Run, Task
from torch import Tensor, nn
from torch.nn import functional as F

# --- a curve by LBFGS


def decays(count: int) -> Rows:
    """float32 (1,) seconds, and the height of a swing that comes to rest."""
    t = 4 * torch.rand(count, 1)
    y = (-0.5 * t).exp() * (3 * t).cos() + 0.02 * torch.randn(count, 1)
    return [(t[i], y[i]) for i in range(count)]


def smooth() -> nn.Module:
    """Two hidden layers of tanh."""
    return nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 1))


# --- an equation of motion


def spirals(count: int) -> Rows:
    """float32 (2,) where a point begins, and (8, 2) where it is at each tenth of a second (dy/dt = A y^3)."""
    a = torch.tensor([[-0.1, 2.0], [-2.0, -0.1]])
    y = F.normalize(torch.randn(count, 2)) * (0.6 + 1.2 * torch.rand(count, 1))
    path, now = [], y
    for _ in range(80):
        now = now + 0.01 * (now**3) @ a.T
        path.append(now)
    return [(y[i], torch.stack([p[i] for p in path[9::10]])) for i in range(count)]


class Motion(nn.Module):
    """The slope of a point by a net of its cubes; a path by four-stage Runge-Kutta."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, y: Tensor) -> Tensor:
        path, h, f = [], 0.1, lambda y: self.net(y**3)
        for _ in range(8):
            k1 = f(y)
            k2 = f(y + h / 2 * k1)
            k3 = f(y + h / 2 * k2)
            k4 = f(y + h * k3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            path.append(y)
        return torch.stack(path, 1)


def off_path(model: nn.Module, batch: Any) -> Tensor:
    """L1."""
    return F.l1_loss(model(batch[0]), batch[1])


# --- denoising at all levels (EDM)


def ring(count: int) -> Rows:
    """float32 (2,) on a thin ring, of which a quarter is missing."""
    turn = 1.5 * math.pi * torch.rand(count, 1)
    return [(p,) for p in torch.cat([turn.cos(), turn.sin()], 1) + 0.02 * torch.randn(count, 2)]


class Denoiser(nn.Module):
    """Karras's: what goes in, what comes out and what is passed by are weighed by the level of noise."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.randn(8))
        self.net = nn.Sequential(
            nn.Linear(18, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2))  # fmt: skip

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        d, waves = 0.5, (sigma.log() / 4) * self.get_buffer("freqs")
        root = (sigma.square() + d**2).sqrt()
        out = self.net(torch.cat([x / root, waves.cos(), waves.sin()], 1))
        return d**2 / root.square() * x + sigma * d / root * out


def denoised(model: nn.Module, batch: Any) -> Tensor:
    """Squared error, weighed so that each level counts the same."""
    sigma = (-1.2 + 1.2 * torch.randn(len(batch[0]), 1)).exp()
    off = model(batch[0] + sigma * torch.randn_like(batch[0]), sigma) - batch[0]
    return ((sigma.square() + 0.25) / (0.5 * sigma).square() * off.square()).mean()


# --- SAC


def aims(count: int) -> Rows:
    """float32 (4,) of a state, and the action (2,) in -1..1 that is best there."""
    s = torch.randn(count, 4)
    return [(s[i], (s[i, :2] + 0.5 * s[i, 2]).tanh() * 0.8) for i in range(count)]


class Critic(nn.Module):
    """Two values of a state and an action."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = mlp(6, 1), mlp(6, 1)

    def forward(self, s: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.cat([s, a], 1)
        return self.one(x)[:, 0], self.two(x)[:, 0]


class Actor(nn.Module):
    """A Gaussian squashed by tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.ReLU())
        self.mean, self.log_std = nn.Linear(32, 2), nn.Linear(32, 2)

    def forward(self, s: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(s)
        return self.mean(h), self.log_std(h).clamp(-5, 2)


class Both(nn.Module):
    """Critic and actor."""

    def __init__(self) -> None:
        super().__init__()
        self.critic, self.actor = Critic(), Actor()


def squashed(actor: Any, s: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """An action and the logarithm of its density."""
    mean, log_std = actor(s)
    raw = mean + log_std.exp() * noise
    log = (-0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi)).sum(1)
    return raw.tanh(), log - (2 * (math.log(2) - raw - F.softplus(-2 * raw))).sum(1)


def gain(run: Run, action: Tensor, best: Tensor) -> Tensor:
    """1 less the squared distance from the best."""
    return 1 - (action - best).square().sum(1)


def plays(run: Run, batch: Any) -> Any:
    """An action by the present policy, what it brought with what a slow critic makes of the next state, and noise."""
    (s, best), net = batch, run.model
    slow = run.memory.setdefault("slow", copy.deepcopy(net.get_submodule("critic")).requires_grad_(False))
    first, second, third = torch.randn(3, len(s), 2)
    with torch.no_grad():
        action, _ = squashed(net.get_submodule("actor"), s, first)
        after = s.flip(1)
        then, log = squashed(net.get_submodule("actor"), after, second)
        value = torch.minimum(*slow(after, then)) - 0.05 * log
        wanted = run.memory.get("gain", gain)(run, action, best) + 0.3 * value
    return s, action, wanted, third


def valued(nets: Any, batch: Any) -> Tensor:
    """The critic's: squared errors of both values."""
    s, action, wanted, _ = batch
    one, two = nets.critic(s, action)
    return F.mse_loss(one, wanted) + F.mse_loss(two, wanted)


def acts(nets: Any, batch: Any) -> Tensor:
    """The actor's: a high value, and doubt."""
    s, _, _, noise = batch
    action, log = squashed(nets.actor, s, noise)
    return (0.05 * log - torch.minimum(*nets.critic(s, action))).mean()


def slowly(run: Run) -> None:
    """The slow critic moves by a twentieth."""
    critic = run.model.get_submodule("critic")
    with torch.no_grad():
        for slow, p in zip(run.memory["slow"].parameters(), critic.parameters(), strict=True):
            slow.lerp_(p, 0.05)


def missed(model: Any, batch: Any) -> Tensor:
    """How far the mean action is from the best."""
    return (model.actor(batch[0])[0].tanh() - batch[1]).square().sum(1).mean()


# --- a tree

NODES, BRANCH = 40, 3


def edges(count: int) -> Rows:
    """A node of a tree, one above it, and six nodes that are not."""
    rows: Rows = []
    for _ in range(count):
        node = int(torch.randint(1, NODES, ()))
        above = [(node - 1) // BRANCH]
        while above[-1]:
            above.append((above[-1] - 1) // BRANCH)
        other = [k for k in range(NODES) if k not in (*above, node)]
        drawn = torch.tensor(other)[torch.randperm(len(other))[:6]]
        rows.append((torch.tensor(node), torch.tensor(above[int(torch.randint(len(above), ()))]), drawn))
    return rows


class Poincare(nn.Module):
    """Places in the Poincaré disc; gives its loss: of seven nodes, the one above is to be the nearest."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Embedding(NODES, 3)
        nn.init.uniform_(self.places.weight, -0.1, 0.1)

    def apart(self, u: Tensor, v: Tensor) -> Tensor:
        """The distance of the disc."""
        away = (u - v).square().sum(-1)
        rim = (1 - u.square().sum(-1)) * (1 - v.square().sum(-1))
        return torch.acosh(1 + 2 * away / rim.clamp(min=1e-5) + 1e-5)

    def forward(self, node: Tensor, above: Tensor, others: Tensor) -> Tensor:
        u, v = self.places(node)[:, None], self.places(torch.cat([above[:, None], others], 1))
        return F.cross_entropy(-self.apart(u, v), torch.zeros_like(node))


class RiemannianSGD(torch.optim.Optimizer):
    """Slopes are shortened as the disc's measure asks, and whoever leaves the disc is put back into it."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                p.sub_(group["lr"] * (1 - p.square().sum(-1, keepdim=True)).square() / 4 * p.grad)
                self.put_back(p)

    def put_back(self, p: Tensor) -> None:
        """Into the disc, whoever has left it."""
        p.div_((p.norm(dim=-1, keepdim=True) / (1 - 1e-3)).clamp(min=1))


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's."""
    return model(*batch)


# --- a kernel


def readings(count: int) -> Rows:
    """float32 (3,), and a value that is smooth in them."""
    x = 2 * torch.rand(count, 3) - 1
    y = (3 * x[:, 0]).sin() + x[:, 1].square() + 0.1 * torch.randn(count)
    return [(x[i], y[i]) for i in range(count)]


class Kernel(nn.Module):
    """A Gaussian process on what a small net makes of the fields; its range, height and noise are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 2))
        self.raw_range, self.raw_height, self.raw_noise = (nn.Parameter(torch.zeros(())) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """The covariance, (n, n)."""
        z = self.net(x) / F.softplus(self.raw_range)
        away = (z[:, None] - z[None]).square().sum(-1)
        noise = F.softplus(self.raw_noise) + 1e-4
        return F.softplus(self.raw_height) * (-0.5 * away).exp() + noise * torch.eye(len(x))


def evidence(model: nn.Module, batch: Any) -> Tensor:
    """The negative logarithm of the marginal likelihood, of each reading."""
    factor = torch.linalg.cholesky(model(batch[0]))
    solved = torch.cholesky_solve(batch[1][:, None], factor)[:, 0]
    return (0.5 * batch[1] @ solved + factor.diagonal().log().sum()) / len(solved) + 0.5 * math.log(2 * math.pi)


# --- neighbours


def papers(count: int) -> Rows:
    """float32 (6,) of a paper, (5, 6) of papers it cites, how many it does (1 to 5), and its field."""
    rows, centres = [], 0.9 * torch.eye(3, 6)
    for _ in range(count):
        field, many = int(torch.randint(3, ())), int(torch.randint(1, 6, ()))
        cited = torch.where(torch.rand(5) < 0.8, field, torch.randint(3, (5,)))
        near = (centres[cited] + 0.7 * torch.randn(5, 6)) * (torch.arange(5) < many)[:, None]
        rows.append((centres[field] + 0.7 * torch.randn(6), near, torch.tensor(many), torch.tensor(field)))
    return rows


class Attends(nn.Module):
    """GAT in small: each neighbour counts by a score of both."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.lin, self.score = nn.Linear(6, width), nn.Linear(2 * width, 1)
        self.drop, self.head = nn.Dropout(0.2), nn.Linear(2 * width, 3)

    def forward(self, own: Tensor, near: Tensor, many: Tensor) -> Tensor:
        u, v = self.lin(own), self.lin(near)
        score = F.leaky_relu(self.score(torch.cat([u[:, None].expand_as(v), v], -1))[..., 0], 0.2)
        score = score.masked_fill(torch.arange(5) >= many[:, None], -math.inf)
        seen = (score.softmax(1)[..., None] * v).sum(1)
        return self.head(self.drop(F.elu(torch.cat([u, seen], 1))))


def of_field(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(*batch[:-1]), batch[-1])


WORLDS = (
    Task("lbfgs", decays, smooth, squares, torch.optim.LBFGS,
         {"lr": 1.0, "max_iter": 8, "history_size": 20, "line_search_fn": "strong_wolfe"}, batch=160, epochs=50,
         closure=True),
    Task("ode", spirals, Motion, off_path, torch.optim.RMSprop, {"lr": 5e-3}, "cosine"),
    Task("edm", ring, Denoiser, denoised, torch.optim.Adam, {"lr": 1e-2}, ema=True, way="step", epochs=20),
    Task("sac", aims, Both, valued, torch.optim.Adam, {"lr": 1e-2}, prepare=plays, after_step=slowly, score=missed,
         rivals={"critic": valued, "actor": acts}, epochs=10),
    Task("poincare", edges, Poincare, own_loss, RiemannianSGD, {"lr": 3.0}, way="inside", epochs=10),
    Task("kernel", readings, Kernel, evidence, torch.optim.Adam, {"lr": 3e-2}, batch=32, epochs=12),
    Task("sage", papers, Attends, of_field, torch.optim.Adagrad, {"lr": 5e-2, "weight_decay": 5e-4}, way="step"),
)  # fmt: skip
