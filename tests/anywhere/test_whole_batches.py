"""Bad samples that fill a batch, be it the first that a loop has; and parts of a batch that raise for being parts."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import Guard
from maskrcnn_coco.diagnosis.guilty_samples import alike
from maskrcnn_coco.errors import GuardStop

SIZE = 4
BAD = 77.0


class Net(nn.Module):
    """Raises, or gives NaN, for samples that begin with `BAD`."""

    def __init__(self, fault: str, norm: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8) if norm else nn.Identity()
        self.last, self.fault = nn.Linear(8, 1), fault

    def forward(self, x: Tensor) -> Tensor:
        bad = x[:, 0] == BAD
        if self.fault == "raises" and bool(bad.any()):
            raise KeyError("area")
        y = self.last(torch.relu(self.norm(self.first(torch.where(bad[:, None], 0.0, x)))))
        return y * math.nan if self.fault == "NaN" and bool(bad.any()) else y


def loss_of(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def batch(step: int, bad: Callable[[int, int], bool]) -> tuple[tuple[Tensor, Tensor], list[int]]:
    x = torch.randn(SIZE, 6, generator=torch.Generator().manual_seed(step))
    for n in range(SIZE):
        x[n, 0] = BAD if bad(step, n) else x[n, 0]
    return (x, x[:, 1:2].clone()), list(range(step * SIZE, (step + 1) * SIZE))


def run(
    fault: str, bad: Callable[[int, int], bool], *, norm: bool = False, order: Sequence[int] = range(8)
) -> tuple[Any, list[bool]]:
    model = Net(fault, norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    guard, taken = Guard(model, optimizer, forward=loss_of, diagnose=True, logdir=None, say=False), []
    with contextlib.suppress(GuardStop):
        taken.extend(guard.step(*batch(step, bad)).applied for step in order)
    return guard, taken


def named(guard: Any) -> set[int]:
    return {i for incident in guard.incidents for i in incident.culprit.image_ids}


@pytest.mark.parametrize("fault", ["raises", "NaN"])
def test_a_first_batch_of_bad_samples_alone_stops_no_loop(fault: str):
    """It was called a fault of every batch, although no other had been seen."""
    guard, taken = run(fault, lambda step, _: step == 0, order=[0, 1, 2, 3, 4, 0, 5])
    assert taken == [False, True, True, True, True, False, True]
    assert named(guard) == {0, 1, 2, 3}


@pytest.mark.parametrize("norm", [False, True])
def test_what_every_batch_raises_stops_at_the_second(norm: bool):
    guard, taken = run("raises", lambda *_: True, norm=norm)
    assert taken == [False]
    assert [i.action.kind for i in guard.incidents] == ["skip", "stop"]
    assert "KeyError" in guard.incidents[-1].fix


def test_inputs_that_are_nan_in_every_batch_stop_at_the_second():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, forward=loss_of, diagnose=True, logdir=None, say=False)
    with pytest.raises(GuardStop):
        for step in range(4):
            (x, y), ids = batch(step, lambda *_: False)
            guard.step((torch.full_like(x, math.nan), y), ids)
    assert len(guard.incidents) <= 3


@pytest.mark.parametrize("bad", [(1,), (0,), (3,), (1, 2), (0, 3)])
def test_an_error_that_a_part_of_the_batch_raises_for_being_one_blames_no_sample(bad: tuple[int, ...]):
    """A norm layer takes no batch of one: the first sample was left out beside the one that raises."""
    guard, taken = run("raises", lambda step, n: step == 4 and n in bad, norm=True)
    assert taken == [True] * 4 + [False] + [True] * 3
    assert named(guard) == {16 + n for n in bad}


def test_of_a_pair_that_cannot_be_taken_apart_none_is_named():
    model, ids = Net("raises", norm=True), iter(range(100))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    guard = Guard(model, optimizer, forward=loss_of, diagnose=True, logdir=None, say=False)
    for step in range(6):
        (x, y), _ = batch(step, lambda step, n: step == 4 and n == 1)
        guard.step((x[:2], y[:2]), [next(ids), next(ids)])
    assert len(guard.incidents) == 1 and named(guard) == set()


@pytest.mark.parametrize(
    ("error", "other", "same"),
    [
        ("KeyError: 'area' (data.py:4, in load)", "KeyError: 'name' (data.py:4, in load)", True),
        ("KeyError: 'area' (data.py:4, in load)", "KeyError: 'area' (data.py:9, in load)", False),
        ("KeyError: 'area' (data.py:4, in load)", "ValueError: more than 1 value (net.py:4, in forward)", False),
        ("IndexError: Target 9 is out", "IndexError: Target 12 is out", True),
        ("KeyError: 'area'", None, False),
    ],
)
def test_two_errors_are_one_by_class_and_line(error: str, other: str | None, same: bool):
    assert alike(error, other) is same


@pytest.mark.parametrize("diagnose", [False, True])
def test_a_batch_that_holds_itself_is_looked_into_as_far_as_need_be(diagnose: bool):
    """A sample's record that leads back to its batch: every step was a RecursionError of the guard's."""
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    settings = {"forward": lambda m, b: loss_of(m, (b["x"], b["y"])), "diagnose": diagnose, "logdir": None}
    guard, taken = Guard(model, optimizer, say=False, **settings), []
    for step in range(6):
        (x, y), ids = batch(step, lambda *_: False)
        x[1, 2] = math.nan if step == 4 else x[1, 2]
        held: dict[str, Any] = {"x": x, "y": y}
        held["parent"] = [held]
        taken.append(guard.step(held, ids).applied)
    assert taken == [True] * 4 + [False, True]
    assert not diagnose or named(guard) == {17}
