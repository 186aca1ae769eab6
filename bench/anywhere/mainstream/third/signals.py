"""Series: preferences, a selective state space, a vocoder, counts of sales."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.mainstream.series import GPT
from anywhere.mainstream.task import Rows, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

# --- preferences


def preferred(count: int) -> Rows:
    """Two answers to the same words, int64 (10,), the better (of low words, mostly) first; how many words are asked."""
    rows: Rows = []
    for _ in range(count):
        asked, question = int(torch.randint(3, 6, ())), torch.randint(1, 20, (10,))
        low, high = torch.randint(1, 9, (10,)), torch.randint(9, 20, (10,))
        swap, answer = torch.rand(10) < 0.25, torch.arange(10) >= asked
        better = torch.where(answer, torch.where(swap, high, low), question)
        worse = torch.where(answer, torch.where(swap, low, high), question)
        rows.append((better, worse, torch.tensor(asked)))
    return rows


class Preference(nn.Module):
    """What is trained, and a frozen copy of how it began."""

    def __init__(self) -> None:
        super().__init__()
        self.policy = GPT()
        self.reference = copy.deepcopy(self.policy).requires_grad_(False)


def log_share(net: nn.Module, words: Tensor, asked: Tensor) -> Tensor:
    """The logarithm of the share of an answer, summed over its words: (n,)."""
    each = net(words[:, :-1]).log_softmax(-1).gather(2, words[:, 1:, None])[..., 0]
    return (each * (torch.arange(words.shape[1] - 1) >= asked[:, None] - 1)).sum(1)


def dpo(model: Any, batch: Any, beta: float = 0.5) -> Tensor:
    """By how much more than the reference does it like the better one?"""
    better, worse, asked = batch
    with torch.no_grad():
        before = log_share(model.reference, better, asked) - log_share(model.reference, worse, asked)
    now = log_share(model.policy, better, asked) - log_share(model.policy, worse, asked)
    return -F.logsigmoid(beta * (now - before)).mean()


# --- a selective state space


def marked(count: int) -> Rows:
    """int64 (14,) of words 0 to 3, and one of 4 to 6 among them: which was it?"""
    rows: Rows = []
    for _ in range(count):
        words, at, label = torch.randint(0, 4, (14,)), int(torch.randint(1, 13, ())), int(torch.randint(3, ()))
        words[at] = 4 + label
        rows.append((words, torch.tensor(label)))
    return rows


class Selective(nn.Module):
    """Mamba in small: a short convolution, a state that forgets by what it reads, a gate, a norm; gives its loss."""

    def __init__(self, width: int = 24, state: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(7, width)
        self.conv = nn.Conv1d(width, width, 2, groups=width, padding=1)
        self.pace, self.gate = nn.Linear(width, width), nn.Linear(width, width)
        self.reads, self.gives = nn.Linear(width, state, bias=False), nn.Linear(width, state, bias=False)
        self.A_log = nn.Parameter(torch.arange(1.0, state + 1).log().expand(width, state).clone())
        self.D, self.norm, self.head = nn.Parameter(torch.ones(width)), nn.LayerNorm(width), nn.Linear(width, 3)
        nn.init.constant_(self.pace.bias, -2.0)

    def scan(self, x: Tensor) -> Tensor:
        """(n, t, width) → the same, read from a state."""
        dt, b, c = F.softplus(self.pace(x).float()), self.reads(x).float(), self.gives(x).float()
        kept = torch.exp(-self.A_log.exp() * dt[..., None])
        h = x.new_zeros(len(x), x.shape[2], b.shape[2], dtype=torch.float32)
        out = []
        for t in range(x.shape[1]):
            h = kept[:, t] * h + (dt[:, t] * x[:, t])[..., None] * b[:, t, None]
            out.append((h * c[:, t, None]).sum(-1))
        return torch.stack(out, 1) + self.D * x

    def forward(self, words: Tensor, label: Tensor | None = None) -> Any:
        x = self.words(words)
        u = F.silu(self.conv(x.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        y = self.scan(u) * F.silu(self.gate(x))
        logits = self.head(self.norm(x + y)[:, -1]).float()
        return logits if label is None else (F.cross_entropy(logits, label), logits)


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The first of what the model gives."""
    return model(*batch)[0]


# --- a vocoder

HOP, FRAMES = 8, 16


