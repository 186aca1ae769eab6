"""Numbers: survival, a mixture of densities, a flow, quantiles, many labels, experts, clouds of points."""

from __future__ import annotations

import math
from typing import Any

import torch
from anywhere.mainstream.tables import mlp
from anywhere.mainstream.task import Rows, Task
from torch import Tensor, nn
from torch.nn import functional as F

# --- survival


def patients(count: int) -> Rows:
    """float32 (6,) standardised, months until the event or the last visit, and whether it was the event."""
    x = torch.randn(count, 6)
    months = -torch.rand(count).log() * (2 - 1.6 * x[:, 0] + x[:, 1]).exp()
    last = 60 * torch.rand(count)
    return [(x[i], torch.minimum(months[i], last[i]), (months[i] < last[i]).float()) for i in range(count)]


def cox(model: nn.Module, batch: Any) -> Tensor:
    """The negative partial likelihood of the batch (Breslow): each event among all who were still there."""
    x, months, event = batch
    order = months.argsort(descending=True)
    risk, event = model(x)[order, 0], event[order]
    return -((risk - risk.logcumsumexp(0)) * event).sum() / event.sum().clamp(min=1)


# --- a mixture of densities


def branches(count: int) -> Rows:
    """x, and a y on one of two branches."""
    x, side = 2 * torch.rand(count, 1) - 1, torch.randint(0, 2, (count, 1)) * 2.0 - 1
    y = side * (0.5 + x.square()) + 0.1 * torch.randn(count, 1)
    return [(x[i], y[i]) for i in range(count)]


class Mixture(nn.Module):
    """Shares, means and logarithms of spreads of three Gaussians."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(1, 32), nn.Tanh()), nn.Linear(32, 9)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        shares, mean, spread = self.head(self.body(x)).chunk(3, 1)
        return shares, mean, spread


def likelihood(model: nn.Module, batch: Any) -> Tensor:
    """By logsumexp."""
    shares, mean, spread = model(batch[0])
    each = -0.5 * ((batch[1] - mean) / spread.exp()).square() - spread - 0.5 * math.log(2 * math.pi)
    return -(shares.log_softmax(1) + each).logsumexp(1).mean()


# --- a flow


def moons(count: int) -> Rows:
    """float32 (2,) on two half circles."""
    turn, which = math.pi * torch.rand(count), torch.randint(0, 2, (count,))
    x = torch.where(which == 0, turn.cos(), 1 - turn.cos())
    y = torch.where(which == 0, turn.sin(), 0.5 - turn.sin())
    return [(p,) for p in torch.stack([x, y], 1) + 0.05 * torch.randn(count, 2)]


class Coupling(nn.Module):
    """Half of the numbers, scaled and shifted by what a net makes of the other half."""

    def __init__(self, flip: bool) -> None:
        super().__init__()
        self.net, self.flip = nn.Sequential(nn.Linear(1, 24), nn.Tanh(), nn.Linear(24, 2)), flip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.flip(1).chunk(2, 1) if self.flip else x.chunk(2, 1)
        scale, shift = self.net(a).chunk(2, 1)
        scale = scale.tanh()
        y = torch.cat([a, b * scale.exp() + shift], 1)
        return (y.flip(1) if self.flip else y), scale[:, 0]


class Flow(nn.Module):
    """RealNVP of six couplings; gives its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.ModuleList(Coupling(bool(i % 2)) for i in range(6))

    def forward(self, x: Tensor) -> Tensor:
        grown = torch.zeros(len(x))
        for step in self.steps:
            x, log = step(x)
            grown = grown + log
        return (0.5 * x.square().sum(1) + math.log(2 * math.pi) - grown).mean()


def own_loss(model: nn.Module, batch: Any) -> Tensor:
    """The model's."""
    return model(batch[0])


# --- quantiles


def loads(count: int) -> Rows:
    """Four numbers of an hour, and the load of a grid, whose spread grows with it."""
    x = torch.randn(count, 4)
    y = x[:, :1] + 0.5 * x[:, 1:2] + (0.3 + 0.3 * x[:, 2:3].abs()) * torch.randn(count, 1)
    return [(x[i], y[i]) for i in range(count)]


def pinball(model: nn.Module, batch: Any) -> Tensor:
    """Of the 0.1, 0.5 and 0.9 quantile."""
    off, at = batch[1] - model(batch[0]), torch.tensor([0.1, 0.5, 0.9])
    return torch.maximum(at * off, (at - 1) * off).mean()


# --- many labels


def photos(count: int) -> Rows:
    """float32 (10,) features, and five labels of which most are no."""
    x, mix = torch.randn(count, 10), torch.randn(10, 5)
    return [(x[i], (x[i] @ mix > 2.5).float()) for i in range(count)]


