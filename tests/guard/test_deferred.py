"""The guard that reads nothing within a step does what the immediate one does; the records come later."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.records import StepRecord
from maskrcnn_coco.replay.state import digest

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, fused=True),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def data(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(32, 8, generator=g)
    return x, (x[:, 0] > 0).long()


def play(kind: str, bad: dict[int, float], deferred: bool, clip: float, scaled: bool = False, steps: int = 10) -> Any:
    model = net()
    optimizer = OPTIMIZERS[kind](model)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, growth_interval=3) if scaled else None
    guard = Guard(model, optimizer, scaler=scaler, max_grad_norm=clip, deferred=deferred)
    records: list[StepRecord] = []
    alarms = {}
    for i in range(steps):

        def forward(b: Any, i: int = i) -> dict[str, Tensor]:
            loss = F.cross_entropy(model(b[0]), b[1])
            return {"a": loss * bad.get(i, 1.0), "b": 0.1 * loss}

        guard.step(forward, data(i))
        records += guard.completed
        if guard.alarm is not None:
            alarms[guard.alarm.step] = guard.alarm.symptom
    guard.flush()
    records += guard.completed if deferred else []
    if guard.alarm is not None:
        alarms[guard.alarm.step] = guard.alarm.symptom
    return digest(model, optimizer, scaler), records, alarms, model, optimizer


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("bad", [{}, {0: math.nan}, {4: math.inf, 5: math.nan}, {9: -math.inf}])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equal_to_the_immediate_guard(kind: str, bad: dict[int, float], scaled: bool) -> None:
    now, later = (play(kind, bad, deferred, 10.0, scaled) for deferred in (False, True))
    for a, b in zip(now[3].state_dict().values(), later[3].state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert [r.step for r in later[1]] == list(range(10))
    assert [r.applied for r in later[1]] == [r.applied for r in now[1]] == [i not in bad for i in range(10)]
    for a, b in zip(now[1], later[1], strict=True):
        assert a.symptom == b.symptom
        if a.applied:
            assert b.losses == pytest.approx(a.losses)
            assert b.grad_norm == pytest.approx(a.grad_norm, rel=1e-5)
            assert b.group_grad_norm == pytest.approx(a.group_grad_norm, rel=1e-5)
        assert a.loss_scale == b.loss_scale
    assert now[2] == later[2] == dict.fromkeys(bad, "loss_nonfinite")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_a_refused_step_changes_nothing_and_garbage_momentum_never_appears(kind: str) -> None:
    """Fused SGD allocates momentum uninitialised; skipped through found_inf at first, it would keep what was there."""
    model = net()
    optimizer = OPTIMIZERS[kind](model)
    guard = Guard(model, optimizer, deferred=True)
    weights = digest(model)
    for _ in range(3):
        guard.step(lambda b: F.cross_entropy(model(b[0]), b[1]) * math.nan, data(0))
        assert digest(model) == weights
    for state in optimizer.state.values():
        assert all(float(v.abs().sum()) == 0.0 for v in state.values() if isinstance(v, Tensor))
    guard.step(lambda b: F.cross_entropy(model(b[0]), b[1]), data(0))
    assert digest(model) != weights
    assert all(bool(p.isfinite().all()) for p in model.parameters())


def test_poisoned_momentum_is_refused_on_the_device() -> None:
    model = net()
    optimizer = OPTIMIZERS["sgd"](model)
    guard = Guard(model, optimizer, deferred=True)
    guard.step(lambda b: F.cross_entropy(model(b[0]), b[1]), data(0))
    optimizer.state[model[3].weight]["momentum_buffer"].data[0, 0] = math.nan  # past its version: unseen by its marks
    before = digest(model, optimizer)
    guard.step(lambda b: F.cross_entropy(model(b[0]), b[1]), data(1))
    guard.flush()
    assert digest(model, optimizer) == before
    assert guard.alarm is not None
    assert guard.alarm.symptom == "optimizer_nonfinite"


@pytest.mark.parametrize(("kind", "key"), [("sgd", "momentum_buffer"), ("adamw", "exp_avg")])
@pytest.mark.parametrize("by", [1e3, 1e6])
def test_a_state_that_somebody_changed_is_judged_as_by_a_guard_that_reads_at_once(
    kind: str, key: str, by: float
) -> None:
    model = net()
    optimizer = OPTIMIZERS[kind](model)
    guard = Guard(model, optimizer, deferred=True, max_grad_norm=None, say=False)
    forward = lambda b: F.cross_entropy(model(b[0]), b[1])  # noqa: E731
    records: list[StepRecord] = []

    def step(i: int) -> str | None:
        guard.step(forward, data(i))
        records.extend(guard.completed)
        return None if guard.alarm is None else guard.alarm.symptom

    assert [step(i) for i in range(25)] == [None] * 25
    kept = optimizer.state_dict()["state"]
    for entry in optimizer.state.values():
        entry[key].mul_(by)
    before = digest(model, optimizer)
    assert step(25) == "optimizer_nonfinite" and digest(model, optimizer) == before
    assert [r.step for r in records] == list(range(26)) and [r.applied for r in records] == [True] * 25 + [False]
    # What is put back, damped or cleared is taken, and the guard is late again afterwards.
    optimizer.load_state_dict({**optimizer.state_dict(), "state": kept})
    for entry in optimizer.state.values():
        entry[key].mul_(0.5 / by)
    assert [step(i) for i in range(26, 32)] == [None] * 6 and guard.late
    guard.flush()
    assert guard.alarm is None and all(r.applied for r in [*records[26:], *guard.completed])


def test_weights_that_are_clamped_keep_no_guard_from_being_late() -> None:
    model = net()
    guard = Guard(model, OPTIMIZERS["adamw"](model), deferred=True)
    for i in range(6):
        guard.step(lambda b: F.cross_entropy(model(b[0]), b[1]), data(i))
        with torch.no_grad():
            model[0].weight.clamp_(-0.3, 0.3)
    assert guard.at_once_until == -1


def test_clipping_matches() -> None:
    now, later = (play("sgd", {}, deferred, 0.1) for deferred in (False, True))
    for a, b in zip(now[3].parameters(), later[3].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_a_bad_input_is_known_with_its_loss_and_a_crash_at_once() -> None:
    model = net()
    guard = Guard(model, OPTIMIZERS["sgd"](model), deferred=True)
    forward = lambda b: F.cross_entropy(model(b[0]), b[1])  # noqa: E731
    guard.step(forward, data(0))
    x, y = data(1)
    before = digest(model, guard.optimizer)
    x[0, 0] = math.nan
    guard.step(forward, (x, y))
    guard.flush()
    assert guard.alarm is not None
    assert guard.alarm.symptom == "input_nonfinite"
    guard.step(forward, (data(1)[0], y + 9))
    assert guard.alarm.symptom == "crash"
    assert digest(model, guard.optimizer) == before


def test_it_needs_an_optimizer_that_can_refuse() -> None:
    model = net()
    with pytest.raises(ConfigError, match="cannot refuse a step on the device"):
        Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), deferred=True)
    with pytest.raises(ConfigError, match="dampening"):
        sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, dampening=0.1, fused=True)
        Guard(model, sgd, deferred=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_no_host_read_in_a_step_on_cuda() -> None:
    model = net().cuda()
    guard = Guard(model, OPTIMIZERS["sgd"](model), deferred=True)
    batch = tuple(t.cuda() for t in data(0))
    forward = lambda b: F.cross_entropy(model(b[0]), b[1])  # noqa: E731
    for _ in range(5):
        guard.step(forward, batch)
    guard.flush()
    torch.cuda.set_sync_debug_mode("error")
    try:
        guard.step(forward, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_rates_that_are_held_are_those_of_the_step_and_of_no_other_place(kind: str, deferred: bool) -> None:
    """A hook sets an absurd rate before each step; with the plan's held, the weights are those of a run without it."""

    def run(hook: float | None) -> tuple[str, list[float]]:
        model = net()
        optimizer = OPTIMIZERS[kind](model)
        optimizer.param_groups[0]["component"] = "all"
        guard = Guard(model, optimizer, max_grad_norm=1.0, deferred=deferred)
        records: list[StepRecord] = []
        for i in range(6):
            guard.instruments.hold({"all": 0.01}, {}, {})
            optimizer.param_groups[0]["lr"] = hook or 0.01
            guard.step(lambda b: {"a": F.cross_entropy(model(b[0]), b[1])}, data(i))
            records += guard.completed
            assert optimizer.param_groups[0]["lr"] == (hook or 0.01)
        guard.flush()
        return digest(model), [r.loss for r in [*records, *(guard.completed if deferred else [])]]

    assert run(300.0) == run(None)
