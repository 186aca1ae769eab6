"""More tasks of people's own: tables, series, texts, noise, likeness, actions, two networks against each other."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.tiny_parts import CLASSES
from nanbench.tiny_tasks import Regressor, Task, first

PLACES, VOCABULARY = 16, 10
"""Words of a text, and different ones; 0 is padding."""
LEVELS = 50
"""Steps of the noise."""


class Table(Regressor):
    """Width and height of the first object from a row of six numbers."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem)
        self.body = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU())

    def features(self, x: Tensor) -> Tensor:
        return self.body(x)

    def given(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        if "row" in target:
            return target["row"]
        return torch.cat([image.mean((1, 2)), first(target, "boxes")[:2] / 64, first(target, "labels")[None] / 3])


class Series(Regressor):
    """Width and height of the first object, by a recurrent net along the picture's rows.

    ``carried``: the state of the last batch is where the next one begins.
    """

    carried = False

    def __init__(self, stem: Any) -> None:
        super().__init__(stem)
        self.body = nn.GRU(48, 24, batch_first=True)
        self.register_buffer("state", torch.zeros(1, 1, 24))

    def features(self, x: Tensor) -> Tensor:
        rows = F.adaptive_avg_pool2d(x, 16).permute(0, 2, 1, 3).flatten(2)
        state = self.get_buffer("state").expand(1, len(x), 24).contiguous() if self.carried else None
        out, last = self.body((rows - 0.25) / 0.2, state)
        if self.carried and self.training:
            self.state = last.detach().mean(1, keepdim=True)
        return out[:, -1]


class Attention(nn.Module):
    """Two heads that look back; ``softmax`` may be somebody's own."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.softmax: nn.Module = nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (p.unflatten(-1, (2, -1)).transpose(1, 2) for p in self.qkv(x).chunk(3, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        weights = self.softmax(scores.masked_fill(later, -math.inf))
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer's layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.mlp(self.second(x))


class Language(Task):
    """Says each next word of a text that a picture's rows make; padding counts for nothing."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, VOCABULARY)
        self.words, self.places = nn.Embedding(VOCABULARY, 24), nn.Embedding(PLACES, 24)
        self.body = nn.Sequential(Block(24), Block(24), nn.LayerNorm(24))

    def output(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.words(x) + self.places.weight[: x.shape[1]]))

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(out.float().flatten(0, 1), y.flatten(), ignore_index=-100)}

    def text(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        """int64 (PLACES + 1,): what the rows show, and padding behind it."""
        if "words" in target:
            return target["words"]
        rows = F.adaptive_avg_pool2d(image.mean(0, keepdim=True), (PLACES + 1, 1)).flatten()
        text = 1 + (rows.nan_to_num() * 20).long().clamp(0, VOCABULARY - 2)
        text[6 + int(target["image_id"]) % 12 :] = 0
        return text

    def given(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return self.text(image, target)[:-1]

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        following = self.text(image, target)[1:]
        return target["next"] if "next" in target else following.masked_fill(following == 0, -100)


class Denoiser(Task):
    """Says the noise in a small picture; ``kept`` is how much of the picture is left at each level."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 1)
        self.times = nn.Embedding(LEVELS, 16)
        self.body = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU())
        self.head = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 3, 3, padding=1))
        self.register_buffer("kept", torch.linspace(1, 0, LEVELS + 2)[1:-1].square())

    def output(self, x: Tensor) -> Any:
        clean = 2 * F.adaptive_avg_pool2d(x, 16) - 1
        t, noise = torch.randint(0, LEVELS, (len(x),)), torch.randn_like(clean)
        kept = self.get_buffer("kept")[t][:, None, None, None]
        given = kept.sqrt() * clean + (1 - kept).sqrt() * noise
        return self.head(self.body(given) + self.times(t)[:, :, None, None]), noise, kept

    def terms(self, out: Any, y: Tensor) -> dict[str, Tensor]:
        return {"mse": F.mse_loss(out[0].float(), out[1])}

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return torch.tensor(1.0)


class Likeness(Task):
    """Pictures of one class near each other, by the logarithm of a softmax over the batch."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 8)

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        unit = F.normalize(out.float(), dim=1)
        itself = torch.eye(len(y)).bool()
        scores = (unit @ unit.T / 0.2).float().masked_fill(itself, -1e9).log_softmax(1)
        same = (y[:, None] == y[None]) & ~itself
        return {"likeness": -(scores * same).sum() / same.sum().clamp(min=1)}

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return first(target, "labels") - 1


class Policy(Task):
    """Three actions and a value; the action that is the first object's class is rewarded."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, CLASSES)

    def reward(self, actions: Tensor, y: Tensor) -> Tensor:
        """float (N,)."""
        return (actions == y).float()

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        logits, value = out.float().split([CLASSES - 1, 1], 1)
        policy = torch.distributions.Categorical(logits=logits)
        actions = policy.sample()
        better = self.reward(actions, y) - value[:, 0]
        gain = (policy.log_prob(actions) * better.detach()).mean()
        return {"policy": -gain, "value": better.square().mean(), "entropy": -0.01 * policy.entropy().mean()}

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return first(target, "labels") - 1


class Rivals(Task):
    """Makes small pictures, and tells them from real ones: two networks, each with an optimizer of its own."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 1)
        del self.body, self.head
        self.generator = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 192))
        self.critic = nn.Sequential(nn.Linear(192, 48), nn.LeakyReLU(0.2), nn.Linear(48, 24), nn.LeakyReLU(0.2))
        self.critic.append(nn.Linear(24, 1))

    def critic_loss(self, critic: nn.Module, x: Tensor) -> Tensor:
        """Of real pictures (N, 3, 64, 64)."""
        real = F.adaptive_avg_pool2d(x, 8).flatten(1)
        made = self.generator(torch.randn(len(x), 8)).sigmoid().detach()
        return F.softplus(-critic(real)).mean() + F.softplus(critic(made)).mean()

    def generator_loss(self, generator: nn.Module, x: Tensor) -> Tensor:
        """Against the critic as it is."""
        return F.softplus(-self.critic(generator(torch.randn(len(x), 8)).sigmoid())).mean()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return {"critic": self.critic_loss(self.critic, x), "generator": self.generator_loss(self.generator, x)}

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return torch.tensor(1.0)


MORE_KINDS: dict[str, type[Task]] = {
    "table": Table,
    "series": Series,
    "language": Language,
    "denoise": Denoiser,
    "likeness": Likeness,
    "policy": Policy,
    "rivals": Rivals,
}
