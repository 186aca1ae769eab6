"""Columns for worker processes that do not share the parent's memory (spawn): written once, mapped by each."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COPY_LIMIT = 1 << 20
"""Up to this many bytes are simply copied to each worker."""


@dataclass(frozen=True)
class Texts:
    """Many byte strings in one array, so that worker processes share them: ``data`` uint8, ``spans`` int64 (N, 2)."""

    data: np.ndarray
    spans: np.ndarray

    def __getitem__(self, row: int) -> bytes:
        start, stop = self.spans[row].tolist()
        return self.data[start:stop].tobytes()

    def between(self, start: int, stop: int) -> list[bytes]:
        """The strings ``start`` to ``stop`` - 1."""
        if stop <= start:
            return []
        spans = self.spans[start:stop]
        low = int(spans.min())
        text = self.data[low : int(spans.max())].tobytes()
        return [text[a:b] for a, b in (spans - low).tolist()]

    def decoded(self) -> list[str]:
        """All of them as text, in order; quicker than one by one."""
        return [t.decode("utf-8", "replace") for t in self.between(0, len(self.spans))]

    @staticmethod
    def of(items: Sequence[Any]) -> Texts:
        """The strings of ``items`` (bytes or `msgspec.Raw`), joined."""
        lengths = np.fromiter(map(len, map(memoryview, items)), np.int64, len(items))
        stops = np.cumsum(lengths)
        return Texts(np.frombuffer(b"".join(items), np.uint8), np.stack([stops - lengths, stops], axis=1))


class SharedArrays:
    """Named arrays that pickle as the path of a file of them; workers map it read-only, so all use the same pages."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self._folder: str | None = None

    def spill(self) -> dict[str, np.ndarray] | None:
        """Write the arrays, once, and map them; None where they are so small that a copy is cheaper."""
        if self._folder is None:
            if sum(a.nbytes for a in self.arrays.values()) <= COPY_LIMIT:
                return None
            self._folder = tempfile.mkdtemp(prefix="maskrcnn_coco_")
            weakref.finalize(self, _remove, self._folder, os.getpid())
            write_arrays(self._folder, self.arrays)
            self.arrays = mapped(self._folder, tuple(self.arrays)).arrays
        return self.arrays

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        if self.spill() is None:
            return SharedArrays, (self.arrays,)
        return mapped, (self._folder, tuple(self.arrays))


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked worker has this finalizer too
        shutil.rmtree(folder, ignore_errors=True)


def write_arrays(folder: str, arrays: dict[str, np.ndarray]) -> None:
    """One file of each array in ``folder``. Raises OSError."""
    for name, array in arrays.items():
        np.save(Path(folder) / f"{name}.npy", array, allow_pickle=False)


def mapped(folder: str, names: tuple[str, ...]) -> SharedArrays:
    """The arrays that `write_arrays` wrote, mapped read-only."""
    load = {True: "r", False: None}  # an empty file cannot be mapped
    arrays = {}
    for name in names:
        path = Path(folder) / f"{name}.npy"
        # As a plain array: a memmap's own class makes each look at an element ten times slower.
        loaded = np.load(path, mmap_mode=load[path.stat().st_size > 256], allow_pickle=False)
        arrays[name] = loaded.view(np.ndarray)
    return SharedArrays(arrays)
