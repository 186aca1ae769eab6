"""Tables, sound, tags, documents: columns as tokens, raw waves, a chain of tags, a ranking, a stack under Muon."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream.tables import mlp
from anywhere.mainstream.task import Rows, Task
from torch import Tensor, nn
from torch.nn import functional as F

# --- columns as tokens


def accounts(count: int) -> Rows:
    """float32 (4,) numbers, (3,) categories of five, and one of three classes."""
    num, cats = torch.randn(count, 4), torch.randint(5, (count, 3))
    level = num[:, 0] + (cats[:, 0] > 2) * 1.5 + num[:, 1] * (cats[:, 1] == 1)
    y = torch.bucketize(level, torch.tensor([0.2, 1.3]))
    return [(num[i], cats[i], y[i]) for i in range(count)]


class Columns(nn.Module):
    """FT-Transformer: each column is a token, one more reads them all."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.scale, self.shift = (nn.Parameter(0.5 * torch.randn(4, width)) for _ in range(2))
        self.cats = nn.ModuleList(nn.Embedding(5, width) for _ in range(3))
        self.reader = nn.Parameter(torch.zeros(width))
        self.block = nn.TransformerEncoderLayer(width, 2, 32, 0.1, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 3)

    def tokens(self, num: Tensor, cats: Tensor) -> Tensor:
        """float32 (n, 8, width)."""
        rest = torch.stack([table(cats[:, i]) for i, table in enumerate(self.cats)], 1)
        numbers = num[..., None] * self.scale + self.shift
        return torch.cat([self.reader.expand(len(num), 1, -1), numbers, rest], 1)

    def forward(self, num: Tensor, cats: Tensor) -> Tensor:
        return self.head(self.block(self.tokens(num, cats))[:, 0])


