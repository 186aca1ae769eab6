"""Pictures: sharpness-aware steps, towers of pictures and captions, boxes in a grid, scans, weights of few bits."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from anywhere.mainstream.pictures import cross_entropy, pictures
from anywhere.mainstream.task import Rows, Task
from torch import Tensor, nn
from torch.nn import functional as F

# --- sharpness-aware minimisation


class SAM(torch.optim.Optimizer):
    """Up the slope by ``rho``, the slope there, back, and a step of SGD along it; takes a closure."""

    eps = 1e-12

    def __init__(self, params: Any, rho: float = 0.05, **options: Any) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base = torch.optim.SGD(self.param_groups, **options)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        evaluate = torch.enable_grad()(closure)
        loss = evaluate()
        held = [(p, g["rho"]) for g in self.param_groups for p in g["params"] if p.grad is not None]
        length = torch.stack([p.grad.norm() for p, _ in held]).norm()
        climbs = [(p, rho * p.grad / (length + self.eps)) for p, rho in held]
        for p, climb in climbs:
            p.add_(climb)
        evaluate()
        for p, climb in climbs:
            p.sub_(climb)
        self.base.step()
        return loss

    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        self.base.param_groups = self.param_groups


class Residual(nn.Module):
    """Two convolutions with GroupNorm, and what came in added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(width, width, 3, 1, 1, bias=False) for _ in range(2))
        self.norm1, self.norm2 = nn.GroupNorm(4, width), nn.GroupNorm(4, width)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))).relu()


def residual_net() -> nn.Module:
    """A stem, two blocks, the mean over places, a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, 2, 1), nn.GroupNorm(4, 12), nn.ReLU(), Residual(12), Residual(12),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 4))  # fmt: skip


# --- pictures and captions


def captioned(count: int) -> Rows:
    """A picture (1, 12, 12) of a bright quarter, and int64 (3,): which, how bright in four steps, a filler word."""
    rows: Rows = []
    for _ in range(count):
        place, level = int(torch.randint(4, ())), int(torch.randint(4, ()))
        image = 0.2 * torch.rand(1, 12, 12)
        top, left = 6 * (place // 2), 6 * (place % 2)
        image[:, top : top + 6, left : left + 6] += 0.2 * (level + 1)
        rows.append((image, torch.tensor([place, 4 + level, 8 + int(torch.randint(4, ()))])))
    return rows


class Towers(nn.Module):
    """A net of pictures, a net of words, and a temperature that is learned as a logarithm."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.visual = nn.Sequential(
            nn.Conv2d(1, 16, 6, 6), nn.GELU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, width))  # fmt: skip
        self.words = nn.Embedding(12, 16)
        self.textual = nn.Sequential(nn.Flatten(), nn.Linear(48, 32), nn.GELU(), nn.Linear(32, width))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen, read = self.visual(image), self.textual(self.words(words))
        return F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1), self.logit_scale.exp()


def matched(model: nn.Module, batch: Any) -> Tensor:
    """Which caption belongs to which picture, both ways; the temperature is held below 100."""
    seen, read, scale = model(*batch)
    logits, right = scale.clamp(max=100) * seen @ read.T, torch.arange(len(seen))
    return 0.5 * (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right))


# --- boxes in a grid

CELL, GRID = 4.0, 3


def framed(count: int) -> Rows:
    """float32 (1, 12, 12) with a bright rectangle, and its box: middle and size in pixels, (4,)."""
    rows: Rows = []
    y, x = torch.meshgrid(torch.arange(12) + 0.5, torch.arange(12) + 0.5, indexing="ij")
    for _ in range(count):
        size = 3 + 4 * torch.rand(2)
        middle = size / 2 + (12 - size) * torch.rand(2)
        within = ((x - middle[0]).abs() < size[0] / 2) & ((y - middle[1]).abs() < size[1] / 2)
        rows.append((0.2 * torch.rand(1, 12, 12) + 0.7 * within, torch.cat([middle, size])))
    return rows


