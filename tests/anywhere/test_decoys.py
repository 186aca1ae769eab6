"""Honest trainings of many kinds: no step refused, nothing said."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import Guard, attach


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(i: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(16, 1, 12, 12, generator=generator(i))
    return x, (x[:, 0, :6].mean((1, 2)) > 0).long() + 2 * (x[:, 0, :, :6].mean((1, 2)) > 0).long()


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 16, 3)),
        *(nn.BatchNorm2d(16), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.out = nn.Linear(32, 20)
        self.register_buffer("mask", torch.full((12, 12), -math.inf).triu(1))

    def forward(self, i: int) -> Tensor:
        x = torch.randint(0, 20, (8, 12), generator=generator(i)).cumsum(1) % 20
        return F.cross_entropy(
            self.out(self.block(self.embed(x), src_mask=self.mask))[:, :-1].flatten(0, 1), x[:, 1:].flatten()
        )


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(144, 16), nn.Linear(8, 144)

    def forward(self, i: int) -> Tensor:
        x = pictures(i)[0].flatten(1)
        mean, log_var = self.encode(x).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_var / 2).exp()
        rest = F.mse_loss(self.decode(z), x, reduction="sum")
        return rest - 0.5 * (1 + log_var - mean.square() - log_var.exp()).sum()


def classify(model: nn.Module, i: int) -> Tensor:
    x, y = pictures(i)
    return F.cross_entropy(model(x), y)


def contrast(model: nn.Module, i: int) -> Tensor:
    x = pictures(i)[0]
    z = F.normalize(model(torch.cat([x, x + 0.1 * torch.randn_like(x)])), dim=1)
    alike = (z @ z.T / 0.1).fill_diagonal_(-1e9)
    return F.cross_entropy(alike, torch.arange(32).roll(16))


def bellman(model: nn.Module, i: int) -> Tensor:
    target = torch.randn(16, generator=generator(i)) + 0.99 * model(pictures(i + 1)[0]).max(1).values.detach()
    return F.smooth_l1_loss(model(pictures(i)[0])[:, 0], target)


def policy(model: nn.Module, i: int) -> Tensor:
    x, action = pictures(i)
    reward = torch.randn(16, generator=generator(i))
    chosen = F.log_softmax(model(x), 1).gather(1, action[:, None])[:, 0]
    return -(chosen * (reward - reward.mean()) / (reward.std() + 1e-8)).mean()


def likelihood(model: nn.Module, i: int) -> Tensor:
    x = pictures(i)[0]
    out = model(x)
    return (out[:, 1] + 0.5 * (x.mean((1, 2, 3)) - out[:, 0]).square() * (-2 * out[:, 1]).exp()).mean()


def rare(model: nn.Module, i: int) -> Tensor:
    return classify(model, i) * (50 if i % 37 == 5 else 1)


def own(model: nn.Module, i: int) -> Tensor:
    return model(i)


DECOYS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module, int], Tensor], str]] = {
    "cnn": (cnn, classify, "sgd"),
    "language": (Language, own, "adamw"),
    "vae, summed loss": (VAE, own, "adam"),
    "contrastive": (cnn, contrast, "sgd"),
    "q learning": (cnn, bellman, "adam"),
    "policy gradient": (cnn, policy, "adam"),
    "likelihood below zero": (cnn, likelihood, "adam"),
    "a rare class of weight 50": (cnn, rare, "adam"),
    "tiny losses": (cnn, lambda m, i: classify(m, i) * 1e-6, "adam"),
    "huge losses": (cnn, lambda m, i: classify(m, i) * 1e5, "adam"),
}
OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, 0.05, 0.9),
    "adam": lambda p: torch.optim.Adam(p, 1e-3),
    "adamw": lambda p: torch.optim.AdamW(p, 3e-3),
}


@pytest.mark.parametrize("name", DECOYS)
def test_an_honest_training_is_left_alone(name: str) -> None:
    make, loss_of, kind = DECOYS[name]
    torch.manual_seed(0)
    model, other = make(), make()
    optimizer, second = OPTIMIZERS[kind](model.parameters()), OPTIMIZERS[kind](other.parameters())
    guard = Guard(model, optimizer, forward=loss_of, diagnose=True, logdir=None)
    attached = attach(other, second)
    for i in range(80):
        record = guard.step(lambda b: loss_of(model, b), i)
        assert record.applied and guard.alarm is None, guard.alarm
        second.zero_grad()
        attached.see(loss_of(other, i)).backward()
        second.step()
        assert not attached.refused and attached.alarm is None, attached.alarm
