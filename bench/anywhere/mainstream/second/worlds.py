"""Loops with gradients of gradients or with games: an equation, tasks that are learned in a step, PPO, a scene."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.mainstream.rivals import Agent, reward, states
from anywhere.mainstream.task import Rows, Run, Task
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

# --- an equation: u'' = -pi^2 sin(pi x), u(0) = u(1) = 0


def places(count: int) -> Rows:
    """float32 (1,) in 0..1, and the force there."""
    x = torch.rand(count, 1)
    return [(p, math.pi**2 * (math.pi * p).sin()) for p in x]


def tanh_net() -> nn.Module:
    """Smooth, as its second derivative is asked for."""
    return nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))


def residual(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What is left of the equation, and of its two ends."""
    x = batch[0].clone().requires_grad_(True)
    u = model(x)
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    ends = model(torch.tensor([[0.0], [1.0]]))
    return {"equation": (second + batch[1]).square().mean(), "ends": 20 * ends.square().mean()}


def from_truth(model: nn.Module, batch: Any) -> Tensor:
    """Distance from sin(pi x)."""
    return F.mse_loss(model(batch[0]), (math.pi * batch[0]).sin())


# --- tasks that are learned in a step (MAML)


def sines(count: int) -> Rows:
    """Five points of a sine of its own height and phase to learn from, and five to be tried on."""
    rows: Rows = []
    for _ in range(count):
        high, phase = 0.5 + 1.5 * torch.rand(()), 3 * torch.rand(())
        x = 4 * torch.rand(2, 5, 1) - 2
        y = high * (x + phase).sin()
        rows.append((x[0], y[0], x[1], y[1]))
    return rows


def adapts(model: nn.Module, batch: Any) -> Tensor:
    """The error after one step of each task's own, through that step."""
    losses = []
    with torch.enable_grad():
        for x, y, tried, truth in zip(*batch, strict=True):
            weights = dict(model.named_parameters())
            inner = F.mse_loss(functional_call(model, weights, (x,)), y)
            slopes = torch.autograd.grad(inner, list(weights.values()), create_graph=True)
            moved = {k: w - 0.1 * g for (k, w), g in zip(weights.items(), slopes, strict=True)}
            losses.append(F.mse_loss(functional_call(model, moved, (tried,)), truth))
    return torch.stack(losses).mean()


# --- PPO


def play_old(run: Run, batch: Any) -> Any:
    """Moves by the policy as it was up to four steps ago, with its probabilities and what they brought."""
    x, best = batch
    if run.step % 4 == 0 or "old" not in run.memory:
        run.memory["old"] = copy.deepcopy(run.model).requires_grad_(False)
    with torch.no_grad():
        logits, value = run.memory["old"](x)
        policy = torch.distributions.Categorical(logits=logits.nan_to_num())
        moves = policy.sample()
        gain = run.memory.get("reward", reward)(run, moves, best)
    return x, moves, policy.log_prob(moves), gain - value, gain


def clipped(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """PPO's: the ratio is cut off at 0.8 and 1.2."""
    x, moves, before, better, gain = batch
    logits, value = model(x)
    policy = torch.distributions.Categorical(logits=logits)
    better = (better - better.mean()) / (better.std() + 1e-8)
    ratio = (policy.log_prob(moves) - before).exp()
    surrogate = torch.minimum(ratio * better, ratio.clamp(0.8, 1.2) * better).mean()
    return {"policy": -surrogate, "value": 0.5 * F.mse_loss(value, gain), "doubt": -0.01 * policy.entropy().mean()}


def regret(model: nn.Module, batch: Any) -> Tensor:
    """One less the share of the best move."""
    return 1 - model(batch[0])[0].softmax(1).gather(1, batch[1][:, None]).mean()


# --- a scene


def rays(count: int) -> Rows:
    """Where a ray of a flat scene begins and goes (float32 (4,)), and the colour it meets: a disc before a sky."""
    rows: Rows = []
    for _ in range(count):
        start = torch.stack([torch.tensor(-2.0), 2 * torch.rand(()) - 1])
        way = F.normalize(torch.stack([torch.tensor(1.0), 0.4 * torch.randn(())]), dim=0)
        away = (start - (start @ way) * way).norm()
        colour = torch.tensor([0.9, 0.3, 0.1]) if away < 0.7 else torch.tensor([0.2, 0.4, 0.9])
        rows.append((torch.cat([start, way]), colour))
    return rows


class Scene(nn.Module):
    """NeRF in the plane: waves of a place → how dense it is there, and its colour."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        waves = torch.cat([f(k * x) for k in (1, 2, 4) for f in (torch.sin, torch.cos)], -1)
        out = self.net(waves)
        return F.softplus(out[..., 0]), out[..., 1:].sigmoid()


def rendered(model: nn.Module, batch: Any) -> Tensor:
    """Colours added up along each ray, of twelve places drawn on it."""
    start, way = batch[0].chunk(2, 1)
    far = (torch.arange(12) + torch.rand(len(start), 12)) / 3
    dense, colour = model(start[:, None] + far[..., None] * way[:, None])
    step = F.pad(far.diff(dim=1), (0, 1), value=0.3)
    opaque = 1 - (-dense * step).exp()
    through = F.pad((1 - opaque + 1e-10).cumprod(1)[:, :-1], (1, 0), value=1.0)
    return F.mse_loss(((opaque * through)[..., None] * colour).sum(1), batch[1])


def small_net() -> nn.Module:
    """Of one number."""
    return nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))


WORLDS = (
    Task("pinn", places, tanh_net, residual, torch.optim.Adam, {"lr": 1e-2}, "exponential", epochs=10,
         score=from_truth),
    Task("maml", sines, small_net, adapts, torch.optim.Adam, {"lr": 5e-3}, batch=8, epochs=4),
    Task("ppo", states, Agent, clipped, torch.optim.Adam, {"lr": 1e-2, "eps": 1e-5}, clip=0.5, prepare=play_old,
         score=regret),
    Task("nerf", rays, Scene, rendered, torch.optim.RMSprop, {"lr": 3e-3}, "exponential", epochs=8),
)  # fmt: skip