def one_stage() -> nn.Module:
    """Of each of nine cells: is the middle of a thing here, where, and how large."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.SiLU(), nn.Conv2d(16, 24, 4, 4), nn.BatchNorm2d(24),
        nn.SiLU(), nn.Conv2d(24, 24, 3, 1, 1), nn.SiLU(), nn.Conv2d(24, 5, 1))  # fmt: skip


def decoded(out: Tensor) -> Tensor:
    """(n, 5, 3, 3) → boxes (n, 9, 4): the middle within the cell, the size by a square of a sigmoid."""
    y, x = torch.meshgrid(torch.arange(3.0), torch.arange(3.0), indexing="ij")
    corner = CELL * torch.stack([x, y]).flatten(1)
    middle = corner + CELL * out[:, 1:3].flatten(2).sigmoid()
    size = 4 * CELL * out[:, 3:].flatten(2).sigmoid().square()
    return torch.cat([middle, size], 1).transpose(1, 2)


def ciou(made: Tensor, true: Tensor, eps: float = 1e-7) -> Tensor:
    """Complete IoU of (n, 4) boxes: overlap, distance of the middles, likeness of the forms."""
    low = torch.maximum(made[:, :2] - made[:, 2:] / 2, true[:, :2] - true[:, 2:] / 2)
    high = torch.minimum(made[:, :2] + made[:, 2:] / 2, true[:, :2] + true[:, 2:] / 2)
    both = (high - low).clamp(min=0).prod(1)
    iou = both / (made[:, 2:].prod(1) + true[:, 2:].prod(1) - both + eps)
    least = torch.minimum(made[:, :2] - made[:, 2:] / 2, true[:, :2] - true[:, 2:] / 2)
    most = torch.maximum(made[:, :2] + made[:, 2:] / 2, true[:, :2] + true[:, 2:] / 2)
    apart = (made[:, :2] - true[:, :2]).square().sum(1) / ((most - least).square().sum(1) + eps)
    form = torch.atan(true[:, 2] / (true[:, 3] + eps)) - torch.atan(made[:, 2] / (made[:, 3] + eps))
    v = 4 / math.pi**2 * form.square()
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return iou - apart - alpha * v


def cell_of(box: Tensor) -> Tensor:
    """Which of nine cells a box's middle is in."""
    at = (box[:, :2] / CELL).long().clamp(0, GRID - 1)
    return at[:, 1] * GRID + at[:, 0]


