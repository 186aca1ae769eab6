"""Gradients that a loop forgets to clear or to unscale are seen without being read; every way to clear them is one."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from maskrcnn_coco import attach
from maskrcnn_coco.guard.own_gradients import OwnGradients


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def clear_none(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=True)


def clear_zero(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad(set_to_none=False)


def clear_each(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for p in model.parameters():
        p.grad = None if p.grad is None else torch.zeros_like(p.grad)


def forget(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    pass


Clear = Callable[[nn.Module, torch.optim.Optimizer], None]
CLEARS = {"none": clear_none, "zero": clear_zero, "each": clear_each, "forget": forget}


def kept(clear: Clear, *, clip: bool, micro: int, late: bool, kind: type = torch.optim.SGD) -> Iterator[bool | None]:
    """What is known at each step of a loop that clears before the backward pass, or ``late``: after its step."""
    model = net()
    optimizer = kind(model.parameters(), lr=0.01)
    own = OwnGradients(optimizer, None)
    for step in range(4):
        if not late:
            clear(model, optimizer)
        for i in range(micro):
            model(torch.randn(3, 4, generator=torch.Generator().manual_seed(10 * step + i))).square().mean().backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        own.steps()
        optimizer.step()
        own.step_taken()
        yield own.kept
        if late:
            clear(model, optimizer)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("micro", [1, 3])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("name", CLEARS)
def test_only_a_loop_that_forgets_keeps_gradients(name: str, clip: bool, micro: int, late: bool):
    found = list(kept(CLEARS[name], clip=clip, micro=micro, late=late))
    assert found == [False, *[name == "forget"] * 3]


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("forgets", [True, False])
def test_what_a_rivals_loss_leaves_in_a_network_is_cleared_before_its_own(to_none: bool, forgets: bool):
    critic, generator = net(), nn.Linear(2, 4)
    optimizers = [torch.optim.Adam(m.parameters(), 1e-3) for m in (critic, generator)]
    own, found = OwnGradients(optimizers[0], None), []
    for _ in range(4):
        if not forgets:
            optimizers[0].zero_grad(set_to_none=to_none)
        (critic(torch.randn(3, 4)) - critic(generator(torch.randn(3, 2)).detach())).mean().backward()
        optimizers[0].step()
        own.step_taken()
        found.append(own.kept)
        optimizers[1].zero_grad()
        critic(generator(torch.randn(3, 2))).mean().backward()  # leaves gradients in the critic
        optimizers[1].step()
    assert found == [False, *[forgets] * 3]


def test_optimizers_that_write_gradients_clear_them_all_the_same():
    for kind in (torch.optim.AdamW, torch.optim.RMSprop):
        assert not any(kept(clear_zero, clip=True, micro=1, late=False, kind=kind))


def test_a_copy_of_the_model_tells_nothing_and_can_be_made():
    model = net()
    guard = attach(model, torch.optim.SGD(model.parameters(), lr=0.01))
    twin = copy.deepcopy(model)
    twin(torch.randn(3, 4)).sum().backward()
    assert guard._gradients.kept is None
    torch.save(model, io.BytesIO())
    guard.detach()
    model(torch.randn(3, 4)).sum().backward()
    assert guard._gradients.kept is None, "no hook is left"


@pytest.mark.parametrize("way", ["scaler", "unscaled", "past"])
def test_a_step_past_the_scaler_is_seen(way: str):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    guard = attach(model, optimizer, scaler=scaler, say=False)
    seen = []
    for _ in range(2):
        optimizer.zero_grad()
        scaler.scale(model(torch.randn(3, 4)).square().mean()).backward()
        if way == "scaler":
            scaler.step(optimizer)
        else:
            if way == "unscaled":
                scaler.unscale_(optimizer)
            optimizer.step()
        seen.append(guard._gradients.still_scaled)
        scaler.update(scaler.get_scale())
    assert seen == [1024.0 if way == "past" else None] * 2


@pytest.mark.parametrize(("bound", "early", "said"), [(0.1, True, 1), (0.1, False, 0), (0.0, False, 0), (1e9, True, 0)])
def test_gradients_clipped_before_they_are_unscaled_are_said_once(bound: float, early: bool, said: int):
    model, scaler = net(), torch.amp.GradScaler("cpu", init_scale=2.0**14)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    alarms: list = []
    guard = attach(model, optimizer, scaler=scaler, on_alarm=alarms.append, say=False)
    for step in range(20):
        optimizer.zero_grad()
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        scaler.scale((model(x) - 3.0).square().mean()).backward()
        if bound and early:
            nn.utils.clip_grad_norm_(model.parameters(), bound)
        scaler.unscale_(optimizer)
        if bound and not early:
            nn.utils.clip_grad_norm_(model.parameters(), bound)
        scaler.step(optimizer)
        scaler.update()
    guard.detach()
    assert [(a.symptom, a.measured.get("clipped_scaled")) for a in alarms] == [("stalled", bound)] * said


@pytest.mark.parametrize("clears", [True, False])
def test_an_overflow_that_nobody_clears_is_said_to_be_that_and_no_search_of_a_scale(clears: bool, tmp_path):
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**20)
    guard = attach(model, optimizer, scaler=scaler, diagnose=True, logdir=tmp_path)
    for step in range(4):
        if clears:
            optimizer.zero_grad()
        loss = model(torch.randn(3, 4, generator=torch.Generator().manual_seed(step))).square().mean()
        scaler.scale(loss).backward()
        if step == 0:  # once beyond half precision
            for p in model.parameters():
                p.grad.fill_(torch.inf)
        scaler.step(optimizer)
        scaler.update()
    causes = {i.cause for i in guard.incidents}
    guard.detach()
    assert causes == (set() if clears else {"ACCUMULATION"})


def clear_data(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """As old tutorials have it: no count of writes tells."""
    for p in model.parameters():
        if p.grad is not None:
            p.grad.data.zero_()


@pytest.mark.parametrize(
    ("clear", "late"), [(c, late) for c in (*CLEARS.values(), clear_data) for late in (False, True)]
)
def test_gradients_that_are_never_cleared_are_told_once_and_every_step_is_taken(clear: Clear, late: bool):
    model, alarms = net(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    guard = attach(model, optimizer, on_alarm=alarms.append)
    for step in range(60):
        if not late:
            clear(model, optimizer)
        loss = guard.see(model(torch.randn(3, 4, generator=torch.Generator().manual_seed(step))).square().mean())
        if late:  # between the forward and the backward pass
            clear(model, optimizer)
        loss.backward()
        optimizer.step()
    assert guard.refused_steps == 0
    assert [a.message[:28] for a in alarms] == (["gradients were never cleared"] if clear is forget else [])
