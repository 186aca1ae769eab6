"""One run per folder: a second one stops before it touches anything. Standard library only.

The lock goes with its process (`system.file_locks`). The file ``.lock`` stays and says who held it last.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import files
from maskrcnn_coco.system.file_locks import FolderLock, Held, take
from maskrcnn_coco.system.processes import alive

_NAME = ".lock"
_held: set[Path] = set()  # record locks do not exclude each other within one process


@contextlib.contextmanager
def run_lock(folder: str | Path) -> Iterator[None]:
    """Hold ``folder`` (made if needed) for this run, and clear what a killed run left half-written in it.

    Raises:
        CheckpointError: another run holds it; names its process and host.
        OSError: the folder cannot be made or written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / _NAME
    lock = _acquire_in_place(folder, path)
    _held.add(path)
    try:
        lock.write_holder({"pid": os.getpid(), "host": socket.gethostname()})
        files.remove_leftovers(folder)
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            lock.write_holder({})
        lock.close()


@contextlib.contextmanager
def move_lock(folder: str | Path) -> Iterator[None]:
    """Hold ``folder``, which is there, while it is renamed: nobody else moves or clears it, and no run begins in it.

    Raises:
        CheckpointError: a run holds it.
    """
    path = Path(folder).resolve() / _NAME
    lock = _acquire_in_place(Path(folder), path)
    try:
        yield
    finally:
        lock.close()


def _acquire_in_place(folder: Path, path: Path) -> FolderLock:
    """`_acquire`, of the file that bears the name afterwards: a rename may have taken the locked one away."""
    while True:
        lock = _acquire(folder, path)
        if lock.in_place():
            return lock
        lock.close()


def require_free(folder: str | Path) -> None:
    """Raise CheckpointError if a run holds ``folder``. For a start that would rename or clear it."""
    path = Path(folder).resolve() / _NAME
    if path.exists():
        _acquire(Path(folder), path).close()


def _acquire(folder: Path, path: Path) -> FolderLock:
    if path in _held:  # and closing any file of a lock would drop it
        raise _taken(folder, {"pid": os.getpid(), "host": socket.gethostname()})
    try:
        return take(path)
    except Held as held:
        if held.certain or _alive(held.holder):
            raise _taken(folder, held.holder) from held
    try:
        return take(path, force=True)  # a file system without locks: the name of a living holder is all there is
    except Held as held:
        raise _taken(folder, held.holder) from held


def _alive(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    if holder.get("host") != socket.gethostname():
        return True  # cannot be asked from here
    return alive(pid)


def _taken(folder: Path, holder: dict[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"another run is writing to {folder}",
        got=f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown)')}",
        fix="give this run its own --checkpoint-dir, or end the other run first",
    )
