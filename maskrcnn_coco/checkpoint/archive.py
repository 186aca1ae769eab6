"""The file format of a checkpoint: what ``torch.save`` writes, with the SHA-256 of all of it in the zip comment.

``torch.load`` notices no flipped bit (its zip reader skips the CRC), so the digest decides. It covers every byte
before itself, zip headers included.
"""

from __future__ import annotations

import hashlib
import os
import stat
from io import BufferedReader
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, BinaryIO

import torch

from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system.files import READING, Sink

MARK = b"maskrcnn-coco sha256="
HEX = 64
_EOCD = 22  # bytes of a zip's end record without its comment; the last two hold the comment's length


class _HashingStream:
    """What ``torch.save`` writes to: hashes, passes on, and holds back the end record to put the digest behind it.

    It never raises inside torch's C++ writer, whose destructor would hide the reason; `finish` raises instead.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._hash = hashlib.sha256()
        self._tail = b""
        self._error: OSError | None = None

    def write(self, data: bytes) -> int:
        size = len(data)
        if size >= _EOCD:
            self._pass_on(self._tail)
            self._pass_on(memoryview(data)[: size - _EOCD])
            self._tail = bytes(data[size - _EOCD :])
        else:
            joined = self._tail + bytes(data)
            self._pass_on(joined[:-_EOCD])
            self._tail = joined[-_EOCD:]
        return size

    def flush(self) -> None:
        pass

    def _pass_on(self, data: bytes | memoryview) -> None:
        if len(data) and self._error is None:
            self._hash.update(data)
            try:
                self._sink.write(data)
            except OSError as e:
                self._error = e

    def finish(self) -> None:
        self._pass_on(self._tail[:-2] + (len(MARK) + HEX).to_bytes(2, "little") + MARK)
        self._pass_on(self._hash.hexdigest().encode())
        if self._error is not None:
            raise self._error


def write(sink: Sink, document: dict[str, Any]) -> None:
    """Write ``document`` (plain data and tensors) with its digest. Raises OSError."""
    stream = _HashingStream(sink)
    torch.save(document, stream)  # pyright: ignore[reportArgumentType] - needs only write and flush
    stream.finish()


def open_regular(path: Path) -> BufferedReader:
    """``path`` open for reading, if it is a regular file; a pipe or device would block or never end.

    Raises:
        CheckpointError: there is none, it is something else, or it may not be read.
    """
    try:
        fd = os.open(path, READING)
    except OSError as e:
        raise CheckpointError(f"cannot open the checkpoint {path}: {e.strerror}", fix="check the path") from e
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise CheckpointError(f"{path} is not a file", expected="a .pth file", fix="check the path")
    return os.fdopen(fd, "rb")


def damaged(path: Path, why: str) -> CheckpointError:
    """The error of a file that is not what was written: ``why`` says how that shows."""
    return CheckpointError(
        f"the checkpoint {path} cannot be used: {why}",
        fix="--resume auto takes the newest intact checkpoint of the folder; foreign weights belong to --weights",
    )


def read(file: BinaryIO, path: Path, map_location: str | torch.device) -> Any:
    """The content of a file that `inspect` has passed. Raises CheckpointError."""
    file.seek(0)
    try:
        return torch.load(file, map_location=map_location, weights_only=True)
    except (UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, OSError) as e:
        raise damaged(path, f"torch cannot read it ({str(e).splitlines()[0][:200]})") from e
