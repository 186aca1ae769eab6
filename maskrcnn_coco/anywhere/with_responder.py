"""What every guard with a responder has: findings, incidents and a way back, whatever loop it stands in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from maskrcnn_coco.anywhere.cases import Looks
from maskrcnn_coco.anywhere.response import AlarmResponder
from maskrcnn_coco.anywhere.samples import Select
from maskrcnn_coco.anywhere.told import told
from maskrcnn_coco.errors import ConfigError, GuardWarning
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.records import Alarm, Finding, Incident


class WithResponder(Guard):
    """A guard whose ``responder`` finds causes and acts; None: it only refuses."""

    responder: AlarmResponder | None

    @property
    def finding(self) -> Finding | None:
        """The best finding of the last alarm; None without ``diagnose``, and before any."""
        return self.responder.findings[0] if self.responder is not None and self.responder.findings else None

    @property
    def incidents(self) -> list[Incident]:
        """Every incident so far."""
        return self.responder.incidents if self.responder is not None else []

    def state_dict(self) -> dict[str, Any]:
        """Plain data, for a checkpoint of the training's own: what was learned, and what was decided.

        Modules kept in float32, fused attention that is off, learning rates that were lowered, samples left out.
        """
        state = super().state_dict()
        return state if self.responder is None else {**state, "decisions": self.responder.decisions()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take back what `state_dict` gave; what was decided is in force again."""
        super().load_state_dict(state)
        if self.responder is not None and "decisions" in state:
            self.responder.put_in_force(state["decisions"])

    def rollback(self) -> int:
        """Put back the newest verified copy of the state; returns the step that it is of. ConfigError without one."""
        back = self.responder.go_back(self.next_step) if self.responder is not None else None
        if back is None:
            raise ConfigError("there is no copy of the state to go back to", fix="give the guard diagnose=True")
        return back


def make_responder(
    guard: Guard,
    forward: Callable[..., Any] | None,
    select: Select | None,
    logdir: str | Path | None,
    *,
    own_batches: bool = True,
) -> AlarmResponder:
    """The responder of ``guard``, whose components become the optimizer's groups: rates are lowered group by group."""
    folder = None if logdir is None else unused(usable(Path(logdir))) / "incidents"
    model = unwrapped(guard.model)
    responder = AlarmResponder(guard, model, forward=forward, select=select, folder=folder, own_batches=own_batches)
    parts = guard.instruments
    parts.groups = responder.groups.names
    parts.by_groups(responder.groups.of(model))
    parts.looks = Looks(responder)
    return responder


def usable(folder: Path) -> Path:
    """``folder``, where it is one or may become one.

    Raises:
        ConfigError: it, or what it would lie in, is a file.
    """
    first = next((p for p in (folder / "incidents", folder, *folder.parents) if p.exists()), folder)
    if first.is_file():
        raise ConfigError("logdir is a file", got=str(first), expected="a folder, which is made where there is none")
    return folder


def unused(folder: Path) -> Path:
    """``folder``, or the first of folder-2, folder-3 … without incidents: no run writes over another's."""
    found, number = folder, 1
    while any(found.glob("incidents/*.json")):
        number += 1
        found = folder.with_name(f"{folder.name}-{number}")
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel and torch.compile."""
    for name in ("_orig_mod", "module"):
        inner = getattr(model, name, None)
        if isinstance(inner, nn.Module) and type(model).__name__ in ("OptimizedModule", "DistributedDataParallel"):
            return unwrapped(inner)
    return model


def answer(guard: Guard, responder: AlarmResponder, alarm: Alarm) -> None:
    """Let the responder respond, and say what came of it."""
    parts = guard.instruments
    incident = responder.respond(alarm)
    if parts.on_alarm is None and parts.warns:
        warnings.warn(told(incident), GuardWarning, stacklevel=4)
