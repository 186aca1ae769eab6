"""What a guard is given by mistake is refused in a sentence, and what its loop keeps from it is said."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.anywhere import response
from maskrcnn_coco.errors import ConfigError, GuardWarning
from maskrcnn_coco.guard.blind import UNSEEN
from maskrcnn_coco.guard.forward_backward import LossForm

X, Y = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)), torch.arange(64) % 4


def net() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    return model, torch.optim.SGD(model.parameters(), 0.05)


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def part(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    at = slice(8 * step % 64, 8 * step % 64 + 8)
    return X[at], Y[at]


MISTAKES: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "the optimizer first": (lambda m, o: Guard(o, m), "no nn.Module\n  got: SGD"),
    "the optimizer first, attached": (lambda m, o: attach(o, m), "got: Sequential"),
    "no optimizer": (lambda m, o: attach(m, None), "got: NoneType"),
    "parameters for a model": (lambda m, o: attach(list(m.parameters()), o), "no nn.Module\n  got: list"),
    "no optimizer for a guard": (lambda m, o: Guard(m, None), "optimizer to be guarded is none\n  got: NoneType"),
    "no such mode": (lambda m, o: attach(m, o, mode="refuse"), "'recover', 'stop', 'observe', 'off'"),
    "no such mode of a guard": (lambda m, o: Guard(m, o, mode="Recover"), "'recover', 'stop', 'observe', 'off'"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_guard_that_can_guard_nothing_is_refused_by_name(name: str) -> None:
    call, said = MISTAKES[name]
    with pytest.raises(ConfigError) as caught:
        call(*net())
    assert said in str(caught.value)


@pytest.mark.parametrize("diagnose", [False, True])
def test_names_for_ids_are_refused_and_whole_numbers_of_any_kind_are_not(diagnose: bool) -> None:
    model, optimizer = net()
    guard = Guard(model, optimizer, forward=loss_of, diagnose=diagnose, logdir=None)
    for ids in (range(8), np.arange(8), torch.arange(8), [np.int32(i) for i in range(8)]):
        assert guard.step(part(0), list(ids)).image_ids == list(range(8))
    with pytest.raises(ConfigError, match=r"whole numbers\n  got: 'a0.jpg' \(str\)"):
        guard.step(part(0), [f"a{i}.jpg" for i in range(8)])


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        (lambda loss: loss.item(), "a number has no gradient"),
        (lambda loss: np.float32(loss.item()), "a number has no gradient"),
        (lambda loss: None, "return loss"),
        (lambda loss: loss.expand(4, 4), ".mean()"),
        (lambda loss: [{"boxes": loss.expand(3, 4)}], "model.train()"),
    ],
)
def test_what_is_no_loss_is_said_with_what_to_return(returned: Callable[[torch.Tensor], Any], said: str) -> None:
    model, optimizer = net()
    guard = Guard(model, optimizer, forward=lambda m, b: returned(loss_of(m, b)), logdir=None, say=False)
    with pytest.raises(LossForm) as caught:
        guard.step(part(0))
    assert said in (caught.value.fix or "")


def said_of(loop: Callable[[int], Any], steps: int) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(steps):
            loop(step)
    return [str(w.message) for w in caught if issubclass(w.category, GuardWarning)]


@pytest.mark.parametrize("mistake", ["no backward", "cleared after backward", "none", "frozen"])
def test_steps_without_any_gradient_are_said(mistake: str) -> None:
    model, optimizer = net()
    guard = attach(model, optimizer)
    if mistake == "frozen":
        model.requires_grad_(False)

    def loop(step: int) -> None:
        optimizer.zero_grad()
        loss = guard.see(loss_of(model, part(step)))
        if mistake not in ("no backward", "frozen"):
            loss.backward()
        if mistake == "cleared after backward":
            optimizer.zero_grad()
        optimizer.step()

    said = [s for s in said_of(loop, UNSEEN + 5) if "no parameter of the optimizer had a gradient" in s]
    assert len(said) == (mistake in ("no backward", "cleared after backward"))


@pytest.mark.parametrize("stepped", ["another", "the guarded one", "the rival's"])
def test_an_optimizer_that_nobody_guards_is_said_where_it_steps_the_guarded_weights(stepped: str) -> None:
    model, optimizer = net()
    attach(model, optimizer)
    rival = nn.Linear(4, 4)
    model.add_module("rival", rival)
    chosen = {
        "another": torch.optim.SGD(model.parameters(), 0.05),
        "the guarded one": optimizer,
        "the rival's": torch.optim.SGD(rival.parameters(), 0.05),
    }[stepped]

    def loop(step: int) -> None:
        chosen.zero_grad()
        loss_of(model, part(step)).backward()
        chosen.step()

    assert sum("steps another one" in s for s in said_of(loop, 20)) == (stepped == "another")


def test_an_optimizer_that_runs_the_model_many_times_in_a_step_is_the_guarded_one() -> None:
    model, _ = net()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=30)
    attach(model, optimizer)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, (X, Y))
        loss.backward()
        return loss

    assert not said_of(lambda _: optimizer.step(closure), 2)


@pytest.mark.parametrize("below", ["", "/run/of/today"])
def test_a_logdir_that_is_a_file_is_refused_at_once(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="logdir is a file"):
        attach(*net(), diagnose=True, logdir=f"{tmp_path}/file{below}")
    assert (tmp_path / "file").read_text() == "mine"


def test_an_incident_that_cannot_be_written_costs_its_file_alone(tmp_path: Path) -> None:
    model, optimizer = net()
    guard = attach(model, optimizer, diagnose=True, logdir=tmp_path / "run", forward=loss_of)

    def loop(step: int) -> None:
        data, labels = part(step)
        batch = guard.batch((data * (torch.nan if step == 9 else 1), labels), list(range(8)))
        optimizer.zero_grad()
        guard.see(loss_of(model, batch)).backward()
        optimizer.step()

    full = mock.Mock(side_effect=OSError(28, "No space left on device"))
    with mock.patch.object(response, "write_incident", full):
        said = said_of(loop, 14)
    assert full.call_count == len(guard.incidents) == 1
    assert any("No space left on device; it is in .incidents" in s for s in said)
    assert not guard.refused
