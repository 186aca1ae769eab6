"""Numbers: regression, yes or no, two tasks at once, a VAE, graphs, recommendations."""

from __future__ import annotations

from typing import Any

import torch
from anywhere.mainstream.pictures import ADAM, pictures
from anywhere.mainstream.task import Rows, Task
from torch import Tensor, nn
from torch.nn import functional as F


def houses(count: int) -> Rows:
    """float32 (6,) as a file has them (an income in tens of thousands, an age, rooms …), and a price in 100,000."""
    income, age = 2e4 + 8e4 * torch.rand(count), 50 * torch.rand(count)
    rest = torch.stack([1 + 7 * torch.rand(count), 3000 * torch.rand(count), *torch.randn(2, count)], 1)
    price = 0.3 + income / 4e4 - 0.01 * age + 0.05 * rest[:, 0] + 0.1 * torch.randn(count)
    x = torch.cat([income[:, None], age[:, None], rest], 1)
    return [(x[i], price[i : i + 1]) for i in range(count)]


def mlp(inputs: int, outputs: int, width: int = 32) -> nn.Sequential:
    """Two hidden layers."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


def normed() -> nn.Module:
    """The columns are brought to one scale by a BatchNorm before the first layer."""
    return nn.Sequential(nn.BatchNorm1d(6), mlp(6, 1))


def squares(model: nn.Module, batch: Any) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(batch[0]), batch[1])


def customers(count: int) -> Rows:
    """float32 (8,) standardised, and 1.0 for one in four."""
    x = torch.randn(count, 8)
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.3 * torch.randn(count) > 0.8).float()
    return [(x[i], y[i : i + 1]) for i in range(count)]


def yes_or_no(model: nn.Module, batch: Any) -> Tensor:
    """Binary cross-entropy of logits, the rare class weighed."""
    return F.binary_cross_entropy_with_logits(model(batch[0]), batch[1], pos_weight=torch.tensor(3.0))


class Two(nn.Module):
    """One trunk, a class and a number; how much each counts is learned (Kendall)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(144, 32), nn.ReLU())
        self.classes, self.number = nn.Linear(32, 4), nn.Linear(32, 1)
        self.log_vars = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.classes(h), self.number(h)


def both(count: int) -> Rows:
    """A picture, its class, and how bright it is."""
    return [(x, y, 10 * x.mean()[None]) for x, y in pictures(count)]


def weighed(model: Any, batch: Any) -> dict[str, Tensor]:
    """Each task over its variance, and the variance's logarithm."""
    out, number = model(batch[0])
    first, second = F.cross_entropy(out, batch[1]), F.mse_loss(number, batch[2])
    s = model.log_vars
    return {"class": (-s[0]).exp() * first + s[0] / 2, "number": (-s[1]).exp() * second + s[1] / 2}


class VAE(nn.Module):
    """torch's own example in small."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.mu, self.logvar = nn.Linear(144, 32), nn.Linear(32, 4), nn.Linear(32, 4)
        self.fc3, self.fc4 = nn.Linear(4, 32), nn.Linear(32, 144)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.fc1(x.flatten(1)).relu()
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu + torch.randn_like(mu) * (0.5 * logvar).exp()
        return self.fc4(self.fc3(z).relu()).sigmoid(), mu, logvar


def elbo(model: nn.Module, batch: Any) -> Tensor:
    """Sums over pixels and samples, as the example has them."""
    made, mu, logvar = model(batch[0])
    bce = F.binary_cross_entropy(made, batch[0].flatten(1), reduction="sum")
    return bce - 0.5 * (1 + logvar - mu.square() - logvar.exp()).sum()


def graphs(count: int) -> Rows:
    """Nodes float32 (n, 4), edges int64 (2, e), and whether the graph has more edges than nodes."""
    rows: Rows = []
    for _ in range(count):
        n = int(torch.randint(4, 9, ()))
        e = int(torch.randint(3, 16, ()))
        rows.append((torch.randn(n, 4), torch.randint(n, (2, e)), torch.tensor(int(e > n))))
    return rows


def joined(items: list[Any]) -> Any:
    """Graphs as one large one, as PyG has them: nodes, edges, which graph a node is of, labels."""
    ids, nodes, edges, labels = zip(*items, strict=True)
    sizes = torch.tensor([len(n) for n in nodes])
    first = sizes.cumsum(0) - sizes
    shifted = [e + f for e, f in zip(edges, first, strict=True)]
    owner = torch.arange(len(nodes)).repeat_interleave(sizes)
    return torch.tensor(ids), torch.cat(nodes), torch.cat(shifted, 1), owner, torch.stack(list(labels))


class Graph(nn.Module):
    """Messages are added up at each node, nodes in each graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, edges: Tensor, owner: Tensor, count: int) -> Tensor:
        for layer in (self.first, self.second):
            h = layer(x).relu()
            x = h + torch.zeros_like(h).index_add_(0, edges[1], h[edges[0]])
        return self.out(torch.zeros(count, 16).index_add_(0, owner, x))


def of_graph(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy."""
    nodes, edges, owner, labels = batch
    return F.cross_entropy(model(nodes, edges, owner, len(labels)), labels)


def ratings(count: int) -> Rows:
    """A user, a film, and 1 to 5 stars."""
    u, f = torch.randn(20, 3), torch.randn(15, 3)
    rows: Rows = []
    for _ in range(count):
        user, film = int(torch.randint(20, ())), int(torch.randint(15, ()))
        stars = (3 + (u[user] * f[film]).sum()).round().clamp(1, 5)
        rows.append((torch.tensor(user), torch.tensor(film), stars))
    return rows


class Films(nn.Module):
    """Matrix factorisation with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.film = nn.Embedding(20, 6), nn.Embedding(15, 6)
        self.user_bias, self.film_bias = nn.Embedding(20, 1), nn.Embedding(15, 1)
        for table in (self.user, self.film):
            nn.init.normal_(table.weight, std=0.3)

    def forward(self, user: Tensor, film: Tensor) -> Tensor:
        taste = (self.user(user) * self.film(film)).sum(1)
        return 3 + taste + self.user_bias(user)[:, 0] + self.film_bias(film)[:, 0]


def stars(model: nn.Module, batch: Any) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(batch[0], batch[1]), batch[2])


TABLES = (
    Task("houses", houses, normed, squares, torch.optim.AdamW, {"lr": 1e-2}, "cosine"),
    Task("customers", customers, lambda: mlp(8, 1), yes_or_no, ADAM, {"lr": 5e-3}, way="step"),
    Task("two_tasks", both, Two, weighed, torch.optim.AdamW, {"lr": 5e-3}),
    Task("vae", pictures, VAE, elbo, ADAM, {"lr": 3e-3}),
    Task("graphs", graphs, Graph, of_graph, ADAM, {"lr": 5e-3}, cuts=False, collate=joined),
    Task("films", ratings, Films, stars, torch.optim.Adagrad, {"lr": 0.3}, way="step"),
)  # fmt: skip
