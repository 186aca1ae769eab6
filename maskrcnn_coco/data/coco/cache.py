"""Large annotation files are read once: their columns are kept in the user's cache folder and mapped by later runs.

What is kept belongs to a path, size and time of change; another file at that path is read anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from maskrcnn_coco.data.coco.entries import Problem
from maskrcnn_coco.data.coco.shared_arrays import mapped, write_arrays
from maskrcnn_coco.data.coco.table import Category, CocoTable, load_coco, restored
from maskrcnn_coco.system.files import cache_folder, private

VERSION = 6
"""Raised whenever the columns or their meaning change, so that older ones are not read."""
LARGE = 32 << 20
"""Bytes of JSON from which keeping the columns pays: reading takes 5 ms a megabyte."""
KEEP = 4
"""Files whose columns are kept; the ones used longest ago go."""


@dataclass(frozen=True)
class _Rest:
    """What is not an array."""

    arrays: dict[str, str]
    """Column → SHA-256 of its bytes, hex."""
    categories: tuple[Category, ...]
    problems: tuple[Problem, ...]
    dropped_category: Category | None


def load_kept(json_path: str | Path, image_root: str | Path, *, large: int = LARGE) -> CocoTable:
    """`load_coco`, from the kept columns where the file is large, and has not changed since they were made.

    A cache folder that cannot be read or written costs only time.

    Raises:
        DataError: as `load_coco`.
    """
    path = Path(json_path)
    key = _key(path, large)
    if key is None:
        return load_coco(path, image_root)
    folder = cache_folder("tables") / key
    kept = _read(folder, path, Path(image_root), key)
    if kept is not None:
        return kept
    table = replace(load_coco(path, image_root), origin=key)
    with contextlib.suppress(OSError):
        _keep(table, folder)
    return table


def _key(path: Path, large: int) -> str | None:
    """Names the file's content; None where it is small, or cannot be looked at."""
    try:
        info = path.stat()
    except (OSError, ValueError):
        return None
    if info.st_size < large:
        return None
    content = f"{VERSION}:{path.resolve()}:{info.st_size}:{info.st_mtime_ns}:{info.st_ino}"
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()


def _read(folder: Path, path: Path, root: Path, key: str) -> CocoTable | None:
    try:
        if not private(folder):
            return None  # another user could have put it there
        digest, _, text = (folder / "rest.json").read_bytes().partition(b"\n")
        if digest != _digest(text):
            raise ValueError("what was kept is damaged")
        rest = msgspec.json.decode(text, type=_Rest)
        shared = mapped(str(folder), tuple(rest.arrays))
        if any(_digest(a.data).decode() != rest.arrays[n] for n, a in shared.arrays.items()):
            raise ValueError("a kept column is damaged")
        os.utime(folder)
        return restored(
            {
                "json_path": path,
                "image_root": root,
                "origin": key,
                "categories": rest.categories,
                "problems": rest.problems,
                "dropped_category": rest.dropped_category,
            },
            shared,
        )
    except (OSError, ValueError, TypeError, KeyError, EOFError):  # not there, or damaged: it is made again
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _digest(content: bytes | memoryview) -> bytes:
    """SHA-256, hex: a flipped bit would be another table, or an index past its end at every start."""
    return hashlib.sha256(content).hexdigest().encode()


def _keep(table: CocoTable, folder: Path) -> None:
    """Write the columns aside, then move them into place in one piece."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = tempfile.mkdtemp(dir=folder.parent, prefix=".writing-")
    try:
        arrays = table.shared.arrays
        write_arrays(aside, arrays)
        digests = {name: _digest(np.ascontiguousarray(a).data).decode() for name, a in arrays.items()}
        text = msgspec.json.encode(_Rest(digests, table.categories, table.problems, table.dropped_category))
        (Path(aside) / "rest.json").write_bytes(_digest(text) + b"\n" + text)
        for path in Path(aside).iterdir():
            with path.open("r+b") as file:  # Windows syncs what may be written
                os.fsync(file.fileno())  # a power cut must not leave columns of zeros
        os.rename(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    others = [p for p in folder.parent.iterdir() if not p.name.startswith(".")]
    for old in sorted(others, key=lambda p: -p.stat().st_mtime)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