def of_boxes(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Objectness of all cells, and CIoU of those that have a thing."""
    out, box = model(batch[0]).float(), batch[1]
    cell = cell_of(box)
    made = decoded(out)[torch.arange(len(box)), cell]
    there = F.one_hot(cell, 9).float()
    obj = F.binary_cross_entropy_with_logits(out[:, 0].flatten(1), there)
    return {"box": 2 * (1 - ciou(made, box)).mean(), "obj": obj}


# --- scans


def scans(count: int) -> Rows:
    """complex64 (12, 12) of k-space of which two of three rows were not measured, which were, and the picture."""
    rows: Rows = []
    y, x = torch.meshgrid(torch.linspace(-1, 1, 12), torch.linspace(-1, 1, 12), indexing="ij")
    for _ in range(count):
        centre, size = 0.4 * torch.randn(2), 0.3 + 0.4 * torch.rand(2)
        body = torch.exp(-((x - centre[0]) / size[0]).square() - ((y - centre[1]) / size[1]).square())
        phase = torch.exp(1j * (0.5 * torch.rand(()) * x))
        kept = ((torch.arange(12) - 6).abs() < 2) | (torch.rand(12) < 0.25)
        k = torch.fft.fftshift(torch.fft.fft2((body * phase).to(torch.complex64), norm="ortho"))
        rows.append((k * kept[:, None], kept[:, None].float().expand(12, 12).clone(), body))
    return rows


class Unrolled(nn.Module):
    """Two times: a small net cleans the picture, and what was measured is put back in by a learned share."""

    def __init__(self) -> None:
        super().__init__()
        net = lambda: nn.Sequential(nn.Conv2d(2, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 2, 3, 1, 1))  # noqa: E731
        self.clean, self.share = nn.ModuleList(net() for _ in range(2)), nn.Parameter(torch.zeros(2))

    def forward(self, k: Tensor, kept: Tensor) -> Tensor:
        now = k
        for net, share in zip(self.clean, self.share.sigmoid(), strict=True):
            image = torch.fft.ifft2(torch.fft.ifftshift(now, dim=(-2, -1)), norm="ortho")
            image = image + torch.view_as_complex(
                net(torch.view_as_real(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous())  # fmt: skip
            now = torch.fft.fftshift(torch.fft.fft2(image, norm="ortho"), dim=(-2, -1))
            now = now + share * kept * (k - now)
        return torch.fft.ifft2(torch.fft.ifftshift(now, dim=(-2, -1)), norm="ortho")


def of_scan(model: nn.Module, batch: Any) -> Tensor:
    """L1 of magnitudes, times ten."""
    made = torch.view_as_real(model(batch[0], batch[1]))
    return 10 * F.l1_loss((made.square().sum(-1) + 1e-8).sqrt(), batch[2])


# --- few bits


class FewBits(nn.Module):
    """A linear layer whose weights and inputs are rounded: the weights' step is learned (LSQ), that of the inputs
    comes from a moving range, which begins at (inf, -inf) as torch's observers do."""

    low: Tensor
    high: Tensor

    def __init__(self, inputs: int, outputs: int, bits: int = 4) -> None:
        super().__init__()
        self.inner, self.most = nn.Linear(inputs, outputs), 2 ** (bits - 1) - 1
        self.pace = nn.Parameter(2 * self.inner.weight.detach().abs().mean() / self.most**0.5)
        self.register_buffer("low", torch.tensor(math.inf))
        self.register_buffer("high", torch.tensor(-math.inf))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                low, high = x.min().clamp(max=0), x.max().clamp(min=0)
                first = self.high < self.low
                self.low.copy_(low if first else self.low.lerp(low, 0.05))
                self.high.copy_(high if first else self.high.lerp(high, 0.05))
        step = ((self.high - self.low) / 255).clamp(min=1e-8)
        zero = (-self.low / step).round()
        held = (x / step + zero).clamp(0, 255)
        x = (held + (held.round() - held).detach() - zero) * step
        w = (self.inner.weight / self.pace).clamp(-self.most - 1, self.most)
        return F.linear(x, (w + (w.round() - w).detach()) * self.pace, self.inner.bias)


def rounded_net() -> nn.Module:
    """Two layers of few bits."""
    return nn.Sequential(nn.Flatten(), FewBits(144, 24), nn.ReLU(), FewBits(24, 4))


SCENES = (
    Task("sam", pictures, residual_net, cross_entropy, SAM,
         {"lr": 0.08, "momentum": 0.9, "weight_decay": 5e-4, "rho": 0.05}, "cosine", closure=True),
    Task("clip", captioned, Towers, matched, options={"lr": 1e-2, "betas": (0.9, 0.98), "eps": 1e-6,
         "weight_decay": 0.1}, schedule="warmup", precision="bf16", epochs=8),
    Task("yolo", framed, one_stage, of_boxes, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True},
         "warmup", clip=10.0, precision="fp16", ema=True, epochs=8),
    Task("mri", scans, Unrolled, of_scan, torch.optim.Adam, {"lr": 5e-3}, "step", way="step"),
    Task("qat", pictures, rounded_net, cross_entropy, torch.optim.Adam, {"lr": 5e-3}),
)  # fmt: skip
