"""The median of the last numbers, at no cost."""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Iterable, Iterator

WINDOW = 50
"""Healthy steps that the running medians are of: long enough to be calm, short enough to follow a loss that falls."""


class Window:
    """The last `WINDOW` numbers, in order and sorted: their median costs nothing."""

    def __init__(self, values: Iterable[float] = ()) -> None:
        self._values: deque[float] = deque()
        self._sorted: list[float] = []
        for value in values:
            self.append(value)

    def append(self, value: float) -> None:
        """One more; the oldest goes."""
        if len(self._values) == WINDOW:
            del self._sorted[bisect.bisect_left(self._sorted, self._values.popleft())]
        self._values.append(value)
        bisect.insort(self._sorted, value)

    @property
    def median(self) -> float:
        """As `statistics.median`."""
        count = len(self._sorted)
        middle = self._sorted[count // 2]
        return middle if count % 2 else (self._sorted[count // 2 - 1] + middle) / 2

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[float]:
        return iter(self._values)
