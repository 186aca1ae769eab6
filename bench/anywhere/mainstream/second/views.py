"""Pictures: a masked autoencoder, keypoints, depth, super-resolution, faces, two views with a slow copy, codes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from anywhere.mainstream.pictures import Block, pictures
from anywhere.mainstream.task import Rows, Run, Task
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

SIZE = 12


def waves(count: int, size: int = SIZE) -> Tensor:
    """float32 (count, 1, size, size) in 0..1: stripes of all directions."""
    turn, phase = math.pi * torch.rand(count, 1, 1, 1), 6 * torch.rand(count, 1, 1, 1)
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return 0.5 + 0.4 * (0.8 * (x * turn.cos() + y * turn.sin()) * SIZE / size + phase).sin()


# --- a masked autoencoder


class Masked(nn.Module):
    """Nine patches, of which six are hidden and guessed from the other three."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(16, width), nn.Parameter(0.02 * torch.randn(9, width))
        self.hidden = nn.Parameter(torch.zeros(1, 1, width))
        self.encoder, self.decoder = Block(width), Block(width)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 16)

    def forward(self, patches: Tensor, order: Tensor) -> Tensor:
        n, d = len(patches), self.place.shape[1]
        kept = order[:, :3, None]
        x = self.embed(patches) + self.place
        x = self.encoder(x.gather(1, kept.expand(-1, -1, d)))
        filled = self.hidden.expand(n, 9, d).to(x.dtype).scatter(1, kept.expand(-1, -1, d), x)
        return self.head(self.norm(self.decoder(filled + self.place)))


def patched(x: Tensor) -> Tensor:
    """(n, 1, 12, 12) → (n, 9, 16)."""
    return F.unfold(x, 4, stride=4).transpose(1, 2)


def hidden_patches(model: nn.Module, batch: Any) -> Tensor:
    """Squared error of the hidden patches, each brought to its own mean and deviation (norm_pix_loss)."""
    patches = patched(batch[0])
    order = torch.rand(len(patches), 9).argsort(1)
    made = model(patches, order).float()
    wanted = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6).sqrt()
    each = (made - wanted).square().mean(-1)
    return each.gather(1, order[:, 3:]).mean()


# --- keypoints


def points_in(count: int) -> Rows:
    """float32 (1, 16, 16) with two blobs, bright and dark, their places (2, 2) in pixels, whether each is seen."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    rows: Rows = []
    for _ in range(count):
        places, seen = 2 + 12 * torch.rand(2, 2), (torch.rand(2) < 0.8).float()
        blobs = [torch.exp(-((x - p[0]).square() + (y - p[1]).square()) / 4) for p in places]
        image = 0.5 + 0.05 * torch.randn(16, 16) + 0.5 * seen[0] * blobs[0] - 0.5 * seen[1] * blobs[1]
        rows.append((image[None], places, seen))
    return rows


def heatmaps() -> nn.Module:
    """Convolutions with BatchNorm, and a map for each of two points."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 5, 1, 2), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 5, 1, 2), nn.ReLU(),
        nn.Conv2d(12, 2, 1))  # fmt: skip


def target_maps(places: Tensor, spread: float = 1.5) -> Tensor:
    """A Gaussian at each point."""
    y, x = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    away = (x - places[..., 0, None, None]).square() + (y - places[..., 1, None, None]).square()
    return torch.exp(-away / (2 * spread**2))


def of_maps(model: nn.Module, batch: Any) -> Tensor:
    """Mean squared error of the maps of points that are seen."""
    image, places, seen = batch
    each = (model(image) - target_maps(places)).square().mean((2, 3))
    return 20 * (each * seen).sum() / seen.sum().clamp(min=1)


# --- depth


def depths(count: int) -> Rows:
    """float32 (1, 12, 12), darker where it is far, and metres (1, 12, 12); 0 where the sensor saw nothing."""
    rows: Rows = []
    for near in waves(count):
        metres = 1 + 9 * (1 - near).square()
        image = 1 / metres.sqrt() + 0.03 * torch.randn(1, SIZE, SIZE)
        rows.append((image, torch.where(torch.rand(1, SIZE, SIZE) < 0.1, 0.0, metres)))
    return rows


def depth_net() -> nn.Module:
    """The logarithm of each pixel's depth."""
    return nn.Sequential(nn.Conv2d(1, 12, 3, 1, 1), nn.GELU(), nn.Conv2d(12, 12, 3, 1, 1), nn.GELU(),
                         nn.Conv2d(12, 1, 3, 1, 1))  # fmt: skip


def silog(model: nn.Module, batch: Any) -> Tensor:
    """Eigen's scale-invariant error of logarithms, of pixels that have a depth."""
    image, metres = batch
    off = (model(image).float() - metres.clamp(min=1e-3).log())[metres > 0]
    return 10 * (off.var() + 0.15 * off.mean().square() + 1e-6).sqrt()