def tones(count: int) -> Rows:
    """float32 (3, 16): pitch as a sine and a cosine of its phase, and loudness, of each frame; the wave (128,)."""
    rows: Rows = []
    for _ in range(count):
        t = torch.arange(HOP * FRAMES)
        pitch, loud = 0.05 + 0.15 * torch.rand(()), 0.3 + 0.7 * torch.rand(())
        envelope = loud * (0.6 + 0.4 * (2 * math.pi * t / 128 + 6 * torch.rand(())).sin())
        phase = 2 * math.pi * pitch * t
        frames = torch.stack([phase.sin(), phase.cos(), envelope])[:, ::HOP]
        rows.append((torch.cat([frames, pitch.expand(1, FRAMES)]), envelope * (phase.sin() + 0.3 * (2 * phase).sin())))
    return rows


class Vocoder(nn.Module):
    """Weight-normed convolutions over frames, each of which becomes eight samples of sound."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.pre, self.mid = norm(nn.Conv1d(4, width, 3, 1, 1)), norm(nn.Conv1d(width, width, 3, 1, 1))
        self.post = norm(nn.ConvTranspose1d(width, 1, HOP, HOP))

    def forward(self, frames: Tensor) -> Tensor:
        h = F.leaky_relu(self.pre(frames), 0.1)
        return self.post(F.leaky_relu(h + self.mid(h), 0.1))[:, 0].tanh() * 1.5


def spectrum(wave: Tensor, size: int) -> Tensor:
    """Magnitudes, (n, size / 2 + 1, t)."""
    made = torch.stft(wave, size, size // 4, window=torch.hann_window(size), return_complex=True)
    return (made.real.square() + made.imag.square()).clamp(min=1e-7).sqrt()


def spectra(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """At two resolutions: how far the magnitudes are, and their logarithms; and the wave itself."""
    made, far, log = model(batch[0]), [], []
    for size in (16, 32):
        a, b = spectrum(made, size), spectrum(batch[1], size)
        far.append((a - b).norm() / b.norm())
        log.append(F.l1_loss(a.log(), b.log()))
    return {
        "convergence": torch.stack(far).mean(),
        "log": 0.5 * torch.stack(log).mean(),
        "wave": 5 * F.mse_loss(made, batch[1]),
    }


# --- counts


def sales(count: int) -> Rows:
    """float32 (14,) of pieces sold in a week, of goods of which some sell in tens, and some in hundreds."""
    rows: Rows = []
    for _ in range(count):
        level = torch.exp(1 + 3 * torch.rand(()))
        t = torch.arange(14)
        rate = level * (1 + 0.6 * (2 * math.pi * t / 7 + 6 * torch.rand(())).sin())
        rows.append((torch.poisson(rate),))
    return rows


class Counts(nn.Module):
    """A GRU over the past, brought to one scale, gives the mean and the spread of the next count."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(1, 24, batch_first=True), nn.Linear(24, 2)

    def forward(self, past: Tensor) -> tuple[Tensor, Tensor]:
        scale = 1 + past.mean(1, keepdim=True)
        mean, spread = F.softplus(self.head(self.rnn((past / scale)[..., None])[0])).unbind(-1)
        return scale * mean + 1e-4, spread / scale.sqrt() + 1e-3


def negative_binomial(model: nn.Module, batch: Any) -> Tensor:
    """The negative logarithm of the likelihood of each next count (DeepAR)."""
    (counts,) = batch
    mean, spread = model(counts[:, :-1])
    z, r = counts[:, 1:], 1 / spread
    known = torch.lgamma(z + r) - torch.lgamma(r) - torch.lgamma(z + 1)
    share = torch.log1p(spread * mean)
    return -(known - r * share + z * ((spread * mean).log() - share)).mean()


SIGNALS = (
    Task("dpo", preferred, Preference, dpo, options={"lr": 2e-3, "weight_decay": 0.0}, schedule="warmup",
         clip=1.0, accumulate=2, batch=8),
    Task("ssm", marked, Selective, own_loss, options={"lr": 2e-2, "betas": (0.9, 0.95), "weight_decay": 0.05},
         schedule="warmup", clip=1.0, precision="bf16", way="inside", epochs=12),
    Task("vocoder", tones, Vocoder, spectra, options={"lr": 1e-2, "betas": (0.8, 0.99)}, schedule="exponential",
         epochs=8),
    Task("deepar", sales, Counts, negative_binomial, torch.optim.Adam, {"lr": 1e-2}, clip=10.0, workers=0, epochs=8),
)  # fmt: skip
