"""Snapshots are exact, the ring is bounded, and nothing unsound is kept."""

from __future__ import annotations

import math
import random

import pytest
import torch
from torch import nn

from maskrcnn_coco.replay.ring import Ring
from maskrcnn_coco.replay.snapshot import Snapshot, nonfinite_entries, restore, take
from maskrcnn_coco.replay.state import digest
from maskrcnn_coco.replay.tape import Tape, TapeEntry


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(8, 2)
        self.register_buffer("hidden", torch.ones(3), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x))


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "sgd_fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "adam_tensor_lr": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), fused=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01),
}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 4)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_restore_is_bit_exact_and_training_goes_on_the_same(kind: str, before: int) -> None:
    torch.manual_seed(0)
    model = Net()
    optimizer = OPTIMIZERS[kind](model.parameters())
    train(model, optimizer, before)
    identity = digest(model, optimizer)
    snapshot = take(model, optimizer, None, step=before, epoch=0)
    train(model, optimizer, 4)
    after = digest(model, optimizer)
    pointers = [p.data_ptr() for p in model.parameters()]
    assert after != identity

    restore(snapshot, model, optimizer)
    assert digest(model, optimizer) == identity
    assert [p.data_ptr() for p in model.parameters()] == pointers
    train(model, optimizer, 4)  # dropout and data come from the restored generator
    assert digest(model, optimizer) == after


def test_snapshot_is_a_private_copy() -> None:
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, 1)
    extra = {"factors": [1.0]}
    snapshot = take(model, optimizer, None, step=1, epoch=0, extra=extra)
    kept = snapshot.model["head.weight"].clone()
    train(model, optimizer, 1)
    extra["factors"][0] = 2.0
    assert torch.equal(snapshot.model["head.weight"], kept)
    assert snapshot.extra == {"factors": [1.0]}
    weights = sum(t.numel() * t.element_size() for t in [*model.parameters(), *model.buffers()])
    assert weights < snapshot.nbytes < 3 * weights + 20_000


def test_scaler_and_python_random_come_back() -> None:
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale(torch.ones(()))
    snapshot = take(model, optimizer, scaler, step=0, epoch=0)
    drawn = random.random(), torch.rand(()).item()
    scaler.update(3.0)
    restore(snapshot, model, optimizer, scaler)
    assert scaler.get_scale() == 1024.0
    assert (random.random(), torch.rand(()).item()) == drawn


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["weight", "buffer", "hidden", "momentum", "lr"])
def test_nothing_unsound_is_verified_or_kept(value: float, where: str) -> None:
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    train(model, optimizer, 2)
    with torch.no_grad():
        if where == "weight":
            model.head.weight[0, 0] = value
        elif where == "buffer":
            model.body[1].running_var[0] = value
        elif where == "hidden":
            model.hidden[0] = value
        elif where == "momentum":
            optimizer.state[model.head.bias]["momentum_buffer"][0] = value
        else:
            optimizer.param_groups[0]["lr"] = value
    snapshot = take(model, optimizer, None, step=2, epoch=0)
    assert len(nonfinite_entries(snapshot)) == 1
    assert not snapshot.verified
    ring = Ring()
    assert not ring.add(snapshot)
    assert ring.newest() is None


def test_huge_but_finite_weights_are_finite() -> None:
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    with torch.no_grad():
        model.head.weight.fill_(1e30)
    assert nonfinite_entries(take(model, optimizer, None, step=0, epoch=0)) == []


def plain(step: int, size: int = 10) -> Snapshot:
    return Snapshot(step, 0, {"w": torch.zeros(size)}, {}, verified=True)


def test_ring_keeps_doubling_ages_in_bounded_memory() -> None:
    ring = Ring(capacity=4)
    for step in range(100):
        ring.add(plain(step))
        assert len(ring.items) <= 4
        assert ring.items[0].step == step
        ages = [step - s.step for s in ring.items]
        assert ages == sorted(ages)
        if step > 8:
            assert ages[1] <= 3
            assert 4 <= ages[-1] <= 33
    assert ring.newest(before_step=99) is ring.items[1]
    assert ring.newest(before_step=0) is None
    ring.drop_after(98)
    assert ring.newest() is not None
    assert ring.newest().step <= 98


def test_ring_respects_bytes() -> None:
    ring = Ring(capacity=8, max_bytes=1000)
    for step in range(30):
        ring.add(plain(step, size=100))  # 400 bytes each
        assert ring.nbytes <= 1000
    assert len(ring.items) == 2
    ring.add(plain(31, size=1000))
    assert [s.step for s in ring.items] == [31]


def test_restore_into_another_model_is_refused() -> None:
    model, other = Net(), nn.Linear(3, 3)
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    snapshot = take(model, optimizer, None, step=0, epoch=0)
    with pytest.raises(KeyError, match="not the model"):
        restore(snapshot, other)
    with pytest.raises(KeyError, match="not the optimizer"):
        restore(snapshot, model, torch.optim.SGD(other.parameters(), lr=0.1))


def test_shared_tensors_are_copied_once() -> None:
    model = Net()
    model.tied = nn.Linear(4, 8)
    model.tied.weight = model.body[0].weight
    optimizer = OPTIMIZERS["adamw"](model.parameters())
    train(model, optimizer, 1)
    snapshot = take(model, optimizer, None, step=0, epoch=0)
    identity = digest(model, optimizer)
    train(model, optimizer, 1)
    restore(snapshot, model, optimizer)
    assert digest(model, optimizer) == identity
    assert model.tied.weight is model.body[0].weight


def test_digest_sees_one_bit_and_the_settings() -> None:
    model = Net()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    first = digest(model, optimizer)
    optimizer.param_groups[0]["lr"] = math.nextafter(0.1, 1)
    second = digest(model, optimizer)
    with torch.no_grad():
        model.head.bias.view(torch.int32)[0] ^= 1
    assert len({first, second, digest(model, optimizer)}) == 3


def test_tape_is_bounded_and_rolls_back() -> None:
    tape = Tape(length=5)
    for step in range(9):
        tape.add(TapeEntry(step, 0, [[step]], {"a": 0.1}, None, True))
    assert [e.step for e in tape] == [4, 5, 6, 7, 8]
    assert [e.step for e in tape.since(7)] == [7, 8]
    tape.drop_from(6)
    assert [e.step for e in tape] == [4, 5]
    assert len(tape) == 2