def of_class(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of all fields but the last."""
    return F.cross_entropy(model(*batch[:-1]).float(), batch[-1])


# --- raw waves


def words(count: int) -> Rows:
    """float32 (1, 64) of a tone that is low or high and rises or falls, and which of the four."""
    t, rows = torch.linspace(0, 1, 64), []
    for _ in range(count):
        kind = int(torch.randint(4, ()))
        start, turn = (4.0, 9.0)[kind // 2], (5.0, -2.5)[kind % 2]
        wave = (2 * math.pi * (start * t + 0.5 * turn * t**2) + 6 * torch.rand(())).sin()
        rows.append(((0.3 * wave + 0.1 * torch.randn(64))[None], torch.tensor(kind)))
    return rows


def listener() -> nn.Module:
    """Strided and dilated convolutions over time, under GroupNorm."""
    return nn.Sequential(
        nn.Conv1d(1, 16, 9, 2), nn.GroupNorm(4, 16), nn.ReLU(), nn.Conv1d(16, 16, 5, 2), nn.GroupNorm(4, 16),
        nn.ReLU(), nn.Conv1d(16, 16, 3, dilation=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(),
        nn.Linear(16, 4))  # fmt: skip


# --- a chain of tags


def chains(count: int) -> Rows:
    """Eight words of ten, and a tag for each; tag 2 never follows on tag 1."""
    moves = torch.tensor([[0.2, 0.6, 0.1, 0.1], [0.4, 0.2, 0.0, 0.4], [0.5, 0.2, 0.2, 0.1], [0.1, 0.1, 0.6, 0.2]])
    rows: Rows = []
    for _ in range(count):
        tags = [int(torch.randint(4, ()))]
        while len(tags) < 8:
            tags.append(int(torch.multinomial(moves[tags[-1]], 1)))
        tag = torch.tensor(tags)
        rows.append((torch.where(torch.rand(8) < 0.6, 2 * tag + torch.randint(2, (8,)), torch.randint(10, (8,))), tag))
    return rows


class Chain(nn.Module):
    """A conditional random field on a convolution over words."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.near = nn.Embedding(10, 12), nn.Conv1d(12, 16, 3, padding=1)
        self.emit, self.moves = nn.Linear(16, 4), nn.Parameter(torch.zeros(4, 4))

    def forward(self, words: Tensor) -> Tensor:
        h = self.near(self.words(words).transpose(1, 2)).relu().transpose(1, 2)
        return self.emit(h)


def path_score(emitted: Tensor, moves: Tensor, tags: Tensor) -> Tensor:
    """What the true tags score, (n,)."""
    own = emitted.gather(2, tags[..., None])[..., 0].sum(1)
    return own + moves[tags[:, :-1], tags[:, 1:]].sum(1)


def all_paths(emitted: Tensor, moves: Tensor) -> Tensor:
    """The logarithm of the sum over all paths, (n,)."""
    state = emitted[:, 0]
    for t in range(1, emitted.shape[1]):
        state = (state[:, :, None] + moves).logsumexp(1) + emitted[:, t]
    return state.logsumexp(1)


def of_chain(model: Any, batch: Any) -> Tensor:
    """The negative logarithm of the true path's share."""
    emitted = model(batch[0])
    return (all_paths(emitted, model.moves) - path_score(emitted, model.moves, batch[1])).mean()


# --- a ranking


def queries(count: int) -> Rows:
    """float32 (8, 5) of documents, and grades 0 to 3."""
    x = torch.randn(count, 8, 5)
    level = x[..., 0] + x[..., 1].relu() - 0.5 * x[..., 2] + 0.3 * torch.randn(count, 8)
    grade = torch.bucketize(level, torch.tensor([0.3, 1.0, 2.0])).float()
    return [(x[i], grade[i]) for i in range(count)]


def ranker() -> nn.Module:
    """A document's score."""
    return mlp(5, 1)


def listwise(model: nn.Module, batch: Any) -> Tensor:
    """ListNet: the shares of grades against those of scores."""
    return -(batch[1].softmax(1) * model(batch[0])[..., 0].log_softmax(1)).sum(1).mean()


# --- a stack under Muon


def runs_of(count: int) -> Rows:
    """Eight numbers below eight, and at each place the largest so far."""
    x = torch.randint(8, (count, 8))
    return [(x[i], x[i].cummax(0).values) for i in range(count)]


class Stack(nn.Module):
    """Two blocks with a causal mask by hand."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(8, width), nn.Parameter(0.1 * torch.randn(8, width))
        self.query, self.value = (nn.ModuleList(nn.Linear(width, k * width) for _ in range(2)) for k in (2, 1))
        self.up, self.down = (
            nn.ModuleList(nn.Linear(i, o) for _ in range(2)) for i, o in ((width, 32), (32, width)))  # fmt: skip
        self.norms, self.head = nn.ModuleList(nn.LayerNorm(width) for _ in range(4)), nn.Linear(width, 8)
        self.register_buffer("hidden", torch.ones(8, 8).triu(1).bool())

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places
        for i in range(2):
            z = self.norms[2 * i](h)
            q, k = self.query[i](z).chunk(2, -1)
            seen = (q @ k.transpose(1, 2) / 4).masked_fill(self.get_buffer("hidden"), -math.inf).softmax(-1)
            h = h + seen @ self.value[i](z)
            h = h + self.down[i](F.gelu(self.up[i](self.norms[2 * i + 1](h))))
        return self.head(h)


def at_each(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy at each place."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())


def muon_and_adam(model: nn.Module, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """Muon for matrices within the blocks, AdamW for the rest."""
    blocks = ("query", "value", "up", "down")
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and n.split(".")[0] in blocks]
    rest = [p for p in model.parameters() if not any(p is q for q in inner)]
    return [torch.optim.Muon(inner, **options), torch.optim.AdamW(rest, lr=options["lr"] / 2)]


FORMS = (
    Task("columns", accounts, Columns, of_class, options={"lr": 5e-3, "weight_decay": 0.02}, schedule="warmup",
         precision="bf16", epochs=8),
    Task("keywords", words, listener, of_class, torch.optim.SGD, {"lr": 0.15, "momentum": 0.9, "nesterov": True},
         "onecycle", accumulate=2, batch=8, epochs=8),
    Task("crf", chains, Chain, of_chain, torch.optim.RMSprop, {"lr": 5e-3, "momentum": 0.5, "centered": True},
         "cosine"),
    Task("ranks", queries, ranker, listwise, torch.optim.Adafactor, {"lr": 5e-2}, accumulate=2, batch=8, way="step"),
    Task("muon", runs_of, Stack, at_each, options={"lr": 2e-2, "weight_decay": 0.01}, several=muon_and_adam, epochs=8),
)  # fmt: skip
