"""Several optimizers of one model that step once each for one backward pass, diagnosed as one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from maskrcnn_coco import attach
from maskrcnn_coco.errors import ConfigError

X = torch.randn(96, 6, generator=torch.Generator().manual_seed(1))
Y = X @ torch.linspace(-1, 1, 6) + 0.3
Optimizers = Callable[[nn.Module], list[torch.optim.Optimizer]]


class Words(nn.Module):
    """An embedding whose gradient is sparse, before two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(12, 4, mode="mean", sparse=True)
        self.body = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x: Tensor, words: Tensor, wanted: Tensor) -> Tensor:
        made = self.body(torch.cat([x, self.table(words)], 1))[:, 0]
        return nn.functional.mse_loss(made, wanted)


def sparse_and_dense(model: Any) -> list[torch.optim.Optimizer]:
    return [
        torch.optim.SparseAdam(list(model.table.parameters()), 1e-2),
        torch.optim.Adam(model.body.parameters(), 1e-2),
    ]


def two_of_one_kind(model: Any) -> list[torch.optim.Optimizer]:
    dense = nn.EmbeddingBag(12, 4, mode="mean")
    dense.load_state_dict(model.table.state_dict())
    model.table = dense
    body, table = model.body.parameters(), model.table.parameters()
    return [torch.optim.SGD(body, 0.05, momentum=0.9), torch.optim.SGD(table, 0.05, momentum=0.9)]


def batches(steps: int) -> Iterator[tuple[int, Tensor, tuple[Tensor, Tensor, Tensor]]]:
    draw = torch.Generator().manual_seed(3)
    for step in range(steps):
        ids = torch.randperm(96, generator=draw)[:12]
        yield step, ids, (X[ids], ids[:, None] % 12, Y[ids])


def run(
    make: Optimizers, steps: int = 40, *, fault: Callable[..., Any] | None = None, guarded: bool = True, late: int = 99
) -> tuple[Any, list[Any], nn.Module, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = Words()
    optimizers = make(model)
    guard = attach(model, optimizers, diagnose=True, logdir=None) if guarded else None
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for step, _, batch in batches(steps):
            given = fault(step, model, optimizers, batch) if fault is not None else None
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss = model(*(given or batch))
            loss.backward()
            for optimizer in optimizers:
                optimizer.step()
            losses.append(loss.item())
    return guard, losses, model, optimizers


@pytest.mark.parametrize("make", [sparse_and_dense, two_of_one_kind])
def test_an_honest_run_ends_in_the_bits_of_one_without_a_guard(make: Optimizers):
    guard, _, model, _ = run(make)
    _, _, plain, _ = run(make, guarded=False)
    assert not guard.incidents and guard.refused_steps == 0
    for mine, other in zip(model.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("make", [sparse_and_dense, two_of_one_kind])
@pytest.mark.parametrize("late", [0, 12])
def test_the_rate_of_one_of_them_is_named_and_lowered_alone(make: Optimizers, late: int) -> None:
    def fault(step: int, model: Any, optimizers: list[torch.optim.Optimizer], batch: Any) -> None:
        if step == late:
            owner = next(o for o in optimizers if o.param_groups[0]["params"][0] is next(model.body.parameters()))
            owner.param_groups[0]["lr"] *= 1e4

    guard, losses, model, optimizers = run(make, 60, fault=fault)
    first = guard.incidents[0]
    assert first.cause == "LR_TOO_HIGH" and first.confidence >= 0.9 and first.culprit.component == "body", first
    assert {i.cause for i in guard.incidents} == {"LR_TOO_HIGH"}
    rates = {id(p): g["lr"] for o in optimizers for g in o.param_groups for p in g["params"]}
    usual = 0.05 if isinstance(optimizers[0], torch.optim.SGD) else 1e-2
    assert rates[id(next(iter(model.table.parameters())))] == usual
    assert all(p.isfinite().all() for p in model.parameters()) and losses[-1] < losses[0]


@pytest.mark.parametrize("make", [sparse_and_dense, two_of_one_kind])
def test_one_bad_sample_is_named_and_no_rate(make: Optimizers) -> None:
    def fault(step: int, model: Any, optimizers: Any, batch: Any) -> Any:
        x, words, y = batch
        return (x, words, torch.where(torch.arange(12) == 5, torch.nan, y)) if step == 9 else None

    guard, _, model, optimizers = run(make, 30, fault=fault)
    assert [i.cause for i in guard.incidents] == ["DATA_LABEL"] and len(guard.incidents[0].culprit.image_ids) == 1
    assert all(p.isfinite().all() for p in model.parameters())
    assert len({g["lr"] for o in optimizers for g in o.param_groups}) == 1


@pytest.mark.parametrize("make", [sparse_and_dense, two_of_one_kind])
def test_a_poisoned_moment_of_one_of_them_is_put_back(make: Optimizers) -> None:
    def fault(step: int, model: Any, optimizers: list[torch.optim.Optimizer], batch: Any) -> None:
        if step == 21:
            state = next(iter(optimizers[-1].state.values()))
            next(v for k, v in state.items() if k != "step" and isinstance(v, Tensor))[0] = torch.nan

    guard, _, model, optimizers = run(make, 40, fault=fault)
    assert guard.incidents and {i.cause for i in guard.incidents} <= {"POISONED_STATE", "TRANSIENT"}
    held = [v for o in optimizers for s in o.state.values() for v in s.values() if isinstance(v, Tensor)]
    assert all(v.isfinite().all() for v in [*model.parameters(), *held])


def test_one_that_needs_a_closure_is_refused_by_name():
    model = Words()
    second = torch.optim.LBFGS(model.body.parameters())
    with pytest.raises(ConfigError, match="LBFGS"):
        attach(model, [torch.optim.SGD(model.table.parameters(), 0.1), second], diagnose=True, logdir=None)
