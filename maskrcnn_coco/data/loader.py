"""Batches ahead of time, from worker processes that may die."""

from __future__ import annotations

import errno
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch._C import _remove_worker_pids
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from maskrcnn_coco.data.batch import Batch, SampleError, Source, make_batch
from maskrcnn_coco.data.plan import Plan, SampleKey
from maskrcnn_coco.data.shared_memory import Parcel, pack
from maskrcnn_coco.errors import DataError

RESPAWNS = 3
"""How often in a row dead or silent workers are replaced before the loader gives up."""
TIMEOUT = 300.0
"""Seconds a worker may take for one step."""
POLL = 2.0
"""Seconds between two looks at the workers' health while waiting for them."""
Keys = list[list[SampleKey]]


SHARED = Path("/dev/shm")
"""Where batches travel from workers, and the semaphores of their queues; small in many containers (64 MB)."""
TOO_MANY = os.strerror(errno.EMFILE)
_NO_ROOM = (errno.ENOSPC, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN)
_FULL = ("bus error", "shared memory", "no space left", "too many open files", "file too large")
_DESCRIPTORS = 24, 16
"""File descriptors that must be free to start workers, and for each of them: with too few torch leaves queues half
made, and waits for them."""


class _WorkersLostError(Exception):
    """Workers died, or were silent for too long."""


@dataclass
class _Failure:
    """An error on its way from a worker: it would lose its fields in the DataLoader's own transport."""

    what: str
    got: str | None
    expected: str | None
    fix: str | None
    key: SampleKey

    def error(self) -> SampleError:
        """The error again."""
        return SampleError(DataError(self.what, got=self.got, expected=self.expected, fix=self.fix), self.key)


class _Steps(Dataset):
    """Keys of one step → its micro-batches. Holds the data set only: the plan stays in the main process."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitem__(self, keys: Keys) -> list[Batch] | Parcel | _Failure:
        try:
            batches = [make_batch(self.source, micro) for micro in keys]
            return batches if get_worker_info() is None else pack(batches)
        except SampleError as e:
            return _Failure(e.what, e.got, e.expected, e.fix, e.key)


class _Coming(Sampler):
    """The keys of the steps from ``start`` to ``end``."""

    def __init__(self, plan: Plan, start: int, end: int) -> None:
        self.plan, self.start, self.end = plan, start, end

    def __iter__(self) -> Iterator[Keys]:
        for step in range(self.start, self.end):
            yield self.plan.step(step)[1]

    def __len__(self) -> int:
        return self.end - self.start


class Loader:
    """Iterates over the micro-batches of each step, to the end of the epoch. See `build_loader`."""

    def __init__(
        self,
        source: Source,
        plan: Plan,
        start: int,
        end: int,
        workers: int,
        pin: bool,
        timeout: float,
        method: str,
        warn: Callable[[str], None] = warnings.warn,
    ) -> None:
        self.source, self.plan, self.next_step, self.end = source, plan, start, end
        self.workers, self.pin, self.timeout, self.method = workers, pin, timeout, method
        self.warn = warn
        self.respawned = 0
        self._iterator: Iterator[Any] | None = None
        if source.provisional:
            plan.expect_names()

    def __iter__(self) -> Loader:
        return self

    def __len__(self) -> int:
        return self.end - self.next_step

    def __next__(self) -> list[Batch]:
        """Micro-batches of the next step.

        Raises:
            SampleError: a sample cannot be read.
            DataError: workers keep dying.
        """
        while self.next_step < self.end:
            batches = self._fetch()
            if self._news(batches):
                # An image turned out to be one in quarantine: the plan has changed.
                self.restart(self.next_step)
                continue
            self.next_step += 1
            return batches
        self.close()
        raise StopIteration

    def restart(self, step: int) -> None:
        """Go on at planned step ``step`` and forget what was made ahead: after a change of quarantine."""
        self.close()
        self.next_step = step

    def close(self, *, now: bool = False) -> None:
        """Stop the workers. ``now``: do not wait for what they are doing."""
        iterator, self._iterator = self._iterator, None
        if now:
            for worker in getattr(iterator, "_workers", ()):
                worker.kill()
        shutdown = getattr(iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()

    def _news(self, batches: list[Batch]) -> bool:
        if not self.source.provisional:
            return False
        waiting = [self.plan.rename(key.index, key.image_id) for batch in batches for key in batch.keys]
        return any(waiting)

    def _fetch(self) -> list[Batch]:
        for attempt in range(RESPAWNS + 1):
            try:
                made = self._next()
            except _WorkersLostError as e:
                full = self._bus_error() or any(words in str(e).lower() for words in _FULL)
                self.close(now=True)
                self.respawned += 1
                if attempt == RESPAWNS and full:
                    self._alone(_reason(e))
                    return self._fetch()
                if attempt == RESPAWNS:
                    raise DataError(
                        f"the loader processes failed {RESPAWNS + 1} times in a row at step {self.next_step}",
                        got=_reason(e),
                        fix="most often memory ran out: try fewer --workers, or --workers 0 to see the error itself",
                    ) from e
                continue
            if isinstance(made, _Failure):
                self.close()
                raise made.error()
            return made.open() if isinstance(made, Parcel) else made
        raise AssertionError("unreachable")

    def _bus_error(self) -> bool:
        """Whether a worker met a page of shared memory that there was no room for."""
        codes = [worker.exitcode for worker in getattr(self._iterator, "_workers", ())]
        return -getattr(signal, "SIGBUS", 0) in codes

    def _without_workers(self, why: str) -> None:
        """Make the batches here from now on: they are the same ones."""
        self.workers = 0
        self.warn(f"batches are made in this process, without workers: {why}. --workers 0 does so from the start")

    def _alone(self, why: str) -> None:
        """Make the batches here from now on: a full /dev/shm must not end a run."""
        self.workers = 0
        if TOO_MANY.lower() in why.lower():
            self.warn(
                f"the loader processes cannot open what they need: {why}; batches are made in this process for "
                "the rest of the epoch. --workers 0 does so from the start; ulimit -n 4096 before it allows more"
            )
            return
        free = f" ({shutil.disk_usage(SHARED).free >> 20} MiB free)" if SHARED.is_dir() else ""
        self.warn(
            f"the loader processes have no room in {SHARED}{free}: {why}; batches are made in this process for the "
            "rest of the epoch. --workers 0 does so from the start; docker's --shm-size makes room"
        )

    def _next(self) -> list[Batch] | Parcel | _Failure:
        """The next item; asks every few seconds whether the workers still live."""
        if self._iterator is None:
            try:
                self._iterator = self._start()
            except OSError as e:
                if self.workers == 0 or e.errno not in _NO_ROOM:
                    raise
                self._alone(e.strerror or str(e))
                self._iterator = self._start()
        patience = time.monotonic() + self.timeout
        while True:
            try:
                return next(self._iterator)
            except MemoryError as e:
                if self.workers == 0:
                    raise
                raise _WorkersLostError(f"out of memory in a loader process: {e}") from e
            except OSError as e:  # a batch that arrived could not be opened
                if self.workers == 0 or e.errno not in _NO_ROOM:
                    raise
                raise _WorkersLostError(e.strerror or str(e)) from e
            except RuntimeError as e:
                lost = self.workers > 0 and ("DataLoader" in str(e) or any(w in str(e).lower() for w in _FULL))
                if lost and "timed out" in str(e) and time.monotonic() < patience:
                    continue
                if lost:
                    raise _WorkersLostError(str(e)) from e
                raise

    def _start(self) -> Iterator[Any]:
        if self.workers and multiprocessing.current_process().daemon:
            self._without_workers("a daemonic process may have no children")
        if self.workers and _free_descriptors() < _DESCRIPTORS[0] + _DESCRIPTORS[1] * self.workers:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        loader = DataLoader(
            _Steps(self.source),
            batch_size=None,
            sampler=_Coming(self.plan, self.next_step, self.end),
            num_workers=self.workers,
            pin_memory=self.pin,
            timeout=min(POLL, self.timeout) if self.workers else 0,
            multiprocessing_context=multiprocessing.get_context(self.method) if self.workers else None,
            worker_init_fn=_begin_worker if self.workers else None,
        )
        with warnings.catch_warnings(), _no_child_signals():
            # Python warns of any fork while threads run. The children run numpy and single-threaded torch only.
            warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork", category=DeprecationWarning)
            iterator = iter(loader)
        _unknown_to_torch(iterator)
        return iterator


def _free_descriptors() -> float:
    """How many more files this process may open; inf where the system does not say."""
    try:
        import resource

        return resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/proc/self/fd"))
    except (ImportError, OSError):
        return math.inf


def _reason(error: Exception) -> str:
    """What a worker met: the last line of a traceback that it sent, else the first."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1 if lines[0].startswith("Caught") else 0]


