"""What goes wrong in other people's trainings, and what only looks like it: faults and decoys, one function each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from anywhere.models import Batch
from torch import Tensor, nn

AT = 30
"""The step at which a fault comes; decoys too."""


@dataclass
class Live:
    """What a fault may reach into at a step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    guard: Any
    count: int = 0


@dataclass(frozen=True)
class Fault:
    """``batch`` changes the data, ``loss`` the loss, ``before`` the training before the step, ``after`` the gradients.

    ``steps``: at how many steps it comes, from `AT` on. ``decoy``: nothing may be refused.
    """

    name: str
    batch: Callable[[Batch], Batch] | None = None
    loss: Callable[[Tensor, Live], Tensor] | None = None
    before: Callable[[Live], None] | None = None
    after: Callable[[Live], None] | None = None
    steps: int = 1
    decoy: bool = False
    lr: float | None = None
    """Times the rate, from `AT` on."""


def _poisoned(value: float) -> Callable[[Batch], Batch]:
    def change(b: Batch) -> Batch:
        name = next((k for k in ("x", "reward", "noise") if k in b and b[k].is_floating_point()), None)
        if name is None:
            return b
        changed = b[name].clone()
        changed[5].reshape(-1)[:1] = value
        changed.view(len(changed), -1)[5, 0] = value
        return {**b, name: changed}

    return change


def _weights(live: Live) -> list[Tensor]:
    return [p for p in live.model.parameters() if p.ndim > 1]


def _nan_gradient(live: Live) -> None:
    gradient = _weights(live)[-1].grad
    assert gradient is not None
    gradient.view(-1)[3] = math.nan


def _inf_gradient(live: Live) -> None:
    gradient = _weights(live)[0].grad
    assert gradient is not None
    gradient.view(-1)[0] = math.inf


def _nan_state(live: Live) -> None:
    for state in live.optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.numel() > 1:
                value.view(-1)[1] = math.nan
                return


def _nan_lr(live: Live) -> None:
    live.optimizer.param_groups[0]["lr"] = math.nan


def _log_of_zero(loss: Tensor, live: Live) -> Tensor:
    return loss + torch.log(loss - loss.detach())


def _root_of_zero(loss: Tensor, live: Live) -> Tensor:
    """Finite forward, infinite backward."""
    return loss + (loss - loss.detach()).abs().sqrt()


def _huge(loss: Tensor, live: Live) -> Tensor:
    return loss * 1e30


def _same(loss: Tensor, live: Live) -> Tensor:
    return loss


def _rising(loss: Tensor, live: Live) -> Tensor:
    """A term that is brought in slowly: five per cent more at each step."""
    live.count += 1
    return loss * 1.05**live.count


def _clamped(live: Live) -> None:
    """WGAN's: weights are changed outside the step, at every step, and said once to be so."""
    live.guard.new_regime()
    with torch.no_grad():
        for p in live.model.parameters():
            p.clamp_(-0.9, 0.9)


def _new_head(live: Live) -> None:
    live.guard.new_regime()
    with torch.no_grad():
        _weights(live)[-1].normal_(0, 0.02)


FAULTS: tuple[Fault, ...] = (
    Fault("nan_input", batch=_poisoned(math.nan)),
    Fault("inf_input", batch=_poisoned(math.inf)),
    Fault("huge_input", batch=_poisoned(1e25)),
    Fault("nan_gradient", after=_nan_gradient),
    Fault("inf_gradient", after=_inf_gradient),
    Fault("nan_state", before=_nan_state),
    Fault("nan_lr", before=_nan_lr),
    Fault("log_of_zero", loss=_log_of_zero),
    Fault("root_of_zero", loss=_root_of_zero),
    Fault("huge_loss", loss=_huge),
    Fault("none", decoy=True),
    Fault("loss_times_3", loss=lambda loss, live: 3 * loss, steps=99, decoy=True),
    Fault("weighed_30", loss=lambda loss, live: 30 * loss, steps=99, decoy=True),
    Fault("rising_weight", loss=_rising, steps=99, decoy=True),
    Fault("negative_loss", loss=lambda loss, live: loss - 5, steps=99, decoy=True),
    Fault("clamped", before=_clamped, decoy=True),
    Fault("new_head", before=_new_head, decoy=True),
    Fault("hard_batch", loss=lambda loss, live: 4 * loss, decoy=True),
)
