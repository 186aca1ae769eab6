"""Runs that nothing is wrong with: every task as it is, and what only looks like a fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from anywhere.mainstream import faults as f
from anywhere.mainstream.case import Case, honest
from anywhere.mainstream.pictures import dice
from anywhere.mainstream.rivals import NOISE, reward
from anywhere.mainstream.task import Run
from anywhere.mainstream.tasks import FIRST
from torch import Tensor, nn
from torch.nn import functional as F


def nothing(run: Run) -> None:
    """As it is."""


def shares_of(*places: int) -> Callable[[Run], None]:
    """Prices with heavy tails: some houses cost a hundred times the usual, and the loss is of logarithms."""

    def fault(run: Run) -> None:
        for place in places:
            x, y = run.rows[place]
            run.rows[place] = x, 100 * y
        run.loss = lambda model, batch: F.huber_loss(model(batch[0]), batch[1])

    return fault


def lognormal(run: Run) -> None:
    """Targets with heavy tails, and a plain squared error."""
    tails = torch.exp(1.5 * torch.randn(len(run.rows)))
    run.rows = [(x, y * tail) for (x, y), tail in zip(run.rows, tails, strict=True)]
    run.clip = 5.0


def filled_in(run: Run) -> None:
    """Every fifth row lacks a field, which the model fills in with 0."""
    run.rows = [(f.put(f.NAN, 4)(x.clone()), y) if i % 5 == 0 else (x, y) for i, (x, y) in enumerate(run.rows)]
    net = run.model
    run.model = Filled(net)


class Filled(nn.Module):
    """Puts 0 in place of NaN."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.nan_to_num(0.0))


def warmed(run: Run, usual: Any) -> Any:
    """The divergence comes in over thirty steps."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        made, mu, logvar = model(batch[0])
        bce = F.binary_cross_entropy(made, batch[0].flatten(1), reduction="sum")
        kl = -0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()
        return bce + min(1.0, run.step / 30) * kl

    return loss


def reweighed(run: Run, usual: Any) -> Any:
    """The second task counts five times as much from step 30 on."""

    def loss(model: nn.Module, batch: Any) -> Any:
        made = usual(model, batch)
        return {**made, "number": made["number"] * (5.0 if run.step >= 30 and run.active else 1.0)}

    return loss


def frozen_first(run: Run) -> None:
    """The trunk is frozen for twenty steps."""
    trunk = run.model.get_submodule("0")
    trunk.requires_grad_(False)
    run.at(20, lambda run: trunk.requires_grad_(True))  # pyright: ignore[reportArgumentType]


def mixed(run: Run, usual: Any) -> Any:
    """Mixup with its labels."""

    def loss(model: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        share, order = float(torch.distributions.Beta(0.2, 0.2).sample()), torch.randperm(len(x))
        out = model(share * x + (1 - share) * x[order])
        return share * F.cross_entropy(out, y) + (1 - share) * F.cross_entropy(out, y[order])

    return loss


def rare(run: Run, moves: Tensor, best: Tensor) -> Tensor:
    """Nothing for 20 steps, then 10 for the best move."""
    return reward(run, moves, best) * (10.0 if run.step >= 20 else 0.0)


def louder(run: Run, moves: Tensor, best: Tensor) -> Tensor:
    """A level from step 30 on in which everything counts ten times."""
    return reward(run, moves, best) * (10.0 if run.step >= 30 else 1.0)


def rewards(kind: Any) -> Callable[[Run], None]:
    """Another game."""
    return lambda run: run.memory.update(reward=kind)


def hinge(gan: Any, batch: Any) -> Tensor:
    """The critic's, which is 0 where it is sure."""
    made = gan.critic(gan.generator(torch.randn(len(batch[0]), NOISE)).sigmoid().detach())
    return F.relu(1 - gan.critic(batch[0])).mean() + F.relu(1 + made).mean()


