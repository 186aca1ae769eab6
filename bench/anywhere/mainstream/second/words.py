"""Words: adapters in a frozen transformer, translation, tags, a text read on and on, word vectors, a recommender."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream.pictures import Block
from anywhere.mainstream.series import LENGTH, texts
from anywhere.mainstream.series import WORDS as TEXT_WORDS
from anywhere.mainstream.task import Rows, Run, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

# --- adapters


class Adapted(nn.Module):
    """A frozen linear layer, and beside it a product of two thin ones (LoRA)."""

    def __init__(self, base: nn.Linear, rank: int = 4, alpha: float = 8.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, base.in_features) / rank)
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, rank))
        self.scale = alpha / rank

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)


class Adapters(nn.Module):
    """A frozen transformer of two blocks with adapters in its attention, and a new head; gives its loss."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(TEXT_WORDS, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.requires_grad_(False)
        for block in self.blocks:
            block.attn.qkv = Adapted(block.attn.qkv)  # pyright: ignore
            block.attn.out = Adapted(block.attn.out)  # pyright: ignore
        self.head = nn.Linear(width, 4)

    def forward(self, words: Tensor, sizes: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        x = self.words(words) + self.places.weight[: words.shape[1]]
        there = torch.arange(words.shape[1]) < sizes[:, None]
        for block in self.blocks:
            x = block(x, ~there[:, None, None])
        x = self.norm(x) * there[..., None]
        logits = self.head(x.sum(1) / sizes[:, None])
        out = {"logits": logits}
        return out if labels is None else {"loss": F.cross_entropy(logits.float(), labels), **out}


def adapted(model: nn.Module, batch: Any) -> Tensor:
    """The model's own loss."""
    return model(*batch)["loss"]


def trainable(model: nn.Module, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """AdamW of what is not frozen."""
    return [torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], **options)]


# --- translation: a row of digits backwards

BEGIN, DIGITS, LONGEST = 10, 12, 6


def digits(count: int) -> Rows:
    """int64 (6,) digits with 0 behind them, their number, and the same backwards with an end (11), padded with 0."""
    rows: Rows = []
    for _ in range(count):
        size = int(torch.randint(3, LONGEST + 1, ()))
        source = torch.randint(1, 10, (size,))
        wanted = torch.cat([source.flip(0), torch.tensor([11])])
        padded = F.pad(source, (0, LONGEST - size)), torch.tensor(size), F.pad(wanted, (0, LONGEST + 1 - len(wanted)))
        rows.append(padded)
    return rows


class Translator(nn.Module):
    """A GRU reads, another writes with attention over what was read."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source, self.wanted = nn.Embedding(DIGITS, width, padding_idx=0), nn.Embedding(DIGITS, width)
        self.encoder, self.decoder = (nn.GRU(width, width, batch_first=True) for _ in range(2))
        self.out = nn.Linear(2 * width, DIGITS)

    def forward(self, source: Tensor, sizes: Tensor, before: Tensor) -> Tensor:
        packed = pack_padded_sequence(self.source(source), sizes, batch_first=True, enforce_sorted=False)
        read, last = self.encoder(packed)
        read, _ = pad_packed_sequence(read, batch_first=True, total_length=source.shape[1])
        written, _ = self.decoder(self.wanted(before), last)
        scores = written @ read.transpose(1, 2) / 32**0.5
        shares = scores.masked_fill((source == 0)[:, None], float("-inf")).softmax(-1)
        return self.out(torch.cat([written, shares @ read], -1))


def taught(model: nn.Module, batch: Any) -> Tensor:
    """Teacher forcing; padding counts for nothing."""
    source, sizes, wanted = batch
    before = F.pad(wanted[:, :-1], (1, 0), value=BEGIN)
    return F.cross_entropy(model(source, sizes, before).flatten(0, 1), wanted.flatten(), ignore_index=0)


# --- tags

SPAN = 16


def tagged(count: int) -> Rows:
    """int64 (12,) words, and their tags: 1 begins a name (words from 16 on), 2 goes on, -100 behind the end."""
    rows: Rows = []
    for _ in range(count):
        size = int(torch.randint(5, 13, ()))
        words = torch.randint(1, 22, (12,))
        name = words >= SPAN
        before = F.pad(name[:-1], (1, 0))
        tags = name.long() + (name & before).long()
        tags[size:], words[size:] = -100, 0
        rows.append((words, tags))
    return rows


class Tagger(nn.Module):
    """A GRU in both directions and logits of each word."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(22, 16), nn.GRU(16, 16, batch_first=True, bidirectional=True)
        self.drop, self.head = nn.Dropout(0.1), nn.Linear(32, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.drop(self.gru(self.words(words))[0]))


def of_tags(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy of the words that have a tag."""
    return F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten(), ignore_index=-100)


# --- a text that is read on

STREAMS, CHARS = 16, 14


def streams(count: int) -> Rows:
    """int64 (9,) characters: piece k of stream b is sample 16 k + b; each stream counts on in steps of its own."""
    start, pace = torch.randint(CHARS, (STREAMS,)), torch.randint(1, 4, (STREAMS,))
    rows: Rows = []
    for i in range(count):
        k, b = divmod(i, STREAMS)
        rows.append(((start[b] + pace[b] * (8 * k + torch.arange(9))) % CHARS,))
    return rows


class Reader(nn.Module):
    """torch's word_language_model in small: its state is handed from batch to batch, and cut off from its graph."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder, self.rnn, self.decoder = (
            nn.Embedding(CHARS, width), nn.LSTM(width, width, batch_first=True), nn.Linear(width, CHARS))  # fmt: skip

    def forward(self, chars: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Any]:
        out, state = self.rnn(self.encoder(chars), state)
        self.left = tuple(s.detach() for s in state)
        return self.decoder(out), state


