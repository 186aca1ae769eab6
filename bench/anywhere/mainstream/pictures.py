"""Pictures: a convolutional classifier, a ViT, a U-Net, pairs, two views, a diffusion model, a detector."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream.task import Rows, Task
from nanbench.tiny import sample, tiny_detector
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4


def pictures(count: int) -> Rows:
    """float32 (1, 12, 12) in 0..1, a bright quarter among noise, and which quarter it is."""
    rows: Rows = []
    for _ in range(count):
        label = int(torch.randint(CLASSES, ()))
        image = 0.4 * torch.rand(1, 12, 12)
        top, left = 6 * (label // 2), 6 * (label % 2)
        image[:, top : top + 6, left : left + 6] += 0.5 * torch.rand(())
        rows.append((image, torch.tensor(label)))
    return rows


def convolutional() -> nn.Module:
    """Two blocks with BatchNorm, as every first tutorial has them."""
    block = lambda i, o: (nn.Conv2d(i, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2))  # noqa: E731
    return nn.Sequential(*block(1, 8), *block(8, 16), nn.Flatten(), nn.Dropout(0.1), nn.Linear(144, CLASSES))


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    """Of the logits."""
    return F.cross_entropy(model(batch[0]), batch[1])


class Patches(nn.Module):
    """A ViT of nine patches and two blocks written by hand."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 4, 4)
        self.token, self.place = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(0.02 * torch.randn(1, 10, width))
        self.blocks = nn.ModuleList(Block(width) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class Attention(nn.Module):
    """Softmax attention by hand; a mask is True where nothing may be looked at."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, c = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        if mask is not None:
            scores = scores.masked_fill(mask, float("-inf"))
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))


class Block(nn.Module):
    """Norm first, attention, and an MLP four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln1, self.ln2, self.attn = nn.LayerNorm(width), nn.LayerNorm(width), Attention(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.ln1(x), mask)
        return x + self.mlp(self.ln2(x))


def smoothed(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy with smoothed labels."""
    return F.cross_entropy(model(batch[0]), batch[1], label_smoothing=0.1)


class UNet(nn.Module):
    """Two levels, BatchNorm, a skip connection; logits of one class."""

    def __init__(self) -> None:
        super().__init__()
        conv = lambda i, o: nn.Sequential(nn.Conv2d(i, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU())  # noqa: E731
        self.down1, self.down2 = conv(1, 8), conv(8, 16)
        self.up, self.last = nn.ConvTranspose2d(16, 8, 2, 2), conv(16, 8)
        self.out = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        deep = self.down2(F.max_pool2d(first, 2))
        return self.out(self.last(torch.cat([self.up(deep), first], 1)))


def masks(count: int) -> Rows:
    """float32 (1, 12, 12) and the mask of its bright rectangle, float32 of 0 and 1."""
    rows: Rows = []
    for _ in range(count):
        y, x, h, w = (int(v) for v in torch.stack([*torch.randint(6, (2,)), *torch.randint(3, 6, (2,))]))
        mask = torch.zeros(1, 12, 12)
        mask[:, y : y + h, x : x + w] = 1.0
        rows.append((0.5 * torch.rand(1, 12, 12) + 0.5 * mask, mask))
    return rows


def dice(shares: Tensor, wanted: Tensor, smooth: float = 1.0) -> Tensor:
    """One less twice the overlap over both areas, of each picture."""
    both = (shares * wanted).sum((1, 2, 3))
    return 1 - (2 * both + smooth) / (shares.sum((1, 2, 3)) + wanted.sum((1, 2, 3)) + smooth)


def dice_and_bce(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Both, as segmentation kernels have them."""
    logits = model(batch[0]).float()
    bce = F.binary_cross_entropy_with_logits(logits, batch[1])
    return {"bce": bce, "dice": dice(logits.sigmoid(), batch[1]).mean()}


def pairs(count: int) -> Rows:
    """Two pictures, and 1.0 where both are of one class."""
    rows: Rows = []
    for (one, a), (two, b) in zip(pictures(count), pictures(count), strict=True):
        rows.append((one, two, (a == b).float()))
    return rows


def embedding() -> nn.Module:
    """Numbers of a picture."""
    return nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU(), nn.Linear(32, 8))


def contrastive(model: nn.Module, batch: Any) -> Tensor:
    """Hadsell's: like ones near, others a margin away."""
    one, two, same = batch
    away = F.pairwise_distance(model(one), model(two))
    return (same * away.square() + (1 - same) * (1 - away).clamp(min=0).square()).mean()


def two_views(model: nn.Module, batch: Any) -> Tensor:
    """SimCLR's: another view of the same picture among all others."""
    x = batch[0]
    z = torch.cat([model(x + 0.1 * torch.randn_like(x)), model(x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1)))])
    z = F.normalize(z, dim=1)
    likeness = (z @ z.T / 0.2).fill_diagonal_(float("-inf"))
    return F.cross_entropy(likeness, (torch.arange(len(z)) + len(x)) % len(z))