def labels_net() -> nn.Module:
    """Linear, BatchNorm, ReLU, dropout, linear."""
    return nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 5))


def focal(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross-entropy with weights of the rare yes, less where it is sure already."""
    logits, y = model(batch[0]), batch[1]
    bce = F.binary_cross_entropy_with_logits(logits, y, pos_weight=torch.full((5,), 3.0), reduction="none")
    right = torch.where(y > 0.5, logits, -logits).sigmoid()
    return ((1 - right).square() * bce).mean()


# --- experts


class Experts(nn.Module):
    """A router sends each sample to two of four experts; gives logits and what the router was."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(4, 4, bias=False)
        self.experts = nn.ModuleList(mlp(4, 3, 16) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        gates = self.router(x).softmax(1)
        best, which = gates.topk(2, 1)
        best = best / best.sum(1, keepdim=True)
        out = torch.zeros(len(x), 3)
        for k, expert in enumerate(self.experts):
            row, place = (which == k).nonzero(as_tuple=True)
            out = out.index_add(0, row, (best[row, place, None] * expert(x[row])).float())
        return out, gates


def routed(model: nn.Module, batch: Any) -> dict[str, Tensor]:
    """Cross-entropy, and how evenly the experts are used."""
    out, gates = model(batch[0])
    used = F.one_hot(gates.argmax(1), 4).float().mean(0)
    return {"class": F.cross_entropy(out, batch[1]), "even": 0.04 * (used * gates.mean(0)).sum()}


def regions(count: int) -> Rows:
    """float32 (4,), and a class that is made otherwise in each of four regions."""
    x, mix = torch.randn(count, 4), torch.randn(4, 4, 3)
    region = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    return [(x[i], (x[i] @ mix[region[i]]).argmax()) for i in range(count)]


# --- clouds of points


def clouds(count: int) -> Rows:
    """float32 (n, 3), n of 8 to 20: a ball, a shell, or a line."""
    rows: Rows = []
    for _ in range(count):
        n, kind = int(torch.randint(8, 21, ())), int(torch.randint(3, ()))
        p = torch.randn(n, 3)
        unit = p / p.norm(dim=1, keepdim=True)
        p = (0.4 * p, unit, torch.randn(n, 1) * unit[:1])[kind]
        rows.append((p + 0.03 * torch.randn(n, 3), torch.tensor(kind)))
    return rows


def filled_up(items: list[Any]) -> Any:
    """(n, 20, 3) with zeros behind, how many there are, labels."""
    ids, points, labels = zip(*items, strict=True)
    sizes = torch.tensor([len(p) for p in points])
    full = torch.stack([F.pad(p, (0, 0, 0, 20 - len(p))) for p in points])
    return torch.tensor(ids), full, sizes, torch.stack(list(labels))


class PointNet(nn.Module):
    """Each point by itself, the largest and the mean of all that are there, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(3, 24), nn.ReLU(), nn.Linear(24, 24))
        self.norm, self.head = nn.BatchNorm1d(48), nn.Linear(48, 3)

    def forward(self, points: Tensor, sizes: Tensor) -> Tensor:
        gone = (torch.arange(points.shape[1]) >= sizes[:, None])[..., None]
        h = self.each(points)
        most = h.masked_fill(gone, -math.inf).amax(1)
        mean = h.masked_fill(gone, 0).sum(1) / sizes[:, None]
        return self.head(self.norm(torch.cat([most, mean], 1)))


def of_cloud(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(batch[0], batch[1]), batch[2])


NUMBERS = (
    Task("survival", patients, lambda: mlp(6, 1, 16), cox, torch.optim.Adadelta, {"lr": 1.0}),
    Task("mixture", branches, Mixture, likelihood, torch.optim.Adam, {"lr": 2e-2}, way="step", epochs=8),
    Task("flow", moons, Flow, own_loss, torch.optim.Adamax, {"lr": 2e-2}, way="inside"),
    Task("quantiles", loads, lambda: mlp(4, 3), pinball, torch.optim.ASGD, {"lr": 0.3}, "exponential"),
    Task("tags", photos, labels_net, focal, torch.optim.NAdam, {"lr": 1e-2}, clip=1.0, way="step"),
    Task("experts", regions, Experts, routed, torch.optim.Adam, {"lr": 1e-2, "amsgrad": True}, epochs=8),
    Task("points", clouds, PointNet, of_cloud, torch.optim.SGD, {"lr": 0.05, "momentum": 0.9}, "step",
         collate=filled_up),
)  # fmt: skip
