"""Other tasks than detection on the bench's pictures: segmentation, classification, numbers, words, a VAE, a critic.

Each takes tensors, as their loops have them: ``collate`` makes them of the bench's pairs. A pair's target may bring its
own ``map``, ``label``, ``numbers`` or ``words`` in place of what its boxes say.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanbench.tiny_parts import CLASSES

TASKS = ("segment", "classify", "regress", "text", "encode", "critic")
WORDS = 5
"""Places of a row of words; 0 is padding."""


class Task(nn.Module):
    """Three stages and something behind them; `terms` makes the losses of an output and a target."""

    def __init__(self, stem: Any, outputs: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*stem.body.values())
        self.head = nn.Linear(24, outputs)

    def features(self, x: Tensor) -> Tensor:
        """float32 (N, 24) of pictures (N, 3, 64, 64)."""
        return self.body((x - 0.45) / 0.25).mean((2, 3))

    def output(self, x: Tensor) -> Tensor:
        """What the head makes of the pictures."""
        return self.head(self.features(x))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        out = self.output(x)
        return out if y is None else self.terms(out, y)

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        """The losses."""
        raise NotImplementedError

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        """The target of one pair."""
        raise NotImplementedError

    def given(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        """The input of one pair."""
        return image

    def collate(self, pairs: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Pairs of the bench as the two tensors of a batch."""
        return torch.stack([self.given(*p) for p in pairs]), torch.stack([self.wanted(*p) for p in pairs])


def first(target: dict[str, Any], key: str) -> Tensor:
    """An entry of the first object."""
    return target[key][0]


class Segmenter(Task):
    """A class for each pixel; 255 counts for nothing."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 1)
        self.head = nn.Sequential(nn.Conv2d(24, 16, 1), nn.ReLU(), nn.Conv2d(16, CLASSES, 1))

    def output(self, x: Tensor) -> Tensor:
        return F.interpolate(self.head(self.body((x - 0.45) / 0.25)), size=x.shape[-2:], mode="bilinear")

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(out.float(), y, ignore_index=255)}

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        if "map" in target:
            return target["map"]
        return (target["masks"].long() * target["labels"][:, None, None]).amax(0)


class Classifier(Task):
    """The first object's class, from 0."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, CLASSES - 1)

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(out.float(), y)}

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return target["label"] if "label" in target else first(target, "labels") - 1


class Regressor(Task):
    """The first object's width and height, of the picture's."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 2)

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"mse": F.mse_loss(out.float(), y)}

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        if "numbers" in target:
            return target["numbers"]
        box = first(target, "boxes")
        return (box[2:] - box[:2]) / image.shape[-1]


class Reader(Task):
    """The largest of a row of words, by attention over those that are there."""

    lowest = -1e4

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 1)
        self.body = nn.Embedding(CLASSES + 1, 24)
        self.keys, self.head = nn.Linear(24, 1), nn.Linear(24, CLASSES + 1)

    def output(self, x: Tensor) -> Tensor:
        words = self.body(x)
        scores = self.keys(words).squeeze(-1).masked_fill(x == 0, self.lowest)
        return self.head((scores.softmax(1)[..., None] * words).sum(1))

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        return {"ce": F.cross_entropy(out.float(), y)}

    def given(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        words = target.get("words", target["labels"])
        return F.pad(words, (0, WORDS - len(words)))

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return target["labels"].max()


class Encoder(Task):
    """A variational autoencoder of 8 numbers; its target is the picture."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 16)
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 3 * 64))

    def terms(self, out: Tensor, y: Tensor) -> dict[str, Tensor]:
        mean, spread = out.float().chunk(2, 1)
        made = self.decoder(mean + torch.randn_like(mean) * (0.5 * spread).exp())
        small = F.adaptive_avg_pool2d(y, 8).flatten(1)
        return {"picture": F.mse_loss(made.float(), small), "kl": 0.01 * self.divergence(mean, spread)}

    def divergence(self, mean: Tensor, spread: Tensor) -> Tensor:
        """From a normal distribution, of the mean and the logarithm of the variance."""
        return 0.5 * (mean.square() + spread.exp() - spread - 1).mean()

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return image


class Critic(Task):
    """Tells pictures from noise, with a penalty on the length of its gradient; black pixels are padding."""

    def __init__(self, stem: Any) -> None:
        super().__init__(stem, 1)

    def score(self, x: Tensor) -> Tensor:
        """float (N,)."""
        return self.head(self.body(x * (x.detach() != 0)).mean((2, 3)))[:, 0]

    def length(self, gradient: Tensor) -> Tensor:
        """float (N,) of a gradient (N, ...)."""
        return (gradient.flatten(1).square().sum(1) + 1e-12).sqrt()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        if y is None:
            return self.score(x)
        with torch.enable_grad():
            real = x.detach().requires_grad_(True)
            good = self.score(real)
            slope = torch.autograd.grad(good.sum(), real, create_graph=True)[0]
            bad = self.score(torch.rand_like(x))
            return {
                "critic": F.softplus(-good.float()).mean() + F.softplus(bad.float()).mean(),
                "penalty": 0.1 * (self.length(slope.float()) - 1).square().mean(),
            }

    def wanted(self, image: Tensor, target: dict[str, Any]) -> Tensor:
        return torch.tensor(1.0)


KINDS: dict[str, type[Task]] = dict(
    zip(TASKS, (Segmenter, Classifier, Regressor, Reader, Encoder, Critic), strict=True)
)  # pyright: ignore[reportAssignmentType]