@contextmanager
def _no_child_signals() -> Iterator[None]:
    """Keep torch from installing its SIGCHLD handler.

    It raises in the main thread wherever that is when a worker dies: in the middle of an optimizer step, say. We
    ask for the workers' health instead, while waiting for them.
    """
    if not hasattr(signal, "SIGCHLD") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _unknown_to_torch(iterator: Any) -> None:
    """Take the workers from torch's own list: a plain DataLoader that was used before left its handler behind."""
    if getattr(iterator, "_worker_pids_set", False):
        _remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False


def _begin_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group, but the main process decides when to stop; it stops workers by SIGTERM.
    for name in ("SIGINT", "SIGBREAK"):  # the second is Ctrl-Break, on Windows
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    torch.set_num_threads(1)


def build_loader(
    source: Source,
    plan: Plan,
    epoch: int,
    start_step: int,
    *,
    workers: int = 0,
    pin: bool = False,
    timeout: float = TIMEOUT,
    method: str | None = None,
    warn: Callable[[str], None] = warnings.warn,
) -> Loader:
    """The micro-batches of each planned step, from ``start_step`` (counted over all epochs) to the end of ``epoch``.

    What comes is the same for any number of workers. A worker that is killed is replaced, and the step made again.

    Args:
        workers: processes; 0 makes batches in this one.
        pin: page-locked memory, for CUDA.
        timeout: seconds a worker may take for one step.
        method: how workers start, "fork" or "spawn"; fork shares the annotations' memory, and is the default on Linux.
        warn: told where there is no shared memory for workers, and batches are made in this process instead.

    Raises:
        SampleError: while iterating; a sample cannot be read (it names the file; ``key`` tells the image).
        DataError: while iterating; workers keep dying.
    """
    end = (epoch + 1) * plan.steps_per_epoch
    method = method or ("fork" if sys.platform == "linux" else "spawn")
    return Loader(source, plan, start_step, end, workers, pin, timeout, method, warn)