def wasserstein(gan: Any, batch: Any) -> Tensor:
    """Differences of means, which go far below 0."""
    made = gan.critic(gan.generator(torch.randn(len(batch[0]), NOISE)).sigmoid().detach())
    return made.mean() - gan.critic(batch[0]).mean()


def only_dice(model: nn.Module, batch: Any) -> Tensor:
    """With the usual smoothing, and one mask that is empty."""
    return dice(model(batch[0]).float().sigmoid(), batch[1]).mean()


def evaluates(run: Run) -> None:
    """Between epochs the model is looked at in eval mode, on data with NaN too."""

    def look(run: Run) -> None:
        run.model.eval()
        with torch.no_grad():
            run.model(torch.full((4, 1, 12, 12), f.NAN))
            run.model(run.held_out[0][0][None])
        run.model.train()

    for step in (10, 20, 30, 40):
        run.at(step, look)


def padded(run: Run) -> None:
    """One text is nothing but padding behind its first word: its other targets count for nothing."""
    usual = run.loss

    def loss(model: nn.Module, batch: Any) -> Tensor:
        ids, wanted = batch[0][:, :-1], batch[0][:, 1:].clone()
        wanted[:, 1:] = torch.where(ids[:, :1] == 3, -1, wanted[:, 1:])
        return model(ids, wanted)[1]

    run.loss = loss if usual is not None else usual


HONEST: tuple[Case, ...] = (
    *(honest(name, "as it is", nothing) for name in FIRST),
    honest("cnn", "a black picture", f.sample(0, f.times(0))),
    honest("cnn", "a tenth of the labels wrong", f.every(1, lambda y: (y + int(torch.rand(()) < 0.1)) % 4)),
    honest("cnn", "warm restarts", f.setting("schedule", "restarts")),
    honest("cnn", "looked at between epochs", evaluates),
    honest("cnn", "frozen at first", frozen_first),
    honest("cnn", "mixup", f.instead(mixed)),
    honest("cnn", "begun again from its file", f.resumed),
    honest("cnn", "labels of one class only", f.every(1, lambda y: y * 0)),
    honest("gpt", "begun again from its file", f.resumed),
    honest("houses", "begun again from its file", f.resumed),
    honest("vit", "begun again without its moments", f.no_optimizer),
    honest("gpt", "texts that count for little", padded),
    honest("houses", "a constant column", f.every(0, f.put(1.0, 3))),
    honest("houses", "three palaces", shares_of(5, 60, 111)),
    honest("houses", "lognormal targets", lognormal),
    honest("houses", "gaps that the model fills", filled_in),
    honest("customers", "hardly a yes", f.every(1, lambda y: y * (torch.rand(()) < 0.1))),
    honest("customers", "one at a time", f.setting("batch", 1)),
    honest("customers", "a last batch that is small",
           f.together(f.setting("drop_last", False), f.setting("batch", 12))),
    honest("vae", "the divergence warmed up", f.instead(warmed)),
    honest("two_tasks", "weighed anew", f.instead(reweighed)),
    honest("two_tasks", "one number far out", f.sample(2, f.times(20))),
    honest("unet", "an empty mask", f.together(f.sample(1, f.times(0)), f.loss_is(only_dice))),
    honest("detector", "a picture without objects",
           f.together(f.entry(1, "boxes", lambda b: b[:0]), f.entry(1, "labels", lambda y: y[:0]))),
    honest("forecast", "a spike that is real", f.sample(0, f.times(20))),
    honest("forecast", "two workers", f.setting("workers", 2)),
    honest("policy", "first rewards are rare", rewards(rare)),
    honest("policy", "a level that counts ten times", rewards(louder)),
    honest("gan", "hinge", lambda run: run.rivals.update(critic=hinge)),
    honest("gan", "wasserstein", lambda run: run.rivals.update(critic=wasserstein)),
    honest("diffusion", "clipped at 0.01", f.setting("clip", 0.01)),
    honest("simclr", "batches of four", f.setting("batch", 4)),
    honest("films", "one film only", f.every(1, lambda x: x * 0)),
)  # fmt: skip  # fmt: skip
