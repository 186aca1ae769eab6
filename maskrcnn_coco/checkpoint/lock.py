"""One run per folder: a second one stops before it touches anything. Standard library only.

POSIX record locks: the kernel drops them with the process, so that a killed run never leaves one held; loader processes
do not inherit them; on NFS they hold across machines. The file stays and says who held it last.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import files as durable

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
    fd = _acquire_in_place(folder, path)
    _held.add(path)
    try:
        _write_holder(fd, {"pid": os.getpid(), "host": socket.gethostname()})
        durable.remove_leftovers(folder)
        yield
    finally:
        _held.discard(path)
        with contextlib.suppress(OSError):
            _write_holder(fd, {})
        os.close(fd)


@contextlib.contextmanager
def move_lock(folder: str | Path) -> Iterator[None]:
    """Hold ``folder``, which is there, while it is renamed: nobody else moves or clears it, and no run begins in it.

    Raises:
        CheckpointError: a run holds it.
    """
    path = Path(folder).resolve() / _NAME
    fd = _acquire_in_place(Path(folder), path)
    try:
        yield
    finally:
        os.close(fd)


def _acquire_in_place(folder: Path, path: Path) -> int:
    """`_acquire`, of the file that bears the name afterwards: a rename may have taken the locked one away."""
    while True:
        fd = _acquire(folder, path)
        with contextlib.suppress(OSError):
            if os.stat(path).st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)


def require_free(folder: str | Path) -> None:
    """Raise CheckpointError if a run holds ``folder``. For a start that would rename or clear it."""
    path = Path(folder).resolve() / _NAME
    if path.exists():
        os.close(_acquire(Path(folder), path))


def _acquire(folder: Path, path: Path) -> int:
    if path in _held:  # and closing any file of a lock would drop it
        raise _taken(folder, {"pid": os.getpid(), "host": socket.gethostname()})
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
        holder = _holder(fd)
        no_locks = e.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
        if no_locks and not _alive(holder):
            return fd  # a file system without locks: the name of a living holder is all there is
        os.close(fd)
        if no_locks or e.errno in (errno.EACCES, errno.EAGAIN):
            raise _taken(folder, holder) from e
        raise
    return fd


def _holder(fd: int) -> dict[str, Any]:
    try:
        value = json.loads(os.pread(fd, 4096, 0) or b"{}")
    except (ValueError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def _write_holder(fd: int, holder: dict[str, Any]) -> None:
    os.ftruncate(fd, 0)
    os.pwrite(fd, json.dumps(holder).encode(), 0)


def _alive(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    if not isinstance(pid, int):
        return False
    if holder.get("host") != socket.gethostname():
        return True  # cannot be asked from here
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _taken(folder: Path, holder: dict[str, Any]) -> CheckpointError:
    return CheckpointError(
        f"another run is writing to {folder}",
        got=f"process {holder.get('pid', '(unknown)')} on {holder.get('host', '(unknown)')}",
        fix="give this run its own --checkpoint-dir, or end the other run first",
    )
