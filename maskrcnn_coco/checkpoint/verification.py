"""Whether a checkpoint file is what was written: its SHA-256, its structure, and what came back from the disk."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path

from maskrcnn_coco.checkpoint.archive import HEX, MARK, damaged, open_regular
from maskrcnn_coco.checkpoint.content import Header, header_of
from maskrcnn_coco.checkpoint.inspection import inspect
from maskrcnn_coco.errors import CheckpointError


def verify(path: str | Path) -> Header:
    """The header of ``path``, after the SHA-256 of the whole file was found right. Raises CheckpointError."""
    path = Path(path)
    with reading(path), open_regular(path) as file:
        check_digest(file, path)
        return header_of(inspect(file, path), path)


def verify_written(path: Path) -> None:
    """Read a finished file back, from the disk where the kernel allows. Raises OSError if it is not the same."""
    try:
        with open_regular(path) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            check_digest(file, path)
            inspect(file, path)
    except CheckpointError as e:
        raise OSError(errno.EIO, f"what came back from the disk is not what was written ({e.what})") from e


def check_digest(file: BufferedReader, path: Path) -> None:
    """Raise CheckpointError unless the SHA-256 in the file is that of its content, byte for byte."""
    body = os.fstat(file.fileno()).st_size - HEX
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))  # one that stays in the processor's cache
    file.seek(0)
    ending = b""
    while body > 0:
        count = file.readinto(buffer[: min(body, len(buffer))])
        if not count:
            break
        digest.update(buffer[:count])
        ending = (ending + bytes(buffer[max(0, count - len(MARK)) : count]))[-len(MARK) :]
        body -= count
    stored = file.read(HEX + 1)
    if ending != MARK:
        raise damaged(path, "it does not end in a digest: it was cut short or damaged, or another program wrote it")
    if stored != digest.hexdigest().encode():
        raise damaged(path, "the SHA-256 of its content is not the one written with it")


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Inside, what the disk refuses is a CheckpointError that names ``path``."""
    try:
        yield
    except OSError as e:
        raise CheckpointError(f"cannot read the checkpoint {path}: {e.strerror or e}", fix="check the disk") from e
