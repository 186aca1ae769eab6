"""The verdict on an error that ends a loop between its batch and its step, said before Python shows the traceback.

In a notebook it is said below the traceback of the cell, which no hook of Python's sees. A label that is no class
raises in the loss, which is the loop's own: no call of the guard's sees it pass.
"""

from __future__ import annotations

import contextlib
import sys
import weakref
from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

from maskrcnn_coco.errors import GuardStop


class EndedBy(Protocol):
    """A guard that can look into what ended its loop."""

    def ended_by(self, error: BaseException) -> None: ...


_guards: weakref.WeakSet[Any] = weakref.WeakSet()
_before: list[Callable[[type[BaseException], BaseException, TracebackType | None], Any]] = []


def listen(guard: EndedBy) -> None:
    """Ask ``guard`` whenever an error ends this process, or a cell. The hook of others, if any, comes after."""
    _guards.add(guard)
    if not _before:
        _before.append(sys.excepthook)
        sys.excepthook = _ended
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if shell is not None:
            shell.events.register("post_run_cell", _cell_ended)


def beside(guard: EndedBy) -> bool:
    """Whether another guard of this process listens: its network may be a part of what this one's loss is made of."""
    return any(other is not guard for other in _guards)


def _ended(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    _ask(error)
    _before[0](kind, error, trace)


def _cell_ended(result: Any) -> None:
    """``result``: IPython's `ExecutionResult` of a cell."""
    if result.error_in_exec is not None:
        _ask(result.error_in_exec)


def _ask(error: BaseException) -> None:
    for guard in list(_guards):
        try:
            guard.ended_by(error)
        except GuardStop as stop:
            with contextlib.suppress(OSError):
                print(stop, file=sys.stderr)
        except Exception:  # nothing here may hide what the loop itself ended with
            continue
