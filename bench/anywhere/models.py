"""Ten small trainings that are no detectors: model, batches, loss. Each learns in sixty steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

BATCH = 16
Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Training:
    """``model`` from a seed, ``batch`` of a step from a generator, ``loss`` of both; ``lr`` for AdamW."""

    name: str
    model: Callable[[], nn.Module]
    batch: Callable[[torch.Generator], Batch]
    loss: Callable[[nn.Module, Batch], Tensor]
    lr: float = 3e-3


def _normal(*shape: int) -> Callable[[torch.Generator], Tensor]:
    return lambda g: torch.randn(BATCH, *shape, generator=g)


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))


def _labelled(*shape: int) -> Callable[[torch.Generator], Batch]:
    def batch(g: torch.Generator) -> Batch:
        x = torch.randn(BATCH, *shape, generator=g)
        return {"x": x, "y": (x.flatten(1)[:, :4]).argmax(1)}

    return batch


def _classify(model: nn.Module, b: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(b["x"]), b["y"])


class Patches(nn.Module):
    """A small ViT: patches of an 8 × 8 picture, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(16, 24), nn.Parameter(torch.zeros(1, 4, 24))
        layer = nn.TransformerEncoderLayer(24, 4, 48, dropout=0.0, batch_first=True)
        self.blocks, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(len(x), 4, 16)
        return self.head(self.blocks(self.embed(patches) + self.place).mean(1))


class Causal(nn.Module):
    """A GPT block whose mask is a buffer of -inf, as many are."""

    def __init__(self, vocabulary: int = 20, length: int = 10) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(vocabulary, 24), nn.Embedding(length, 24)
        self.register_buffer("mask", torch.full((length, length), float("-inf")).triu(1))
        self.block, self.head = nn.TransformerEncoderLayer(24, 4, 48, 0.0, batch_first=True), nn.Linear(24, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight
        return self.head(self.block(x, src_mask=self.mask))


class Recurrent(nn.Module):
    """An LSTM that reads a series and names its largest channel."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.LSTM(4, 24, batch_first=True), nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.read(x)[0][:, -1])


class Denoiser(nn.Module):
    """A U-Net of two levels that predicts the noise in a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(2, 12, 3, 2, 1), nn.Conv2d(12, 24, 3, 2, 1)
        self.norm, self.up = nn.GroupNorm(4, 24), nn.ConvTranspose2d(24, 12, 2, 2)
        self.out = nn.ConvTranspose2d(24, 1, 2, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        first = self.down(torch.cat([x, t[:, None, None, None].expand_as(x)], 1)).relu()
        deep = self.norm(self.deep(first)).relu()
        return self.out(torch.cat([self.up(deep).relu(), first], 1))


def _diffuse(model: nn.Module, b: Batch) -> Tensor:
    t, noise = b["t"], b["noise"]
    seen = (1 - t)[:, None, None, None] * b["x"] + t[:, None, None, None] * noise
    return nn.functional.mse_loss(model(seen, t), noise)


class Coder(nn.Module):
    """A VAE; its loss is a negative ELBO up to a constant, and may be below zero."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(12, 16), nn.Linear(8, 12)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, log = self.encode(x).chunk(2, 1)
        return self.decode(mean + (0.5 * log).exp()), mean, log


def _elbo(model: nn.Module, b: Batch) -> Tensor:
    out, mean, log = model(b["x"])
    divergence = -0.5 * (1 + log - mean.square() - log.exp()).sum(1).mean()
    return 6 * ((out - b["x"]).square().mean() - 1) + 0.1 * divergence


def _contrast(model: nn.Module, b: Batch) -> Tensor:
    one = nn.functional.normalize(model(b["x"]), dim=1)
    two = nn.functional.normalize(model(b["x"] + 0.1 * b["noise"]), dim=1)
    return nn.functional.cross_entropy(one @ two.T / 0.2, torch.arange(len(one)))


def _policy(model: nn.Module, b: Batch) -> Tensor:
    """REINFORCE: the loss is below zero as often as above."""
    log = model(b["x"]).log_softmax(1)
    return -(log.gather(1, b["action"][:, None])[:, 0] * b["reward"]).mean()


def _value(model: nn.Module, b: Batch) -> Tensor:
    """DQN-like: a Huber loss on a bootstrapped target."""
    q = model(b["x"]).gather(1, b["action"][:, None])[:, 0]
    with torch.no_grad():
        target = b["reward"] + 0.5 * model(b["next"]).amax(1)
    return nn.functional.smooth_l1_loss(q, target)


def _played(g: torch.Generator) -> Batch:
    x, action = torch.randn(BATCH, 12, generator=g), torch.randint(4, (BATCH,), generator=g)
    reward = (x[:, :4].argmax(1) == action).float() - 0.25
    return {"x": x, "next": torch.randn(BATCH, 12, generator=g), "action": action, "reward": reward}


def _convolutional() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.BatchNorm2d(16)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)),
    )


def _tokens(g: torch.Generator) -> Batch:
    start = torch.randint(20, (BATCH, 1), generator=g)
    return {"x": (start + torch.arange(11)) % 20}


def _next_word(model: nn.Module, b: Batch) -> Tensor:
    return nn.functional.cross_entropy(model(b["x"][:, :-1]).flatten(0, 1), b["x"][:, 1:].flatten())


TRAININGS: tuple[Training, ...] = (
    Training("mlp", _mlp, _labelled(12), _classify),
    Training("cnn_batchnorm", _convolutional, _labelled(1, 8, 8), _classify),
    Training("vit", Patches, _labelled(1, 8, 8), _classify),
    Training("gpt_block", Causal, _tokens, _next_word),
    Training("lstm", Recurrent, _labelled(6, 4), _classify),
    Training(
        "unet_diffusion",
        Denoiser,
        lambda g: (
            {"x": torch.randn(BATCH, 1, 8, 8, generator=g), "noise": torch.randn(BATCH, 1, 8, 8, generator=g)}
            | {"t": torch.rand(BATCH, generator=g)}
        ),
        _diffuse,
    ),
    Training("vae", Coder, lambda g: {"x": torch.randn(BATCH, 12, generator=g)}, _elbo),
    Training(
        "contrastive",
        lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 8)),
        lambda g: {"x": torch.randn(BATCH, 12, generator=g), "noise": torch.randn(BATCH, 12, generator=g)},
        _contrast,
    ),
    Training("reinforce", _mlp, _played, _policy),
    Training("dqn", _mlp, _played, _value),
)


def batches(training: Training, seed: int, steps: int) -> Iterator[Batch]:
    """The batches of a run: a pure function of the seed."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        yield training.batch(generator)
