"""Words and series: a small GPT, a classifier of texts, a forecast, speech with CTC, a pair of teacher and student."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream.pictures import ADAM, CLASSES, Block, convolutional, pictures
from anywhere.mainstream.task import Rows, Task
from torch import Tensor, nn
from torch.nn import functional as F

WORDS, LENGTH = 20, 12
"""Of the texts; word 0 is padding."""


def sentences(count: int) -> Rows:
    """int64 (LENGTH + 1,): counts on, and errs now and then."""
    rows: Rows = []
    for _ in range(count):
        start = int(torch.randint(1, WORDS, ()))
        words = 1 + (start + torch.arange(LENGTH + 1)) % (WORDS - 1)
        rows.append((torch.where(torch.rand(LENGTH + 1) < 0.05, torch.randint(1, WORDS, (LENGTH + 1,)), words),))
    return rows


class GPT(nn.Module):
    """nanoGPT in small: it gives its loss where targets are given."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        self.h = nn.ModuleList(Block(width) for _ in range(2))
        self.ln_f, self.lm_head = nn.LayerNorm(width), nn.Linear(width, WORDS, bias=False)
        self.lm_head.weight = self.wte.weight
        nn.init.normal_(self.wte.weight, std=0.1)

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        n = ids.shape[1]
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        x = self.wte(ids) + self.wpe.weight[:n]
        for block in self.h:
            x = block(x, mask)
        logits = self.lm_head(self.ln_f(x))
        if targets is None:
            return logits
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-1)


def next_word(model: nn.Module, batch: Any) -> Tensor:
    """The model's own loss."""
    return model(batch[0][:, :-1], batch[0][:, 1:])[1]


def texts(count: int) -> Rows:
    """int64 (LENGTH,) with padding behind its words, its length, and which of four words is the most frequent."""
    rows: Rows = []
    for _ in range(count):
        size, label = int(torch.randint(4, LENGTH + 1, ())), int(torch.randint(CLASSES, ()))
        words = torch.where(torch.rand(size) < 0.6, label + 1, torch.randint(5, WORDS, (size,)))
        rows.append((F.pad(words, (0, LENGTH - size)), torch.tensor(size), torch.tensor(label)))
    return rows


class Texts(nn.Module):
    """Embedding, GRU over packed words, attention over the words that are there, logits."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.gru = nn.Embedding(WORDS, 16, padding_idx=0), nn.GRU(16, 16, batch_first=True)
        self.weigh, self.head = nn.Linear(16, 1), nn.Linear(16, CLASSES)

    def forward(self, words: Tensor, sizes: Tensor) -> Tensor:
        h, _ = self.gru(self.words(words))
        there = torch.arange(words.shape[1]) < sizes[:, None]
        shares = self.weigh(h)[..., 0].masked_fill(~there, float("-inf")).softmax(1)
        return self.head((shares[..., None] * h).sum(1))


def of_text(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0], batch[1]), batch[2])


def windows(count: int) -> Rows:
    """float32 (16, 2) of two noisy waves, and the next value of the first."""
    rows: Rows = []
    for _ in range(count):
        t = torch.arange(17) * (0.3 + 0.2 * torch.rand(())) + 6 * torch.rand(())
        wave = torch.stack([t.sin(), (2 * t).cos()], 1) + 0.05 * torch.randn(17, 2)
        rows.append((wave[:-1], wave[-1, :1]))
    return rows


class Forecast(nn.Module):
    """An LSTM and a linear layer on its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.fc = nn.LSTM(2, 24, batch_first=True), nn.Linear(24, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.lstm(x)[0][:, -1])


def squares(model: nn.Module, batch: Any) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(batch[0]), batch[1])


def speech(count: int) -> Rows:
    """float32 (20, 6) frames, int64 (4,) letters from 1, the numbers of frames and letters."""
    rows: Rows = []
    for _ in range(count):
        size = int(torch.randint(2, 5, ()))
        letters = torch.randint(1, 6, (size,))
        frames = 0.2 * torch.randn(20, 6)
        for k, letter in enumerate(letters):
            frames[4 * k + 1 : 4 * k + 4, letter] += 1.5
        counts = torch.tensor(20), torch.tensor(size)
        rows.append((frames, F.pad(letters, (0, 4 - size), value=1), *counts))
    return rows


class Speech(nn.Module):
    """A convolution over time and logits of each frame."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv1d(6, 24, 3, 1, 1), nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.conv(x.transpose(1, 2)).relu().transpose(1, 2))


def ctc(model: nn.Module, batch: Any) -> Tensor:
    """Connectionist temporal classification; 0 is the blank."""
    frames, letters, times, sizes = batch
    return F.ctc_loss(model(frames).log_softmax(-1).transpose(0, 1), letters, times, sizes)


class Student(nn.Module):
    """A small classifier beside its frozen teacher."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, CLASSES))
        self.teacher = convolutional().eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Student:
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted = self.teacher(x)
        return self.net(x), wanted


def distilled(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Hinton's: the teacher's shares at a temperature of 4, and the labels."""
    out, wanted = model(batch[0])
    soft = F.kl_div((out / 4).log_softmax(1), (wanted / 4).softmax(1), reduction="batchmean")
    return {"soft": 16 * 0.5 * soft, "hard": 0.5 * F.cross_entropy(out, batch[1])}


SERIES = (
    Task("gpt", sentences, GPT, next_word, options={"lr": 8e-3, "betas": (0.9, 0.95), "weight_decay": 0.1},
         schedule="warmup", clip=1.0, accumulate=2, batch=8, way="inside"),
    Task("texts", texts, Texts, of_text, torch.optim.RMSprop, {"lr": 3e-3}),
    Task("forecast", windows, Forecast, squares, ADAM, {"lr": 5e-3}, "step", clip=1.0, workers=1),
    Task("ctc", speech, Speech, ctc, ADAM, {"lr": 5e-3}),
    Task("distill", pictures, Student, distilled, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True},
         way="step"),
)  # fmt: skip
