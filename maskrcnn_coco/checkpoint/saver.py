"""The checkpoints of a run: in the background, in turn, and never down to the last good one.

How one file is written and read is in `store`, whose functions are given here too.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from maskrcnn_coco.checkpoint import store
from maskrcnn_coco.checkpoint.content import (
    BEST,
    EPOCH,
    LAST,
    PREVIOUS,
    Header,
    epoch_name,
    plain_copy,
    plain_view,
    to_document,
)
from maskrcnn_coco.checkpoint.digests import DIGESTS, digests_of
from maskrcnn_coco.checkpoint.store import checkpoints, peek
from maskrcnn_coco.checkpoint.verification import verify
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import files
from maskrcnn_coco.system.memory import ran_out

_REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the disk is read-only",
    errno.EACCES: "the folder may not be written",
    errno.EIO: "the disk reports an error",
}


@dataclass
class _Job:
    """What to write: the first name is the file, ``last.pth`` one of its own, others become links to the first."""

    names: list[str]
    state: dict[str, Any] = field(repr=False)
    serial: int
    lasting: bool = True
    """Whether ``state`` is a copy, which training does not change."""


class Saver:
    """Writes the checkpoints of one run in a background thread; make it under the folder's `run_lock`.

    A full or failing disk never ends the run: older files stay as they are, `warnings` says what happened, the next
    save tries again, and an epoch's checkpoint that could not be written is written then. ``last.pth`` is always a file
    of its own; the one that is replaced stays as ``previous.pth``, unless an epoch's file holds its state too. So from
    the first save on two independent intact files are there at any moment, and one damaged file costs no run.
    """

    def __init__(self, folder: str | Path, *, keep_epochs: int | None = None) -> None:
        """Touches nothing yet. ``keep_epochs``: how many of the newest ``epoch_N.pth`` stay; None: all of them."""
        self.folder = Path(folder)
        self.keep_epochs = keep_epochs
        self.blocked_seconds = 0.0
        """Seconds that callers have waited in this object so far: for copies, and for an earlier save to end."""
        self.written = 0
        """Checkpoints that are on the disk."""
        self.failed = False
        """Whether the newest state that was to be saved is not on the disk."""
        self._serial: int | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None
        self._unwritten: _Job | None = None
        self._warnings: list[str] = []
        self._spare: dict[str, torch.Tensor] = {}
        self._headers: dict[tuple[int, int, int], Header | None] = {}

    def save_as_newest(self, state: dict[str, Any]) -> None:
        """``last.pth`` of a state that was read from the folder, which goes on from there; waited for.

        Raises:
            CheckpointError: it could not be written; the folder is as it was.
        """
        self._submit([LAST], state)
        sentences = self.wait()
        if self.failed:
            raise CheckpointError("; ".join(sentences), fix="free some space, or give another --checkpoint-dir")

    @property
    def busy(self) -> bool:
        """Whether a save is being written at this moment; another one would wait for it."""
        return self._running is not None and not self._running.done()

    def save_epoch(self, number: int, state: dict[str, Any], *, best: bool = False) -> None:
        """``epoch_N.pth`` and ``last.pth``, and ``best.pth`` if ``best``, of one copy of ``state``; returns at once."""
        self._submit([epoch_name(number), LAST, *([BEST] if best else [])], state)

    def save_last(self, state: dict[str, Any]) -> None:
        """``last.pth`` of a copy of ``state``; returns at once, unless a save is being written: see `busy`."""
        self._submit([LAST], state)

    def save_last_itself(self, state: dict[str, Any]) -> list[str]:
        """``last.pth`` of ``state`` without a copy, by this thread, when it returns: for who has no memory to spare.

        Returns:
            `warnings`.
        """
        kept, self._spare = self.wait(), {}
        self._write_itself([LAST], state)
        return kept + self.warnings()

    def wait(self) -> list[str]:
        """Wait until everything asked for is on the disk or has failed; returns `warnings`."""
        began = time.perf_counter()
        if self._running is not None:
            futures.wait([self._running])  # if Ctrl-C ends this wait, the next one finds the save still running
            running, self._running = self._running, None
            running.result()
        self.blocked_seconds += time.perf_counter() - began
        return self.warnings()

    def warnings(self) -> list[str]:
        """Sentences on what could not be written; each is given once."""
        taken, self._warnings = self._warnings, []
        return taken

    def _submit(self, names: list[str], state: dict[str, Any]) -> None:
        self._warnings = self.wait()  # one in flight; its warnings are kept for the caller who asks
        began = time.perf_counter()
        if self._unwritten is not None:
            self._spare = {}  # the last copy is still to be written
        job = self._copied(names, state)
        if job is None:
            self._write_itself(names, state)
        else:
            try:
                self._running = self._worker.submit(self._run, job)
            except RuntimeError:  # no room for a thread: written here, the step waits
                self._running = None
                self._run(job)
        self.blocked_seconds += time.perf_counter() - began

    def _write_itself(self, names: list[str], state: dict[str, Any]) -> None:
        try:
            job = _Job(names, plain_view(state), 0, lasting=False)
        except (MemoryError, RuntimeError) as e:
            if not ran_out(e):
                raise
            self._no_memory(names)
        else:
            self._run(job)

    def _no_memory(self, names: list[str]) -> None:
        self.failed = True
        self._warnings.append(
            f"the checkpoint {self.folder / names[0]} was not written: memory ran out; "
            "the older ones are intact, the run goes on, and the next checkpoint tries again"
        )

    def _copied(self, names: list[str], state: dict[str, Any]) -> _Job | None:
        """None: memory ran out; what was copied until then is given back."""
        try:
            return _Job(names, plain_copy(state, self._spare), 0)
        except (MemoryError, RuntimeError) as e:
            if not ran_out(e):
                raise
        self._spare = {}
        return None

    def _run(self, job: _Job) -> None:
        if self._serial is None:
            self._serial = _highest_serial(self.folder)
        self._serial += 1
        job.serial = self._serial
        earlier, self._unwritten = self._unwritten, None
        if earlier is not None:
            # What the new job writes anyway must not be overwritten by the older state.
            earlier.names = [n for n in earlier.names if n != LAST and n not in job.names]
            if earlier.names:
                self._attempt(earlier)
        self._attempt(job)

    def _attempt(self, job: _Job) -> None:
        self.failed = True
        try:
            self._write(job)
            self.failed = False
        except CheckpointError as e:
            self._warnings.append(f"the checkpoint {self.folder / job.names[0]} was not written: {e.what}")
        except OSError as e:
            reason = _REASONS.get(e.errno or 0, e.strerror or str(e))
            self._warnings.append(
                f"the checkpoint {self.folder / job.names[0]} was not written: {reason}; "
                "the older ones are intact, the run goes on, and the next checkpoint tries again"
            )
            if job.lasting and (EPOCH.fullmatch(job.names[0]) or BEST in job.names):
                self._unwritten = job
        except (MemoryError, RuntimeError) as e:
            # torch's writer says "unexpected pos" where a write to its file was broken off.
            if not ran_out(e) and "unexpected pos" not in str(e):
                raise
            self._no_memory(job.names)

    def _write(self, job: _Job) -> None:
        path = self.folder / job.names[0]
        state = {**job.state, DIGESTS: digests_of(job.state)}
        document = to_document(state, names=tuple(job.names), serial=job.serial)
        if path.name == LAST:
            self._write_last(document)
        else:
            self._write_file(path, document)
            # Written again, not linked: a bit that flips in one file must not take every name of the state with it.
            for name in sorted(job.names[1:], key=lambda n: n == LAST):
                if name == LAST:
                    self._write_last(document)
                else:
                    files.link_atomically(path, self.folder / name)
        if LAST in job.names and len({_identity(p) for p in checkpoints(self.folder) if self._header(p)}) < 2:
            self._write_file(self.folder / PREVIOUS, document)  # the first of all: there is no older one yet
        self.written += 1
        self._prune()

    def _write_last(self, document: dict[str, Any]) -> None:
        self._write_file(self.folder / LAST, document, keep_old_as=self._previous())

    def _write_file(self, path: Path, document: dict[str, Any], *, keep_old_as: Path | None = None) -> None:
        store.write_document(path, document, keep_old_as=keep_old_as)
        loop, names = document["loop"], tuple(document["names"])
        self._headers[_identity(path)] = Header(document["serial"], loop["step"], loop["epoch"], names)

    def _previous(self) -> Path | None:
        """The name for the ``last.pth`` to be replaced; None if an epoch's file has its state, or it is damaged."""
        last = self.folder / LAST
        if not last.exists():
            return None
        held = self._header(last)
        if held is None:
            # Kept for a look, and so that it does not take the place of an intact one.
            last.replace(last.with_name(f"{LAST}.damaged"))
            return None
        others = [p for p in checkpoints(self.folder) if EPOCH.fullmatch(p.name)]
        return (
            None if any((h := self._header(p)) and h.serial == held.serial for p in others) else self.folder / PREVIOUS
        )

    def _prune(self) -> None:
        """Remove the oldest epoch files beyond ``keep_epochs``, as long as two other intact states stay."""
        if self.keep_epochs is None:
            return
        epochs = [p for p in checkpoints(self.folder) if EPOCH.fullmatch(p.name)]
        epochs.sort(key=lambda p: int(p.stem.removeprefix("epoch_")))
        for old in epochs[: max(0, len(epochs) - self.keep_epochs)]:
            rest = [self._header(p) for p in checkpoints(self.folder) if p != old]
            if len({h.serial for h in rest if h is not None}) < 2:
                return
            old.unlink()

    def _header(self, path: Path) -> Header | None:
        """What ``path`` says it holds, if it is intact; read in full once, then remembered for this very file."""
        key = _identity(path)
        if key not in self._headers:
            self._headers[key] = None
            with contextlib.suppress(CheckpointError):
                self._headers[key] = verify(path)
        return self._headers[key]


def _identity(path: Path) -> tuple[int, int, int]:
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _highest_serial(folder: Path) -> int:
    highest, unknown = 0, False
    for path in checkpoints(folder):
        try:
            highest = max(highest, peek(path).serial)
        except CheckpointError:
            unknown = True
    # A disk that fails now may give the file back later: the saves from here on must still count as newer.
    return highest + 1_000_000 if unknown else highest
