"""Decoded images kept for their other tiles: decoding all of a large image is most of what one tile of it costs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch

from maskrcnn_coco.system import memory

SHARE = 8
"""One part in so many of the memory that is free at the start may go to kept images, of all processes together."""
MOST = 4 << 30
"""Bytes of one process at most, however much is free."""


class KeptImages:
    """The images used last, up to ``most`` bytes; each process has its own. What is kept is for reading only."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._start()

    def _start(self) -> None:
        self._images: OrderedDict[int, np.ndarray] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # evaluation reads in several threads

    def of(self, row: int, read: Callable[[], np.ndarray]) -> np.ndarray:
        """Image ``row``, (H, W, 3): kept, or from ``read``."""
        with self._lock:
            pixels = self._images.get(row)
            if pixels is not None:
                self._images.move_to_end(row)
                return pixels
        pixels = read()
        pixels.flags.writeable = False
        with self._lock:
            if row not in self._images and pixels.nbytes <= self.most:
                self._images[row] = pixels
                self._bytes += pixels.nbytes
            while self._bytes > self.most:
                self._bytes -= self._images.popitem(last=False)[1].nbytes
        return pixels

    def __getstate__(self) -> int:
        return self.most  # a worker that is spawned begins with none: they would travel through a pipe

    def __setstate__(self, most: int) -> None:
        self.most = most
        self._start()


def room(processes: int) -> int:
    """Bytes for `KeptImages` in each of so many processes of this machine."""
    free = memory.free(torch.device("cpu"))
    return min(MOST, (memory.UNKNOWN_FREE if free is None else free) // SHARE // processes)
