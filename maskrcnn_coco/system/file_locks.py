"""Locks on a folder that the kernel drops with the process, so that a killed run never leaves one held.

Where there is ``fcntl``: POSIX record locks on a file in the folder. Loader processes do not inherit them, and on NFS
they hold across machines. Elsewhere (Windows): the library filelock, on a file *beside* the folder. A locked file
cannot be read there by others, and a folder with an open file in it cannot be renamed; so the holder's name stands in a
file of its own, which nobody keeps open.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any, Protocol

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Held(Exception):
    """Another process holds the lock; ``certain`` is False where the file system knows no locks at all."""

    def __init__(self, holder: dict[str, Any], *, certain: bool) -> None:
        super().__init__(str(holder))
        self.holder = holder
        self.certain = certain


class FolderLock(Protocol):
    """A lock that is held."""

    def write_holder(self, holder: dict[str, Any]) -> None:
        """Say who holds it, for people; {} for nobody. Raises OSError."""
        ...

    def in_place(self) -> bool:
        """Whether the locked file still bears its name: a rename of the folder may have taken it away."""
        ...

    def close(self) -> None:
        """Give the lock back."""
        ...


def take(path: Path, *, force: bool = False) -> FolderLock:
    """Hold the lock of the folder that ``path``, the holder's file, lies in.

    Args:
        path: ``<folder>/.lock``; made if need be.
        force: go on where the file system knows no locks.

    Raises:
        Held: another process holds it, or there are no locks here and ``force`` is not given.
        OSError: the file cannot be made or opened.
    """
    return _Beside(path) if fcntl is None else _Record(path, force=force)


class _Record:
    """A POSIX record lock on the holder's own file."""

    def __init__(self, path: Path, *, force: bool) -> None:
        assert fcntl is not None
        self._path = path
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            no_locks = e.errno in _NO_LOCKS
            if no_locks and force:
                return
            holder = self._holder()
            os.close(self._fd)
            if no_locks or e.errno in (errno.EACCES, errno.EAGAIN):
                raise Held(holder, certain=not no_locks) from e
            raise

    def _holder(self) -> dict[str, Any]:
        try:
            return _as_holder(os.pread(self._fd, 4096, 0))
        except OSError:
            return {}

    def write_holder(self, holder: dict[str, Any]) -> None:
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, json.dumps(holder).encode(), 0)

    def in_place(self) -> bool:
        with contextlib.suppress(OSError):
            return os.stat(self._path).st_ino == os.fstat(self._fd).st_ino
        return False

    def close(self) -> None:
        os.close(self._fd)


class _Beside:
    """A lock of the library filelock beside the folder, by the folder's name."""

    def __init__(self, path: Path) -> None:
        from filelock import FileLock, Timeout

        self._path = path
        folder = path.parent
        # The root of a drive has no folder above it; nobody renames it either.
        name = folder / ".locked" if folder.parent == folder else folder.parent / f".{folder.name}.locked"
        self._lock = FileLock(name, timeout=0)
        try:
            self._lock.acquire()
        except Timeout as e:
            raise Held(self._holder(), certain=True) from e

    def _holder(self) -> dict[str, Any]:
        try:
            return _as_holder(self._path.read_bytes())
        except OSError:
            return {}

    def write_holder(self, holder: dict[str, Any]) -> None:
        self._path.write_bytes(json.dumps(holder).encode())

    def in_place(self) -> bool:
        return True

    def close(self) -> None:
        self._lock.release()


def _as_holder(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content or b"{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
