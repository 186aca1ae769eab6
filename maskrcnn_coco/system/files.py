"""Files that are there whole or not at all. Standard library only.

A file is written beside its name, flushed, fsynced, read back, renamed, and its folder fsynced. A kill or a power cut
at any point leaves the old file or the new one. A file whose fsync failed is thrown away and never fsynced again: after
a failed fsync the kernel marks the lost pages clean, so that a second one would report success (Rebello, ATC 2020).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_TEMP = re.compile(r"\..+\.\d+\.\d+\.tmp")
_BUFFER = 1 << 20
_serial = itertools.count()
# What file systems answer that know no hard links (FAT, some network and user-space ones), or no more of them.
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EACCES, errno.EINVAL}
_NO_FULL_SYNC = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.ENOSYS}

# Windows would take "\n" for the end of a line, and Ctrl-Z for that of a file.
_PLAIN = getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
READING = os.O_RDONLY | _PLAIN | getattr(os, "O_NONBLOCK", 0)
"""How strangers' files are opened for reading, as bytes: a pipe or a device does not wait for a writer."""
_SCANNED = os.name == "nt"
PATIENCE = 2.0
"""Seconds in which a file that another program has open (Windows: a virus scanner, an indexer) may be let go."""


def sync(fd: int) -> None:
    """Put what was written to ``fd`` on the disk, through the disk's own cache. Raises OSError.

    macOS: fsync(2) hands the data to the drive, which may keep them in its cache through a power cut and write them in
    any order; F_FULLFSYNC has it write them out. File systems that do not know it (network shares) get fsync(2).
    """
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if fcntl is not None and full is not None:
        try:
            fcntl.fcntl(fd, full)
            return
        except OSError as e:
            if e.errno not in _NO_FULL_SYNC:
                raise
    os.fsync(fd)


class Sink:
    """A new file, open for writing in one pass; small writes are gathered to 1 MiB."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _PLAIN, 0o666)
        self._pending = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append ``data``; returns its length in bytes. Raises OSError."""
        if len(data) >= _BUFFER:
            self.flush()
            self._write_all(data)
        else:
            self._pending += data
            if len(self._pending) >= _BUFFER:
                self.flush()
        return len(data)

    def flush(self) -> None:
        """Hand what was gathered to the kernel."""
        if self._pending:
            data, self._pending = self._pending, bytearray()
            self._write_all(data)

    def _write_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        while len(view):  # a write may take less than it was given
            view = view[os.write(self._fd, view) :]

    def sync(self) -> None:
        """Everything written is on the disk when this returns."""
        self.flush()
        sync(self._fd)

    def close(self) -> None:
        """Close the file; what was gathered and not flushed is dropped."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            os.close(fd)


def write_atomically(
    path: Path,
    write: Callable[[Sink], None],
    *,
    verify: Callable[[Path], None] | None = None,
    keep_old_as: Path | None = None,
) -> None:
    """Replace ``path`` by what ``write`` puts into the sink, or leave it as it was.

    Args:
        path: the file; its folder is made if it is not there.
        write: called once with the new file.
        verify: called with the finished file under its temporary name; raises to keep ``path`` as it was.
        keep_old_as: another name for the file that is replaced; two of old-old, old and new have a name at any moment.

    Raises:
        OSError: the disk is full, failing or read-only … The temporary file is gone, ``path`` is as it was; except
            where syncing the folder failed: then the new file is in place, but a power cut may still undo it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, kept = _beside(path), None
    try:
        _write_new(temporary, write)
        if verify is not None:
            verify(temporary)
        if keep_old_as is not None and path.exists():
            kept = _beside(keep_old_as)
            _link_or_copy(path, kept)
        _rename(temporary, path)
        if kept is not None and keep_old_as is not None:
            _rename(kept, keep_old_as)
    except BaseException:
        _remove_quietly(temporary)
        if kept is not None:
            _remove_quietly(kept)
        raise
    sync_folder(path.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Replace ``path`` by ``content``, whole or not at all. Raises OSError; the old content stays."""

    def put(sink: Sink) -> None:
        sink.write(content)

    write_atomically(path, put)


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` in UTF-8, whole or not at all; what UTF-8 cannot hold becomes "?"."""
    write_bytes(path, text.encode("utf-8", "replace"))


def link_atomically(source: Path, target: Path) -> None:
    """Make ``target`` a second name of ``source`` (a copy where there are no hard links), in one step.

    Raises:
        OSError: as `write_atomically`; ``target`` is as it was.
    """
    if target.exists() and target.samefile(source):
        return  # rename(2) between two names of one file does nothing, and would leave the temporary name
    temporary = _beside(target)
    try:
        _link_or_copy(source, temporary)
        _rename(temporary, target)
    except BaseException:
        _remove_quietly(temporary)
        raise
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Put the names in ``folder`` on the disk, where the system opens folders (Windows does not). Raises OSError."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(fd)
    except OSError as e:
        if e.errno != errno.EINVAL:  # some network file systems sync names by themselves and refuse to be asked
            raise
    finally:
        os.close(fd)


def remove_leftovers(folder: Path) -> list[str]:
    """Delete the temporary files that a killed run left in ``folder``; returns their names. Call it under the lock."""
    leftovers = [p for p in sorted(folder.iterdir()) if _TEMP.fullmatch(p.name) and p.is_file()]
    return [p.name for p in leftovers if _remove_quietly(p)]


def _rename(source: Path, target: Path) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(source, target)
        except PermissionError:
            if not _SCANNED or time.monotonic() >= until:
                raise
            time.sleep(0.05)


def _write_new(path: Path, write: Callable[[Sink], None]) -> None:
    sink = Sink(path)
    try:
        write(sink)
        sink.sync()
    finally:
        sink.close()


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as e:
        if e.errno not in _NO_LINKS:
            raise
        with source.open("rb") as f:
            _write_new(target, lambda sink: shutil.copyfileobj(f, sink, _BUFFER))


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.{next(_serial)}.tmp")


def _remove_quietly(path: Path) -> bool:
    # The caller is already on its way out with the error that matters; the next start removes what stays.
    with contextlib.suppress(OSError):
        path.unlink()
        return True
    return False


def private(path: Path) -> bool:
    """Whether ``path`` is this user's, and nobody else may write there: what is kept is trusted no further."""
    if not hasattr(os, "geteuid"):
        return True
    status = os.stat(path)
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


def cache_folder(name: str) -> Path:
    """Where this program keeps what it can make again: in the user's cache folder, as this system has it.

    A container's user may have no home, or one that only root may write to: then below the temporary folder.
    """
    base = _user_cache()
    if base is None or not _can_hold_files(base):
        base = Path(tempfile.gettempdir()) / f"maskrcnn_coco-{os.getuid() if hasattr(os, 'getuid') else 0}"
    return base / "maskrcnn_coco" / name


def _can_hold_files(folder: Path) -> bool:
    """Whether ``folder`` is, or can be made, a folder to write in: no file in its way, however executable."""
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def _user_cache() -> Path | None:
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base).absolute()
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user id without a name
        return None
    if sys.platform not in ("win32", "darwin"):
        return home / ".cache"
    import platformdirs

    return platformdirs.user_cache_path()


@contextlib.contextmanager
def in_the_same_folder() -> Iterator[None]:
    """The working folder is afterwards that of before, whatever a stranger's code did: relative paths go on to mean the
    same files."""
    try:
        before = os.getcwd()
    except OSError:  # it was deleted: there is nothing to come back to
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if os.getcwd() != before:
                os.chdir(before)
