"""Optimizers that evaluate the loss within their step: causes, culprits and recovery as for every other."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from maskrcnn_coco import attach
from maskrcnn_coco.anywhere.rig import Groups
from maskrcnn_coco.errors import ConfigError, GuardStop
from maskrcnn_coco.replay.snapshot import nonfinite_entries, restore, take

AT = 22
Fault = Callable[[int, nn.Module, Any, tuple[Tensor, Tensor]], Any]


class Around(torch.optim.Optimizer):
    """SAM: up the slope, the slope there, back, and a step of the SGD inside along it (Foret et al. 2021)."""

    def __init__(self, params: Any, lr: float, rho: float = 0.05) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "momentum": 0.9})
        self.base = torch.optim.SGD(self.param_groups, lr=lr, momentum=0.9)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        evaluate = torch.enable_grad()(closure)
        loss = evaluate()
        climbs = self.climb()
        evaluate()
        for p, climb in climbs:
            p.sub_(climb)
        self.descend()
        return loss

    def climb(self) -> list[tuple[Tensor, Tensor]]:
        """Up; what was added to each weight."""
        held = [(p, g["rho"]) for g in self.param_groups for p in g["params"]]
        length = torch.stack([p.grad.norm() for p, _ in held]).norm()
        climbs = [(p, rho * p.grad / (length + 1e-12)) for p, rho in held]
        for p, climb in climbs:
            p.add_(climb)
        return climbs

    def descend(self) -> None:
        """The step of the optimizer inside."""
        self.base.step()


class Alone(Around):
    """The same with a momentum of its own and no optimizer inside; it asks for a closure."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, lr)
        del self.base

    def step(self, closure: Any) -> Any:  # type: ignore[override]
        return super().step(closure)

    def descend(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                kept = self.state[p].setdefault("slope", torch.zeros_like(p))
                p.sub_(kept.mul_(0.9).add_(p.grad), alpha=group["lr"])


OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "lbfgs": lambda p: torch.optim.LBFGS(p, lr=0.1, max_iter=3, history_size=5),
    "around": lambda p: Around(p, 0.1),
    "alone": lambda p: Alone(p, 0.1),
}
each = pytest.mark.parametrize("kind", OPTIMIZERS)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 3))


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def trained(kind: str, fault: Fault | None = None, *, steps: int = 40, guarded: bool = True) -> Any:
    """(guard, model, optimizer) after a loop of its own; sample ``i`` of step ``s`` is number 16 s + i."""
    model = net()
    optimizer: Any = OPTIMIZERS[kind](model.parameters())
    guard: Any = attach(model, optimizer, forward=loss_of, diagnose=True, logdir=None) if guarded else None
    torch.manual_seed(1)
    warnings.simplefilter("ignore")
    for step in range(steps):
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        batch = (x, x[:, :3].argmax(1))
        batch = (fault(step, model, optimizer, batch) if fault is not None else None) or batch
        if guard is not None:
            guard.batch(batch)

        def closure(batch: Any = batch) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss = guard.see(loss) if guard is not None else loss
            loss.backward()
            return loss

        optimizer.step(closure)
        assert all(bool(p.isfinite().all()) for p in model.parameters()) or step == AT
    return guard, model, optimizer


@each
def test_an_honest_run_keeps_its_bits(kind: str) -> None:
    guard, model, _ = trained(kind)
    assert not guard.incidents and not guard.refused_steps
    plain = trained(kind, guarded=False)[1]
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), plain.parameters(), strict=True))


@each
def test_the_bad_sample_is_named(kind: str) -> None:
    def fault(step: int, _: Any, __: Any, batch: Any) -> Any:
        if step == AT:
            batch[0][3, 1] = math.nan

    guard, model, _ = trained(kind, fault)
    assert [(i.step, i.cause, i.culprit.image_ids) for i in guard.incidents] == [(AT, "DATA_PIXEL", [16 * AT + 3])]
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@each
def test_a_weight_that_became_nan_is_put_back(kind: str) -> None:
    def fault(step: int, model: Any, *_: Any) -> None:
        if step == AT:
            model[3].weight.data[0, 0] = math.nan

    guard, model, _ = trained(kind, fault)
    first = guard.incidents[0]
    assert len(guard.incidents) == 1 and first.cause == "POISONED_STATE" and first.action.kind == "rollback"
    assert first.culprit.module == "3" and all(bool(p.isfinite().all()) for p in model.parameters())


@each
def test_a_rate_that_is_infinite_at_a_step(kind: str) -> None:
    def fault(step: int, _: Any, optimizer: Any, __: Any) -> None:
        optimizer.param_groups[0]["lr"] = math.inf if step == AT else 0.1

    guard, model, _ = trained(kind, fault)
    assert guard.incidents and guard.incidents[0].cause in ("POISONED_STATE", "LR_TOO_HIGH")
    assert all(bool(p.isfinite().all()) for p in model.parameters())


