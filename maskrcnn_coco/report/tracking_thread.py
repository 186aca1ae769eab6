"""Between a run and somebody's tracking server: a thread, which may fail, hang or die without the run knowing.

What a run hands over waits in a queue of bounded length; a call never blocks and never raises. A server that fails is
named once and asked again later, ever less often. What did not fit into the queue stands in the run's own
``metrics.jsonl``, and is sent at the end from there. The end waits for the thread for a bounded time. Torch-free.
"""

from __future__ import annotations

import collections
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from maskrcnn_coco.records import EpochRecord, EvalRecord, Incident, Result, RunFinding, StepRecord, record_from
from maskrcnn_coco.report.metrics_file import METRICS, read_metrics
from maskrcnn_coco.report.scalars import scalars_of

WAITING = 2000
"""Most records that wait for a slow server; a run's later ones are read from its file at the end."""
BATCH = 200
"""Most rows that are handed to a server at once."""
FINISH = 60.0
"""Seconds that the end of a run waits for what is still to be sent."""
FAILED = 5.0
"""The same, for a server that has failed before."""
RETRY = (1.0, 60.0)
"""Seconds until a server that failed is asked again: at first, and at most."""
_KINDS = {"step": StepRecord, "epoch": EpochRecord, "eval": EvalRecord}


class Row(NamedTuple):
    """The numbers of one record. ``time``: seconds since 1970."""

    step: int
    time: float
    values: dict[str, float]


class About(NamedTuple):
    """What a server is told first. ``settings`` and ``tags`` are plain values; ``name`` is the run's."""

    name: str
    folder: Path
    settings: dict[str, Any]
    tags: dict[str, str]


class Ending(NamedTuple):
    """What a server is told last: how the run ended, and the files that are worth keeping (those that exist)."""

    result: Result | None
    files: Sequence[Path] = ()
    card: str = ""


class Server(Protocol):
    """A tracking service; every method may raise, block, or be called again after it raised."""

    def begin(self, about: About) -> None:
        """A run begins, or goes on."""
        ...

    def rows(self, rows: list[Row]) -> None:
        """Numbers, in the order in which they were recorded."""
        ...

    def note(self, key: str, text: str, step: int) -> None:
        """An incident or a finding."""
        ...

    def end(self, ending: Ending) -> None:
        """The run is over."""
        ...


class Fence:
    """An observer of a run that hands everything on to ``server``, in a daemon thread.

    Args:
        name: for messages. make: makes the server, in the thread: its imports may take seconds.
        warn: called with one sentence, from this or the other thread.
    """

    def __init__(self, name: str, make: Callable[[], Server], about: About, warn: Callable[[str], None]) -> None:
        self.name, self._make, self._about, self._warn = name, make, about, warn
        self._queue: collections.deque[StepRecord | EpochRecord | EvalRecord | Incident | RunFinding] = (
            collections.deque()
        )
        self._news = threading.Condition()
        self._missed: int | None = None  # the step from which on the file has to be read
        self._ending: Ending | None = None
        self._said = False
        self._done = threading.Event()
        self._server: Server | None = None
        self._begun = False
        self._thread = threading.Thread(target=self._work, name=f"track {name}", daemon=True)
        self._thread.start()

    def __call__(self, record: Any) -> None:
        """Take a record; returns at once."""
        with self._news:
            if self._missed is not None and isinstance(record, StepRecord | EpochRecord | EvalRecord):
                return
            if len(self._queue) >= WAITING and isinstance(record, StepRecord | EpochRecord | EvalRecord):
                self._missed = record.step
                return
            self._queue.append(record)
            self._news.notify()

    def finish(self, ending: Ending) -> bool:
        """Send what waits and what was missed, then ``ending``. Returns whether all of it arrived in time."""
        with self._news:
            if self._ending is not None or self._done.is_set():
                return self._done.is_set()
            self._ending = ending
            self._news.notify()
        seconds = FAILED if self._said else FINISH
        arrived = self._done.wait(seconds)
        if not arrived:
            where = self._about.folder / METRICS
            self._warn(f"{self.name} did not take everything within {seconds:g} s; the whole record is in {where}")
        return arrived

    def _work(self) -> None:
        pause = RETRY[0]
        with _quiet_thread():
            while not self._done.is_set():
                try:
                    self._send()
                    pause = RETRY[0]
                except (Exception, SystemExit) as e:
                    if not self._said:
                        self._said = True
                        what = " ".join(str(e).split())[:300]
                        self._warn(
                            f"{self.name} does not take this run's records ({type(e).__name__}: {what}): training "
                            "goes on, they are sent when it does"
                        )
                    ended = time.monotonic() + pause
                    pause = min(2 * pause, RETRY[1])
                    with self._news:
                        while self._ending is None and time.monotonic() < ended:
                            self._news.wait(ended - time.monotonic())
                    if self._ending is not None:
                        time.sleep(min(1.0, RETRY[0]))

    def _send(self) -> None:
        """Wait for news and send them; what was sent leaves the queue, so that a failure loses nothing."""
        if self._server is None:
            self._server = self._make()
        if not self._begun:
            self._server.begin(self._about)
            self._begun = True
        with self._news:
            while not self._queue and self._ending is None:
                self._news.wait()
            waiting = [self._queue[i] for i in range(min(BATCH, len(self._queue)))]
        if not waiting:
            self._end(self._server)
            return
        rows = []
        for record in waiting:
            if isinstance(record, StepRecord | EpochRecord | EvalRecord):
                rows.append(Row(record.step, time.time(), scalars_of(record)))
            else:
                break
        if rows:
            self._server.rows(rows)
        else:
            self._server.note(*_note_of(waiting[0]))
        with self._news:
            for _ in range(len(rows) or 1):
                self._queue.popleft()

    def _end(self, server: Server) -> None:
        assert self._ending is not None
        if self._missed is not None:
            rows = _rows_from(self._about.folder, self._missed)
            for i in range(0, len(rows), BATCH):
                server.rows(rows[i : i + BATCH])
            self._missed = None
        server.end(self._ending)
        self._done.set()


def _rows_from(folder: Path, step: int) -> list[Row]:
    """What the run wrote down itself from ``step`` on."""
    rows, now = [], time.time()
    for line in read_metrics(folder / METRICS):
        kind = _KINDS.get(str(line.get("kind")))
        if kind is not None and line.get("step", -1) >= step:
            values = scalars_of(record_from(kind, line))
            rows.append(Row(line["step"], now, {k: float(v) for k, v in values.items()}))  # "nan" is a text there
    return rows


def _note_of(record: Any) -> tuple[str, str, int]:
    if isinstance(record, Incident):
        return (
            f"incident.{record.id}",
            f"{record.cause} at step {record.step} (confidence {record.confidence:.2f}): {record.action.kind}, "
            f"{record.outcome}; {record.fix}",
            record.step,
        )
    return f"finding.{record.code}", f"{record.severity}: {record.message}; {record.fix}", 0


class _quiet_thread:  # noqa: N801 - used like a function
    """What this thread prints goes to stderr: stdout may be one JSON object. Other threads print where they did."""

    def __enter__(self) -> None:
        self._before = sys.stdout
        sys.stdout = _ByThread(self._before, threading.get_ident())  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        if getattr(sys.stdout, "_stream", None) is self._before:
            sys.stdout = self._before


class _ByThread:
    def __init__(self, stream: TextIO, thread: int) -> None:
        self._stream, self._thread = stream, thread

    def write(self, text: str) -> int:
        return (sys.stderr if threading.get_ident() == self._thread else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
