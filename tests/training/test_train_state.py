"""What a step changes, copied and put back: bit for bit, in place, and another model's file is refused in words."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.training.train_state import TrainState


def live_state(width: int = 3) -> TrainState:
    model = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return TrainState(model, optimizer, None, Guard(model, optimizer, say=False), None, torch.device("cpu"))


def step(live: TrainState, number: int) -> None:
    batch = torch.randn(4, 2, generator=torch.Generator().manual_seed(number))
    live.guard.step(lambda b: {"loss": live.model(b).square().mean()}, batch, step=number)


def held(live: TrainState) -> list[torch.Tensor]:
    moments = [v for e in live.optimizer.state.values() for v in e.values() if isinstance(v, torch.Tensor)]
    return [*live.model.state_dict().values(), *moments]


def test_put_back_bit_for_bit_and_in_place() -> None:
    live = live_state()
    step(live, 0)
    snapshot = live.snapshot(1, 0, {"note": [1]})
    assert snapshot.verified and snapshot.extra == {"note": [1]}
    before, places = [t.clone() for t in held(live)], [t.data_ptr() for t in held(live)]
    for number in range(1, 4):
        step(live, number)
    assert not all(torch.equal(a, b) for a, b in zip(held(live), before, strict=True))
    live.restore(snapshot)
    assert all(torch.equal(a, b) for a, b in zip(held(live), before, strict=True))
    assert [t.data_ptr() for t in held(live)] == places


def checkpoint(live: TrainState) -> dict:
    state = {"model": live.model.state_dict(), "optimizer": live.optimizer.state_dict()}
    return {**copy.deepcopy(state), "scaler": None, "guard": live.guard.state_dict()}


def test_a_checkpoint_is_loaded_with_its_momentum() -> None:
    first, second = live_state(), live_state()
    step(first, 0)
    second.load(checkpoint(first), "last.pth", "this model")
    for live in (first, second):
        step(live, 1)
    assert all(torch.equal(a, b) for a, b in zip(held(first), held(second), strict=True))


def test_a_file_of_another_model_is_refused_with_what_was_expected() -> None:
    with pytest.raises(CheckpointError, match=r"other\.pth is a checkpoint of another model") as raised:
        live_state(4).load(checkpoint(live_state(3)), "other.pth", "resnet18, 3 classes, sgd")
    assert raised.value.expected == "resnet18, 3 classes, sgd"


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_is_neither_sound_nor_healthy(value: float) -> None:
    live = live_state()
    step(live, 0)
    assert live.is_sound() and not live.poisoned(live.snapshot(1, 0, {}))
    with torch.no_grad():
        live.model[0].weight[0, 0] = value  # type: ignore[index]
    assert not live.is_sound()
    faults = live.poisoned(live.snapshot(1, 0, {}))
    assert [f.name for f in faults] == ["0.weight"]
