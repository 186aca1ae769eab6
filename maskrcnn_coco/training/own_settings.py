"""What the optimizer is set to beside its rate: this run's own settings, whatever a file that it goes on from has.

A file holds them for each parameter group. A flag given now would never reach the optimizer if they were taken from
there; and a momentum that lost its point in another program would come back with the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from maskrcnn_coco.components import is_possible
from maskrcnn_coco.diagnosis.from_records import beyond_sense
from maskrcnn_coco.diagnosis.limits import SOUND
from maskrcnn_coco.replay.optimizer import set_again, settings_of
from maskrcnn_coco.training.session import Session
from maskrcnn_coco.wording import figure


def put_own(session: Session) -> list[str]:
    """Give each group of an optimizer just loaded this run's settings; returns the unusable ones, in words."""
    groups, own = session.optimizer.param_groups, session.own_settings
    names = [str(g.get("component", "")) for g in groups]
    found = unusable(settings_of(groups), own, names, session.schedule.lr)
    set_again(session.optimizer, own)
    if isinstance(session.optimizer, torch.optim.SGD):
        for group in groups:
            _with_momentum(session.optimizer, group)
    return found


def _with_momentum(optimizer: torch.optim.Optimizer, group: dict[str, Any]) -> None:
    """Make the buffers that a file of a run without momentum has none of: a fused SGD would leave them unwritten."""
    for p in group["params"] if group["momentum"] else ():
        if optimizer.state[p].get("momentum_buffer") is None:
            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p, requires_grad=False)


def unusable(
    loaded: Sequence[dict[str, Any]], own: Sequence[dict[str, Any]], names: Sequence[str], lr: Mapping[str, float]
) -> list[str]:
    """The settings of ``loaded`` that differ from ``own`` and that no run can have been trained with, each once.

    Args:
        names: the component of each group.
        lr: learning rate per component after the warm-up.
    """
    absurd = {s for s in SOUND if beyond_sense(s, [(dict(lr), loaded)], names)}
    found: dict[str, str] = {}
    for there, here in zip(loaded, own, strict=False):
        for name in there.keys() & here.keys():
            value = there[name]
            bad = name in absurd or not all(is_possible(v, below=_most(name)) for v in _each(value))
            if value != here[name] and bad:
                found.setdefault(name, f"{name} is {_words(value)}, and {_words(here[name])} in this run's settings")
    return sorted(found.values())


def _most(name: str) -> float:
    return 1.0 if name in ("momentum", "betas", "alpha") else float("inf")


def _each(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _words(value: Any) -> str:
    return ", ".join(figure(v) if isinstance(v, float) else str(v) for v in _each(value))
