"""Two networks, and agents: a GAN, REINFORCE with a baseline, a value network with a target of its own."""

from __future__ import annotations

import copy
from typing import Any

import torch
from anywhere.mainstream.pictures import ADAM, pictures
from anywhere.mainstream.tables import mlp
from anywhere.mainstream.task import Rows, Run, Task
from torch import Tensor, nn
from torch.nn import functional as F

NOISE = 8


class GAN(nn.Module):
    """The DCGAN tutorial without convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.critic = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.generator = nn.Sequential(nn.Linear(NOISE, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 144))


def tells(gan: Any, batch: Any) -> Tensor:
    """The critic's: real ones are 1, made ones 0."""
    real = gan.critic(batch[0])
    made = gan.critic(gan.generator(torch.randn(len(batch[0]), NOISE)).sigmoid().detach())
    bce = F.binary_cross_entropy_with_logits
    return bce(real, torch.ones_like(real)) + bce(made, torch.zeros_like(made))


def fools(gan: Any, batch: Any) -> Tensor:
    """The generator's: made ones are to be called 1."""
    made = gan.critic(gan.generator(torch.randn(len(batch[0]), NOISE)).sigmoid())
    return F.binary_cross_entropy_with_logits(made, torch.ones_like(made))


def states(count: int) -> Rows:
    """float32 (6,) of a game, and the move that is best there."""
    x = torch.randn(count, 6)
    return [(x[i], x[i, :3].argmax()) for i in range(count)]


class Agent(nn.Module):
    """Logits of three moves, and a value."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 32), nn.Tanh())
        self.policy, self.value = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.policy(h), self.value(h)[:, 0]


def reward(run: Run, moves: Tensor, best: Tensor) -> Tensor:
    """1 for the best move, else 0."""
    return (moves == best).float()


def play(run: Run, batch: Any) -> Any:
    """A move for each state by the present policy, and its reward."""
    x, best = batch
    with torch.no_grad():
        moves = torch.distributions.Categorical(logits=run.model(x)[0].nan_to_num()).sample()
    return x, moves, run.memory.get("reward", reward)(run, moves, best)


def actor_critic(model: nn.Module, batch: Any) -> Tensor:
    """Policy gradient with a baseline, the value's error, a bonus for doubt."""
    x, moves, rewards = batch
    logits, value = model(x)
    policy = torch.distributions.Categorical(logits=logits)
    better = rewards - value
    gain = (policy.log_prob(moves) * better.detach()).mean()
    return -gain + 0.5 * better.square().mean() - 0.01 * policy.entropy().mean()


def regret(model: nn.Module, batch: Any) -> Tensor:
    """One less the share of the best move."""
    return 1 - model(batch[0])[0].softmax(1).gather(1, batch[1][:, None]).mean()


def transitions(count: int) -> Rows:
    """State, move, reward, next state of a game that was recorded."""
    x, moves, after = torch.randn(count, 6), torch.randint(3, (count,)), torch.randn(count, 6)
    rewards = (moves == x[:, :3].argmax(1)).float()
    return [(x[i], moves[i], rewards[i], after[i]) for i in range(count)]


def targets(run: Run, batch: Any) -> Any:
    """What a copy of the network, as it was every ten steps, makes of the next state."""
    x, moves, rewards, after = batch
    if run.step % 10 == 0 or "target" not in run.memory:
        run.memory["target"] = copy.deepcopy(run.model).requires_grad_(False)
    with torch.no_grad():
        return x, moves, rewards + 0.5 * run.memory["target"](after).amax(1)


def huber(model: nn.Module, batch: Any) -> Tensor:
    """Of the value of the move that was made."""
    return F.smooth_l1_loss(model(batch[0]).gather(1, batch[1][:, None])[:, 0], batch[2])


def wrong_moves(model: nn.Module, batch: Any) -> Tensor:
    """How far the recorded rewards are from the values."""
    value = model(batch[0]).gather(1, batch[1][:, None])[:, 0]
    return (value - batch[2] - 0.4).square().mean()


RIVALS = (
    Task("gan", pictures, GAN, tells, ADAM, {"lr": 2e-3, "betas": (0.5, 0.999)}, scored=False,
         rivals={"critic": tells, "generator": fools}),
    Task("policy", states, Agent, actor_critic, ADAM, {"lr": 1e-2}, score=regret, prepare=play),
    Task("dqn", transitions, lambda: mlp(6, 3), huber, ADAM, {"lr": 5e-3}, clip=10.0, score=wrong_moves,
         prepare=targets),
)  # fmt: skip
