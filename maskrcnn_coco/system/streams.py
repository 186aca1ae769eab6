"""Standard streams that may die: a reader that has gone, a full disk, a closed descriptor. Standard library only.

What is said is lost then, never the run: a write to a dead stream ends like any other.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any, TextIO

NARROWEST, USUAL = 20, 80
"""Columns of a terminal with which a line can be read, and those of one that says less: containers say 0."""


def stated_width() -> int | None:
    """The columns to write in where `COLUMNS` states too few to read; None: as the terminal says."""
    stated = os.environ.get("COLUMNS", "")
    return USUAL if stated.isdigit() and int(stated) < NARROWEST else None


class Unbreakable:
    """A text stream whose writes never raise. After the first that failed its descriptor is the null device, so that
    neither C code nor Python's own flush at exit meets the dead one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.dead = False
        """Whether something could not be written."""
        self.reader_gone = False
        """Whether that was because nobody reads any more: ``| head``."""

    def write(self, text: str) -> int:
        """Write ``text``, or lose it; its length."""
        if not self.dead:
            try:
                self._stream.write(text)
            except UnicodeError:
                self._replace(text)
            except (OSError, ValueError, RuntimeError) as e:  # closed: ValueError; in a signal handler: RuntimeError
                self._lose(e)
        return len(text)

    def flush(self) -> None:
        """Flush, or lose what was waiting."""
        if not self.dead:
            try:
                self._stream.flush()
            except (OSError, ValueError) as e:
                self._lose(e)

    def writelines(self, lines: Any) -> None:
        """Each line as `write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _replace(self, text: str) -> None:
        encoding = getattr(self._stream, "encoding", None) or "ascii"
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text.encode(encoding, "replace").decode(encoding))

    def _lose(self, why: Exception) -> None:
        self.dead, self.reader_gone = True, isinstance(why, BrokenPipeError)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


def unbreakable(stream: TextIO | None) -> Any:
    """``stream`` as one that never raises; one that is not there (pythonw, ``>&-``) takes all and keeps nothing."""
    if isinstance(stream, Unbreakable):
        return stream
    made = Unbreakable(io.StringIO() if stream is None else stream)
    made.dead = stream is None
    return made


@contextlib.contextmanager
def outliving_streams() -> Iterator[None]:
    """While it lasts, nothing that is printed can raise, and descriptors 0 to 2 are taken: a file opened by the run
    must not become what C code takes for its stderr."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_RDWR)
                if null != number:
                    os.dup2(null, number)
                    os.close(null)
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = unbreakable(sys.stdout), unbreakable(sys.stderr)
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        sys.stdout, sys.stderr = before