class Denoiser(nn.Module):
    """Predicts the noise in a picture at a time in 0..1."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.first, self.norm = nn.Conv2d(1, 16, 3, 1, 1), nn.GroupNorm(4, 16)
        self.middle, self.out = nn.Conv2d(16, 16, 3, 1, 1), nn.Conv2d(16, 1, 3, 1, 1)
        self.register_buffer("kept", torch.cumprod(1 - torch.linspace(1e-4, 0.15, 50), 0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        waves = t[:, None] * torch.arange(1, 5) * math.pi / 50
        h = self.first(x) + self.time(torch.cat([waves.sin(), waves.cos()], 1))[:, :, None, None]
        return self.out(F.silu(self.middle(F.silu(self.norm(h)))))


def noise_prediction(model: nn.Module, batch: Any) -> Tensor:
    """DDPM's simple loss: a time and a noise drawn for each picture."""
    x = 2 * batch[0] - 1
    t, noise = torch.randint(0, 50, (len(x),)), torch.randn_like(x)
    kept = model.get_buffer("kept")[t][:, None, None, None]
    return F.mse_loss(model(kept.sqrt() * x + (1 - kept).sqrt() * noise, t), noise)


def detections(count: int) -> Rows:
    """Pictures with boxes, as torchvision's detectors take them."""
    rows: Rows = []
    for i in range(count):
        image, target = sample(i)
        rows.append((image, {k: target[k] for k in ("boxes", "labels")}))
    return rows


def lists(items: list[Any]) -> Any:
    """The detection references' collate function, the numbers of the samples kept apart."""
    ids, images, targets = zip(*items, strict=True)
    return torch.tensor(ids), list(images), list(targets)


def detected(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """The detector's own losses."""
    return model(batch[0], batch[1])


def detector_score(model: nn.Module, batch: Any) -> Tensor:
    """Its losses; a detector has them in training alone."""
    return torch.stack([*detected(model.train(), batch).values()]).sum()


ADAM, SGD = torch.optim.Adam, torch.optim.SGD
PICTURES = (
    Task("cnn", pictures, convolutional, cross_entropy, SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4},
         "cosine"),
    Task("vit", pictures, Patches, smoothed, options={"lr": 3e-3, "weight_decay": 0.05}, schedule="onecycle",
         clip=1.0, precision="fp16"),
    Task("unet", masks, UNet, dice_and_bce, ADAM, precision="bf16", ema=True),
    Task("siamese", pairs, embedding, contrastive, ADAM, way="step"),
    Task("simclr", pictures, embedding, two_views, options={"lr": 3e-3}, schedule="cosine"),
    Task("diffusion", pictures, Denoiser, noise_prediction, options={"lr": 4e-3}, clip=1.0, ema=True),
    Task("detector", detections, lambda: tiny_detector("faster", 0), detected, SGD,
         {"lr": 0.03, "momentum": 0.9, "weight_decay": 5e-4}, "warmup", batch=8, epochs=1, collate=lists,
         score=detector_score),
)  # fmt: skip