# --- super-resolution


class Sharper(nn.Module):
    """Twice the size; its middle is recomputed in the backward pass. Keeps the frozen net that judges."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 16, 3, 1, 1), nn.Conv2d(16, 4, 3, 1, 1)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1), nn.PReLU(), nn.Conv2d(16, 16, 3, 1, 1))
        self.judge = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1)).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.first(x))
        h = h + checkpoint(self.body, h, use_reentrant=False)  # pyright: ignore
        return F.pixel_shuffle(self.last(h), 2)


def small_and_large(count: int) -> Rows:
    """(1, 6, 6) and (1, 12, 12) of the same stripes."""
    return [(F.avg_pool2d(x, 2), x) for x in waves(count)]


def sharp(model: Any, batch: Any) -> dict[str, Tensor]:
    """L1, and L1 of what a frozen net sees."""
    made = model(batch[0])
    return {"l1": F.l1_loss(made, batch[1]), "seen": 0.1 * F.l1_loss(model.judge(made), model.judge(batch[1]))}


# --- faces


class Faces(nn.Module):
    """Embeddings and one direction for each of four persons."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.BatchNorm1d(32), nn.PReLU(), nn.Linear(32, 8))
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(self.net(x)), F.normalize(self.weight))


def arcface(model: nn.Module, batch: Any) -> Tensor:
    """An angle of 0.3 is added to the right person's."""
    cosine = model(batch[0]).clamp(-1 + 1e-6, 1 - 1e-6)
    right = F.one_hot(batch[1], 4).bool()
    return F.cross_entropy(12 * torch.where(right, (cosine.acos() + 0.3).cos(), cosine), batch[1])


# --- BYOL


class Byol(nn.Module):
    """An online net with a predictor, and a slow copy that no gradient reaches."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 8))
        self.predict = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 8))
        self.slow = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, one: Tensor, two: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            wanted = self.slow(two)
        return self.predict(self.online(one)), wanted


def like(model: nn.Module, batch: Any) -> Tensor:
    """Two less twice the cosine, both ways."""
    x = batch[0]
    one, two = x + 0.1 * torch.randn_like(x), x * (0.8 + 0.4 * torch.rand(len(x), 1, 1, 1))
    return 2 - sum(F.cosine_similarity(*model(a, b)).mean() for a, b in ((one, two), (two, one)))


def follow(run: Run) -> None:
    """The slow net moves by a twentieth towards the online one."""
    model: Any = run.model
    with torch.no_grad():
        for slow, fast in zip(model.slow.parameters(), model.online.parameters(), strict=True):
            slow.lerp_(fast, 0.05)


# --- codes


class Codes(nn.Module):
    """A VQ-VAE: each picture is three of sixteen codes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(144, 48), nn.ReLU(), nn.Linear(48, 12))
        self.codes = nn.Embedding(16, 4)
        self.decoder = nn.Sequential(nn.Linear(12, 48), nn.ReLU(), nn.Linear(48, 144))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x).view(-1, 4)
        nearest = self.codes(torch.cdist(z, self.codes.weight).argmin(1))
        straight = z + (nearest - z).detach()
        return self.decoder(straight.view(len(x), 12)).view_as(x), z, nearest


def coded(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """What is made of the codes, the codes' distance, and the encoder's commitment."""
    made, z, nearest = model(batch[0])
    codes, commit = F.mse_loss(nearest, z.detach()), F.mse_loss(z, nearest.detach())
    return {"made": 10 * F.mse_loss(made, batch[0]), "codes": codes, "commit": 0.25 * commit}


def striped(count: int) -> Rows:
    """One picture each."""
    return [(x,) for x in waves(count)]


VIEWS = (
    Task("mae", striped, Masked, hidden_patches, options={"lr": 6e-3, "betas": (0.9, 0.95)}, schedule="cosine",
         precision="bf16", accumulate=2, batch=8),
    Task("keypoints", points_in, heatmaps, of_maps, torch.optim.Adam, {"lr": 1e-2}, "step"),
    Task("depth", depths, depth_net, silog, options={"lr": 1e-2}, schedule="onecycle", precision="fp16", clip=5.0),
    Task("superres", small_and_large, Sharper, sharp, torch.optim.Adam, {"lr": 5e-3}, ema=True),
    Task("arcface", pictures, Faces, arcface, torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True,
         "weight_decay": 5e-4}, "warmup", clip=5.0),
    Task("byol", pictures, Byol, like, torch.optim.SGD, {"lr": 0.2, "momentum": 0.9}, "cosine", after_step=follow),
    Task("vqvae", striped, Codes, coded, torch.optim.Adam, {"lr": 5e-3}, way="step"),
)  # fmt: skip
