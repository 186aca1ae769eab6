"""Columns for worker processes that do not share the parent's memory (spawn): written once, mapped by each."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

import numpy as np

COPY_LIMIT = 1 << 20
"""Up to this many bytes are simply copied to each worker."""


class SharedArrays:
    """Named arrays that pickle as the path of a file of them; workers map it read-only, so all use the same pages."""

    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays
        self._folder: str | None = None

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        if sum(a.nbytes for a in self.arrays.values()) <= COPY_LIMIT:
            return SharedArrays, (self.arrays,)
        if self._folder is None:
            self._folder = tempfile.mkdtemp(prefix="maskrcnn_coco_")
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            for name, array in self.arrays.items():
                np.save(Path(self._folder) / f"{name}.npy", array, allow_pickle=False)
        return _mapped, (self._folder, tuple(self.arrays))


def _mapped(folder: str, names: tuple[str, ...]) -> SharedArrays:
    load = {True: "r", False: None}  # an empty file cannot be mapped
    arrays = {}
    for name in names:
        path = Path(folder) / f"{name}.npy"
        arrays[name] = np.load(path, mmap_mode=load[path.stat().st_size > 256], allow_pickle=False)
    return SharedArrays(arrays)