def with_state(run: Run, batch: Any) -> Any:
    """The piece, what follows it, and the state that the piece before left."""
    (chars,) = batch
    zeros = torch.zeros(1, len(chars), 32), torch.zeros(1, len(chars), 32)
    state = run.memory.get("state", zeros) if run.step % run.task.per_epoch else zeros
    return chars[:, :-1], chars[:, 1:], *state


def read_on(run: Run) -> None:
    """The state after the last batch is where the next begins."""
    run.memory["state"] = run.model.left


def next_char(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy."""
    if len(batch) == 1:
        batch = batch[0][:, :-1], batch[0][:, 1:]
    chars, wanted, *state = batch
    out, _ = model(chars, tuple(state) if state else None)
    return F.cross_entropy(out.flatten(0, 1), wanted.flatten())


# --- word vectors


def contexts(count: int) -> Rows:
    """A word of 30, a word near it (of the same ten), and five words drawn at random."""
    rows: Rows = []
    for _ in range(count):
        topic = int(torch.randint(3, ()))
        word, near = (10 * topic + torch.randint(10, ()) for _ in range(2))
        rows.append((word, near, torch.randint(30, (5,))))
    return rows


class SkipGram(nn.Module):
    """Two tables with sparse gradients; gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = (nn.Embedding(30, 8, sparse=True) for _ in range(2))
        nn.init.uniform_(self.inner.weight, -0.06, 0.06)
        nn.init.zeros_(self.outer.weight)

    def forward(self, word: Tensor, near: Tensor, others: Tensor) -> Tensor:
        v = self.inner(word)
        true = (self.outer(near) * v).sum(1)
        false = (self.outer(others) @ v[..., None])[..., 0]
        return -(F.logsigmoid(true) + F.logsigmoid(-false).sum(1)).mean()


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's."""
    return model(*batch)


# --- a recommender


def visits(count: int) -> Rows:
    """Films a visitor saw (int64, 2 to 6 of 12), three numbers, and whether the ad (of the same 40) was clicked."""
    kind = torch.randint(0, 2, (12,)) * 2.0 - 1
    rows: Rows = []
    for _ in range(count):
        seen, ad = torch.randint(12, (int(torch.randint(2, 7, ())),)), torch.randint(12, ())
        click = kind[seen].mean() * kind[ad] + 0.2 * torch.randn(()) > 0
        rows.append((seen, ad, torch.randn(3), click.float()))
    return rows


def bagged(items: list[Any]) -> Any:
    """All films in one row and where each visitor's begin, as EmbeddingBag takes them."""
    ids, seen, ad, numbers, click = zip(*items, strict=True)
    sizes = torch.tensor([len(s) for s in seen])
    tensors = torch.stack(list(ad)), torch.stack(list(numbers)), torch.stack(list(click))
    return torch.tensor(ids), torch.cat(seen), sizes.cumsum(0) - sizes, *tensors


class Clicks(nn.Module):
    """DLRM in small: bags of embeddings, their products, an MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.ad = nn.EmbeddingBag(12, 8, mode="mean", sparse=True), nn.Embedding(12, 8, sparse=True)
        self.top = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 1))
        for table in (self.seen, self.ad):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, seen: Tensor, first: Tensor, ad: Tensor, numbers: Tensor) -> Tensor:
        a, b = self.seen(seen, first), self.ad(ad)
        return self.top(torch.cat([a * b, a, numbers, (a * b).sum(1, keepdim=True)], 1))[:, 0]


def clicked(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross-entropy of logits."""
    return F.binary_cross_entropy_with_logits(model(*batch[:-1]), batch[-1])


def tables_and_rest(model: Any, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """SparseAdam for the tables, Adagrad for the MLP."""
    tables = [*model.seen.parameters(), *model.ad.parameters()]
    return [torch.optim.SparseAdam(tables, lr=options["lr"]),
            torch.optim.Adagrad(model.top.parameters(), lr=options["lr"])]  # fmt: skip


def sparse_adam(model: nn.Module, options: dict[str, Any]) -> list[torch.optim.Optimizer]:
    """SparseAdam takes a list."""
    return [torch.optim.SparseAdam(list(model.parameters()), **options)]


WORDS = (
    Task("lora", texts, Adapters, adapted, options={"lr": 2e-2, "weight_decay": 0.01}, schedule="warmup",
         precision="bf16", way="inside", several=trainable),
    Task("seq2seq", digits, Translator, taught, torch.optim.NAdam, {"lr": 1e-2}, clip=1.0, epochs=8),
    Task("tagger", tagged, Tagger, of_tags, torch.optim.RAdam, {"lr": 2e-2}, way="step"),
    Task("chars", streams, Reader, next_char, torch.optim.SGD, {"lr": 5.0}, "exponential", clip=0.25, epochs=8,
         prepare=with_state, after_step=read_on, shuffle=False, cuts=False),
    Task("skipgram", contexts, SkipGram, own_loss, options={"lr": 2e-2}, way="inside", several=sparse_adam),
    Task("bags", visits, Clicks, clicked, options={"lr": 5e-2}, several=tables_and_rest, collate=bagged, cuts=False,
         epochs=8),
)  # fmt: skip