@each
def test_a_rate_far_too_high_is_proved_by_walks_and_lowered(kind: str) -> None:
    def fault(step: int, _: Any, optimizer: Any, __: Any) -> None:
        optimizer.param_groups[0]["lr"] = 1e3 if step >= AT else 0.1

    guard, model, optimizer = trained(kind, fault)
    first = guard.incidents[0]
    assert first.cause == "LR_TOO_HIGH" and first.confidence >= 0.9 and first.action.kind == "lower_lr"
    assert any("stays bounded" in e.outcome for e in first.evidence)
    assert guard.instruments.lowered and optimizer.param_groups[0]["lr"] == 1e3, "the loop sees its own rate"
    held_out = torch.randn(200, 6, generator=torch.Generator().manual_seed(999))
    assert float(loss_of(model.eval(), (held_out, held_out[:, :3].argmax(1)))) < 1.0


@pytest.mark.parametrize("kind", ["around", "alone"])
def test_a_poisoned_momentum_is_found_wherever_it_is_kept(kind: str) -> None:
    def fault(step: int, model: Any, optimizer: Any, _: Any) -> None:
        if step == AT:
            holder = getattr(optimizer, "base", optimizer)
            next(iter(holder.state[model[3].weight].values()))[0, 0] = math.nan

    guard, model, optimizer = trained(kind, fault)
    first = guard.incidents[0]
    assert len(guard.incidents) == 1 and first.cause == "POISONED_STATE" and first.action.kind == "rollback"
    holder = getattr(optimizer, "base", optimizer)
    held = [t for entry in holder.state.values() for t in entry.values() if isinstance(t, Tensor)]
    assert all(bool(t.isfinite().all()) for t in [*model.parameters(), *held])


@each
def test_a_file_with_nan_ends_with_its_verdict(kind: str) -> None:
    def fault(step: int, model: Any, *_: Any) -> None:
        if step == 0:
            model[0].weight.data[1, 1] = math.nan

    with pytest.raises(GuardStop, match="POISONED_STATE"):
        guarded_from_a_file(kind, fault)


def guarded_from_a_file(kind: str, fault: Fault) -> None:
    model = net()
    fault(0, model, None, (torch.empty(0), torch.empty(0)))
    optimizer: Any = OPTIMIZERS[kind](model.parameters())
    warnings.simplefilter("ignore")
    guard: Any = attach(model, optimizer, forward=loss_of, diagnose=True, logdir=None)
    x = torch.randn(16, 6)
    batch = guard.batch((x, x[:, :3].argmax(1)))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = guard.see(loss_of(model, batch))
        loss.backward()
        return loss

    optimizer.step(closure)


@each
def test_a_copy_of_the_state_goes_back_to_the_same_bits(kind: str) -> None:
    """LBFGS keeps lists of tensors; the momentum of the optimizer inside is part of the state too."""
    _, model, optimizer = trained(kind, guarded=False, steps=9)

    def on() -> list[Tensor]:
        torch.manual_seed(3)
        x = torch.randn(16, 6)
        for _ in range(3):

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = loss_of(model, (x, x[:, :3].argmax(1)))
                loss.backward()
                return loss

            optimizer.step(closure)
        return [p.detach().clone() for p in model.parameters()]

    kept = take(model, optimizer, None, step=9, epoch=0)
    assert kept.verified
    once = on()
    restore(kept, model, optimizer, rng=False)
    assert all(map(torch.equal, once, on()))


def test_a_nan_in_a_list_of_directions_is_no_sound_state() -> None:
    _, model, optimizer = trained("lbfgs", guarded=False, steps=9)
    next(iter(optimizer.state.values()))["old_dirs"][1][3] = math.nan
    kept = take(model, optimizer, None, step=9, epoch=0)
    assert not kept.verified and any("old_dirs[1]" in name for name in nonfinite_entries(kept))


@each
def test_the_private_one_holds_nothing_of_the_runs(kind: str) -> None:
    _, model, optimizer = trained(kind, guarded=False, steps=3)
    copied = net()
    made: Any = Groups(model, optimizer).build(copied)
    live, twins = set(map(id, model.parameters())), set(map(id, copied.parameters()))
    for one in (made, *([made.base] if kind == "around" else [])):
        held = {id(p) for g in one.param_groups for p in g["params"]}
        assert held == twins and not held & live and not one.state
        assert one.param_groups[0] is made.param_groups[0]
    assert kind != "lbfgs" or set(map(id, made._params)) == twins


def test_a_model_that_gives_its_loss_is_seen_once_a_step() -> None:
    """Each evaluation runs the model; its batch is one batch all the same, and its samples are counted once."""

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return loss_of(self.net, (x, y))

    model = Own()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)
    warnings.simplefilter("ignore")
    guard: Any = attach(model, optimizer, diagnose=True, logdir=None)
    for step in range(16):
        x = torch.randn(8, 6, generator=torch.Generator().manual_seed(step))
        y = x[:, :3].argmax(1)
        if step == 12:
            x[5, 0] = math.nan

        def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
            optimizer.zero_grad()
            loss = model(x, y)
            loss.backward()
            return loss

        optimizer.step(closure)
    assert [(i.step, i.cause, i.culprit.image_ids) for i in guard.incidents] == [(12, "DATA_PIXEL", [12 * 8 + 5])]


def test_one_with_groups_of_its_own_inside_is_refused_by_name() -> None:
    model = net()
    optimizer: Any = Around(model.parameters(), 0.1)
    optimizer.base = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(ConfigError, match="Around around SGD"):
        attach(model, optimizer, diagnose=True, logdir=None)
