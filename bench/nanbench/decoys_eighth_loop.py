"""Honest loops of an eighth round: gaps that a model fills, masks of -inf, rivals, batches without a pair."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.decoys_own import every
from nanbench.faults_code import Losses
from nanbench.faults_eighth_loop import Codebook, every_row, rows_of
from nanbench.faults_eighth_loop_code import instead, s_reward
from nanbench.faults_fifth_data import drawn
from nanbench.faults_seventh_code import own_terms
from nanbench.faults_seventh_data import added
from nanbench.scenario import Scenario
from nanbench.scene import Live, Scene, Setup

INF = float("inf")


def nothing(scene: Scene) -> None:
    """As it is."""


def filled_in(scene: Scene) -> None:
    """Every third row lacks a number, which is NaN in the table; the model puts 0 there, and says so in a weight."""
    model: Any = scene.model
    rows = rows_of(scene)
    rows[::3, 4] = float("nan")
    every_row(scene, rows)
    model.features = lambda x: model.body(torch.where(x.isnan(), torch.zeros(()), x))


def outliers(scene: Scene) -> None:
    """Three sizes are a hundred times the usual; the loss is Huber's."""
    model: Any = scene.model
    for k in (3, 11, 17):
        image, target = scene.samples[k]
        scene.samples[k] = image, {**target, "numbers": 100 * model.wanted(image, target)}
    model.terms = lambda out, y: {"huber": F.huber_loss(out.float(), y)}


def only_padding(scene: Scene) -> None:
    """One text says nothing: the mean over no word is NaN, and reaches no gradient."""
    drawn({0: added("next", lambda t: torch.full((16,), -100))})(scene)


def hinge(scene: Scene) -> None:
    """Hinge losses, which are 0 where the critic is sure, and below 0 for the generator."""
    model: Any = scene.model

    def critic_loss(critic: nn.Module, x: Tensor) -> Tensor:
        real = F.adaptive_avg_pool2d(x, 8).flatten(1)
        made = model.generator(torch.randn(len(x), 8)).sigmoid().detach()
        return F.relu(1 - critic(real)).mean() + F.relu(1 + critic(made)).mean()

    model.critic_loss = critic_loss
    model.generator_loss = lambda g, x: -model.critic(g(torch.randn(len(x), 8)).sigmoid()).mean()


def late_reward(scene: Scene) -> None:
    """From step 12 on there is a level in which everything counts ten times as much."""
    model: Any = scene.model
    model.reward = lambda actions, y: s_reward(actions, y) * (10 if scene.step >= 12 and scene.active else 1)


def masked(s: Scene, model: Any, out: Tensor, y: Tensor) -> Losses:
    """An action that is not allowed has a logit of -inf, in torch's own distribution."""
    logits, value = out.float().split([3, 1], 1)
    policy = torch.distributions.Categorical(logits=logits.masked_fill(F.one_hot((y + 1) % 3, 3).bool(), -INF))
    actions = policy.sample()
    better = s_reward(actions, y) - value[:, 0]
    gain = (policy.log_prob(actions) * better.detach()).mean()
    return {"policy": -gain, "value": better.square().mean(), "entropy": -0.01 * policy.entropy().mean()}


def weighted(s: Scene, model: Any, out: Any, y: Tensor) -> Losses:
    """min(s, 5) / s of the signal at each level."""
    made, noise, kept = out
    signal = kept / (1 - kept)
    return {"mse": ((made.float() - noise).square() * signal.clamp(max=5) / signal).mean()}


def reset(scene: Scene) -> None:
    """The state of a recurrent net goes on from batch to batch, and begins anew at each epoch."""
    scene.model.carried = True  # type: ignore[assignment]

    def zero(live: Live) -> None:
        live.model.get_buffer("state").zero_()

    for step in range(0, 24, 6):
        scene.at(step, zero)


def warmed(s: Scene, model: Any, out: Tensor, y: Tensor, terms: Losses) -> Losses:
    """Sums over pixels, and a divergence whose weight climbs anew every eight steps."""
    return {"picture": 192 * terms["picture"], "kl": 100 * (s.step % 8) / 8 * terms["kl"]}


def drawn_anew(scene: Scene) -> None:
    """Codes with a count that never is 0; those that nobody chose are drawn anew every six steps."""
    model: Any = scene.model
    model.book = Codebook(scene)
    model.book.get_buffer("counts").fill_(1.0)
    model.book.get_buffer("sums").copy_(model.book.get_buffer("codes"))
    usual = type(model).features
    model.features = lambda x: model.book(usual(model, x))

    def change(live: Live) -> None:
        g = torch.Generator().manual_seed(live.step)
        codes, counts, sums = (live.model.get_buffer(f"book.{n}") for n in ("codes", "counts", "sums"))
        unused = counts < 0.7
        new = torch.randn(32, 24, generator=g)
        codes[unused], counts[unused], sums[unused] = new[unused], 1.0, new[unused]

    for step in range(6, 24, 6):
        scene.at(step, change)


def gaps(image: Tensor, target: dict[str, Any]) -> tuple[Any, Any]:
    """A third of the rows are black."""
    image[:, 40:] = 0.0
    return image, target


EIGHTH_LOOP_DECOYS = tuple(
    Scenario(f"decoy-eighth-{name}", "", "own", fault, setup, decoy=True)
    for name, fault, setup in (
        ("filled-in", filled_in, Setup("adamw", model="table", way="see")),
        ("outliers", outliers, Setup("adam", model="table", way="see")),
        ("only-padding", only_padding, Setup("adamw", model="language", batch=1, way="see")),
        ("language-half", nothing, Setup("adamw", "fp16", model="language", way="see")),
        ("rivals", nothing, Setup("adam", model="rivals", way="pair")),
        ("hinge", hinge, Setup("adam", model="rivals", way="pair")),
        ("late-reward", late_reward, Setup("adamw", model="policy", way="see")),
        ("masked", instead(masked), Setup("adamw", norm="group", model="policy", way="guard")),
        ("weighted", instead(weighted), Setup("adamw", "bf16", model="denoise", way="see")),
        ("without-a-pair", nothing, Setup("adamw", model="likeness", batch=3, way="see")),
        ("reset", reset, Setup("adamw", model="series", way="attach")),
        ("warmed", own_terms(warmed), Setup("adamw", model="encode", way="see")),
        ("drawn-anew", drawn_anew, Setup("adamw", model="encode", way="guard")),
        ("gaps", every(gaps), Setup("adam", accumulate=4, model="series", way="see")),
    )
)
