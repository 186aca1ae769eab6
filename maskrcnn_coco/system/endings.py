"""A process that is asked to end: by Ctrl-C, by SIGTERM, by a terminal that is closed. Standard library only."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

HANGUP = getattr(signal, "SIGHUP", None)
"""The terminal was closed, or the connection to it broke. Not on Windows."""
_ASKED = tuple(s for s in (signal.SIGTERM, HANGUP) if s is not None)


class Ended(KeyboardInterrupt):
    """The process was asked to end, by signal ``number``; what goes on is given up as at Ctrl-C."""

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__(f"signal {int(number)}")
        self.number = int(number)


def code_of(interrupt: KeyboardInterrupt) -> int:
    """The exit code that says which signal it was: 130 for Ctrl-C, 143 for SIGTERM, 129 for a closed terminal."""
    return 128 + (interrupt.number if isinstance(interrupt, Ended) else signal.SIGINT)


def code_of_exit(error: BaseException) -> int:
    """The exit code of a process that ``error`` ends: Ctrl-C, ``SystemExit`` (a text counts as 1), anything else."""
    if isinstance(error, KeyboardInterrupt):
        return code_of(error)
    code = error.code if isinstance(error, SystemExit) else 1
    return 0 if code is None else code if isinstance(code, int) else 1


@contextlib.contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """While it lasts, SIGTERM and a closed terminal raise `Ended`, so that a verb cleans up, and says that it ended.

    Only where the system's default stands: not what a caller has set, nor what ``nohup`` has turned off; and only in
    the main thread, the one that may.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in _ASKED:
            if signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # once more ends it at once
    raise Ended(number)
