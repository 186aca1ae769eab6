"""What may be wrong with any training: rates, one sample, the state, the loop; each a function of a run."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from anywhere.mainstream.case import Case
from anywhere.mainstream.task import Run, total
from torch import Tensor, nn

Fault = Callable[[Run], None]
NAN, INF = math.nan, math.inf
LATE = 33
"""The step of what comes late."""


def together(*faults: Fault) -> Fault:
    """All of them."""

    def fault(run: Run) -> None:
        for each in faults:
            each(run)

    return fault


# --- rates and options


def rate(factor: float, at: int = 0) -> Fault:
    """All rates so many times too high, from a step on."""
    return lambda run: run.factors.update({at: factor})


def rates(drawn: Iterable[tuple[str, float, int]]) -> tuple[Case, ...]:
    """A case of each (task, factor, step): all rates so many times too high from then on."""
    return tuple(
        Case(task, f"rate x{factor:.0f}{' late' if step else ''}", "LR_TOO_HIGH", rate(factor, step))
        for task, factor, step in drawn
    )


def options(**values: Any) -> Fault:
    """Keywords of the optimizer."""
    return lambda run: run.options.update(values)


def setting(name: str, value: Any) -> Fault:
    """Something of the script: "clip", "schedule", "accumulate", "batch", "precision", "drop_last", "workers"."""
    return lambda run: setattr(run, name, value)


def wrong(*what: str) -> Fault:
    """What the loop gets wrong."""
    return lambda run: run.wrong.update(what)


def loss_is(loss: Callable[[nn.Module, Any], Any]) -> Fault:
    """The loss is written otherwise."""
    return lambda run: setattr(run, "loss", loss)


def instead(make: Callable[[Run, Callable[[Any, Any], Any]], Callable[[Any, Any], Any]]) -> Fault:
    """The loss is another, made of the run and of the loss as it was."""

    def fault(run: Run) -> None:
        run.loss = make(run, run.loss)

    return fault


# --- samples


def sample(field: int, change: Callable[[Tensor], Any]) -> Fault:
    """One field of the bad sample."""
    return lambda run: run.change_bad(field, change)


def every(field: int, change: Callable[[Tensor], Any]) -> Fault:
    """One field of all samples."""

    def fault(run: Run) -> None:
        run.rows = [(*row[:field], change(row[field].clone()), *row[field + 1 :]) for row in run.rows]

    return fault


def entry(field: int, key: str, change: Callable[[Tensor], Tensor | None]) -> Fault:
    """One entry of the bad sample's target; None: it is missing."""

    def fault(run: Run) -> None:
        def changed(target: dict[str, Tensor]) -> dict[str, Tensor]:
            made = change(target[key].clone())
            rest = {k: v for k, v in target.items() if k != key}
            return rest if made is None else {**rest, key: made}

        row = list(run.rows[run.bad])
        row[field] = changed(row[field])
        run.rows[run.bad] = tuple(row)

    return fault


def put(value: float, *place: int) -> Callable[[Tensor], Tensor]:
    """One number of it."""

    def change(t: Tensor) -> Tensor:
        t[place or (0,) * t.ndim] = value
        return t

    return change


def times(factor: float) -> Callable[[Tensor], Tensor]:
    """So many times as large."""
    return lambda t: t * factor


def once(field: int, change: Callable[[Tensor], Tensor]) -> Fault:
    """The bad sample is bad in the second epoch, and only then: a cache, a disk. Workers know an epoch by its begin."""

    def fault(run: Run) -> None:
        def draw(index: int, row: tuple[Any, ...]) -> tuple[Any, ...]:
            second = run.task.per_epoch - 1 <= run.step < 2 * run.task.per_epoch - 1
            if index != run.bad or not second:
                return row
            return (*row[:field], change(row[field].clone()), *row[field + 1 :])

        run.draw = draw

    return fault


# --- state


def at_step(step: int, change: Callable[[Run], None]) -> Fault:
    """Between two steps."""
    return lambda run: run.at(step, change)


def weight(name: str, value: float) -> Callable[[Run], None]:
    """One number of a weight or buffer is another."""
    return lambda run: run.model.state_dict()[name].view(-1)[1:2].fill_(value)


def bit(name: str, number: int = 30) -> Callable[[Run], None]:
    """One bit of a weight that was 0 is 1: its exponent grows."""

    def change(run: Run) -> None:
        held = run.model.state_dict()[name].view(-1)[2:3]
        held.view(torch.int32).bitwise_or_(1 << number)

    return change


def moments(key: str, change: Callable[[Tensor], Tensor], name: str | None = None) -> Callable[[Run], None]:
    """An entry of the optimizer's state, of one weight or of all."""

    def at(run: Run) -> None:
        states = run.optimizer.state.values() if name is None else [run.state_of(name)]  # pyright: ignore
        for state in states:
            if state.get(key) is not None:
                state[key].copy_(change(state[key].clone()))

    return at


def in_file(part: str, name: str, change: Callable[[Tensor], Tensor]) -> Fault:
    """The run is begun again from a checkpoint, one tensor of which (or one kind of moments) is another."""

    def change_file(saved: dict[str, Any]) -> None:
        if part == "model":
            saved["model"][name] = change(saved["model"][name].clone())
            return
        for state in saved["optimizer"]["state"].values():
            if state.get(name) is not None:
                state[name] = change(state[name].clone())

    return lambda run: setattr(run, "resumes", change_file)


def resumed(run: Run) -> None:
    """The run is begun again from its checkpoint, which is sound."""
    run.resumes = lambda saved: None


def of_another(run: Run) -> None:
    """The checkpoint's optimizer state is that of another run, whose gradients were a thousand times as long."""

    def change(saved: dict[str, Any]) -> None:
        for state in saved["optimizer"]["state"].values():
            state["exp_avg"] = 1e3 * torch.randn_like(state["exp_avg"])

    run.resumes = change


def no_optimizer(run: Run) -> None:
    """Only the weights were saved."""
    run.resumes = lambda saved: saved.update(optimizer=None)


def gradient(name: str, value: float, step: int = LATE) -> Fault:
    """One number of a gradient is another after one backward pass."""

    def spoil(run: Run) -> None:
        grad = run.model.get_parameter(name).grad
        if run.step == step and grad is not None:
            grad.view(-1)[:1] = value

    return lambda run: setattr(run, "after_backward", spoil)


def loss_at(step: int, change: Callable[[Tensor], Tensor]) -> Fault:
    """The loss is another at one step, when the run takes it."""

    def make(run: Run, usual: Any) -> Any:
        done: list[int] = []

        def loss(model: nn.Module, batch: Any) -> Any:
            made = usual(model, batch)
            if run.step != step or done or not run.active:
                return made
            done.append(step)
            return change(total(made))

        return loss

    return instead(make)


def built(change: Callable[[nn.Module], None]) -> Fault:
    """The model is made otherwise."""

    def fault(run: Run) -> None:
        with torch.no_grad():
            change(run.model)

    return fault


def scaled(name: str, factor: float) -> Callable[[nn.Module], None]:
    """A weight so many times as large."""
    return lambda model: model.get_parameter(name).mul_(factor).detach()  # pyright: ignore


def filled(name: str, value: float) -> Callable[[nn.Module], None]:
    """A weight of one value, or a part of it that nobody wrote."""
    return lambda model: model.get_parameter(name).view(-1)[:3].fill_(value).detach()  # pyright: ignore


def copied(run: Run) -> None:
    """The next sample is the bad one again."""
    run.rows[run.bad] = copy.deepcopy(run.rows[(run.bad + 1) % len(run.rows)])
