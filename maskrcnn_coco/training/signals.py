"""Ctrl-C, SIGTERM and a terminal that is closed (SIGHUP): the step in hand is finished, a checkpoint is saved, then the
run ends with 130, 143 or 129."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from maskrcnn_coco.system.endings import HANGUP, Ended
from maskrcnn_coco.system.streams import unbreakable

if TYPE_CHECKING:
    from maskrcnn_coco.distributed.ranks import Ranks

BREAK = getattr(signal, "SIGBREAK", None)
"""Ctrl-Break, on Windows: the same as Ctrl-C."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, *(s for s in (BREAK, HANGUP) if s is not None))
_NAMES = {signal.SIGINT: "Ctrl-C", HANGUP: "the terminal was closed"}
_current: list[Interrupts] = []


_SAVING = "stopping here and saving a checkpoint"


class AtOnce(Ended):
    """A signal came within `breakable`: what was going on there is given up."""


@contextlib.contextmanager
def breakable(*, alone: bool, answer: str = _SAVING) -> Iterator[None]:
    """Within it the first signal is acted on at once, by `AtOnce`: for work that changes nothing of the run, such as a
    replay or an evaluation, and may take minutes. Of several processes none may leave the others (not ``alone``).

    Args:
        alone: whether this process is all of the run.
        answer: what is said to the signal.

    Raises:
        AtOnce: at the signal, or before anything where it has come already.
    """
    watch = _current[-1] if _current and alone else None
    if watch is None:
        yield
        return
    watch.breaks = answer
    try:
        if watch.received:
            raise AtOnce(watch.received)
        yield
    finally:
        watch.breaks = None


class Interrupts:
    """Remembers the first signal; the second stops at once, with the last checkpoint intact.

    Outside the main thread (a notebook's worker, a test) signals cannot be caught; then nothing is changed.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._agreed: int | None = None
        self.breaks: str | None = None
        """Within `breakable`: what is said to a signal there."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if number == HANGUP and signal.getsignal(number) == signal.SIG_IGN:
                    continue  # nohup
                self._before[number] = signal.signal(number, self._handle)
        _current.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        _current.remove(self)
        for number, handler in self._before.items():
            # None: one that C code had installed, which Python can neither name nor put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @property
    def received(self) -> int:
        """The signal to act on, 0 for none. Of several processes none acts on what it alone has seen."""
        return self._seen if self._agreed is None else self._agreed

    def agree(self, ranks: Ranks) -> None:
        """Let all processes of a run end after the same step, although the signal reached them one by one."""
        if ranks.world > 1:
            self._agreed = max(int(f["signal"]) for f in ranks.all_flags({"signal": self._seen}))

    def _handle(self, number: int, frame: FrameType | None) -> None:
        number = signal.SIGINT if number == BREAK else number
        if self._seen:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            os.kill(os.getpid(), number)  # the default: the process ends here
            return
        self._seen = number
        name = _NAMES.get(number, "SIGTERM")
        now = self.breaks or "finishing this step and saving a checkpoint"
        # `train 2>&1 | tee log`, Ctrl-C: the reader is gone before the handler speaks. It must not matter.
        unbreakable(sys.stderr).write(f"\n{name}: {now}; once more stops at once\n")
        if self.breaks:
            self.breaks = None
            raise AtOnce(number)
