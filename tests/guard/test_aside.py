"""What modules keep in plain attributes: a refused step leaves nothing of itself there."""

from __future__ import annotations

from collections import deque
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import Guard
from maskrcnn_coco.guard.aside import FIRST, MOST, Aside

NAN = float("nan")


class Centred(nn.Module):
    """Takes out a running mean in an attribute of this kind: "float", "tensor", "in place", "none", or of the last."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.layer, self.kind = nn.Linear(3, 1), kind
        kinds: dict[str, Any] = {"float": 0.0, "none": None, "deque": deque(maxlen=9), "dict": {}}
        self.mean: Any = kinds.get(kind, torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().mean()
        if self.kind == "deque":
            self.mean.append(now)
        elif self.kind == "dict":
            self.mean["x"] = 0.9 * self.mean.get("x", 0.0) + 0.1 * float(now)
        elif self.kind == "in place":
            self.mean.mul_(0.9).add_(0.1 * now)
        else:
            self.mean = (0.0 if self.mean is None else 0.9 * self.mean) + 0.1 * now
            self.mean = float(self.mean) if self.kind == "float" else self.mean
        # Not by a nan of the batch itself: by what the division makes of it.
        return self.layer(x / x.sum(1, keepdim=True)) - self.taken()

    def taken(self) -> Any:
        nest = {"deque": list, "dict": lambda v: list(v.values())}.get(self.kind)
        return self.mean if nest is None else sum(nest(self.mean)) / max(1, len(self.mean))


@pytest.mark.parametrize("kind", ["float", "tensor", "in place", "none", "deque", "dict"])
@pytest.mark.parametrize("late", [0, FIRST + 3])
@pytest.mark.parametrize("deferred", [False, True])
def test_a_batch_that_spoils_a_running_mean_costs_no_step_but_those_under_way(kind: str, late: int, deferred: bool):
    if deferred and kind in ("deque", "dict"):
        pytest.skip("what is in a nest is read at once, or not at all")
    torch.manual_seed(0)
    model = Centred(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, fused=True)
    guard = Guard(model, optimizer, forward=lambda m, b: {"l": m(b).square().mean()}, deferred=deferred)
    records = []
    for step in range(late + 6):
        batch = torch.rand(2, 3) + 1
        if step == late:
            batch = torch.full((2, 3), 3e38)  # its sum is infinite, and so is its mean
        records.append(guard.step(batch, [0, 1]))
        if deferred:
            guard.flush()
    assert [r.applied for r in records] == [step != late for step in range(late + 6)]
    assert abs(float(model.taken())) < 10


def test_large_tensors_and_those_with_a_graph_are_not_held():
    model = nn.Linear(2, 2)
    held: Any = model
    held.features, held.term, held.note, held.count = torch.zeros(MOST + 1), model.weight.sum(), "word", 3
    aside = Aside(model)
    aside.save()
    features, term = held.features, held.term
    held.features, held.term, held.note, held.count = torch.ones(1), torch.ones(1), "other", 4
    aside.restore()
    assert held.features is not features and held.term is not term
    assert (held.note, held.count) == ("other", 4)


def test_once_known_only_what_moves_is_looked_at():
    model = nn.Sequential(Centred("float"), nn.Linear(1, 1))
    aside = Aside(model)
    for _ in range(FIRST + 1):
        aside.save()
        model(torch.rand(2, 3))
    aside.save()
    assert [name for _, name, _, _ in aside._held] == ["mean"]


def test_on_a_device_it_is_chosen_by_the_flag():
    model = nn.Linear(2, 2)
    held: Any = model
    held.mean = torch.ones(3)
    aside = Aside(model)
    for bad, expected in ((True, 1.0), (False, 5.0)):
        aside.save()
        held.mean = torch.full((3,), 5.0)
        aside.restore_where(torch.tensor(bad))
        assert held.mean.tolist() == [expected] * 3
