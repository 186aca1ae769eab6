"""Verified states at ages that double."""

from __future__ import annotations

from maskrcnn_coco.replay.snapshot import Snapshot


class Ring:
    """At most ``capacity`` verified snapshots in at most ``max_bytes``, at ages that double: 1, 2, 4, 8 … additions.

    The newest is always kept, even where it alone exceeds ``max_bytes``.
    """

    def __init__(self, capacity: int = 4, max_bytes: int | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"a ring of snapshots needs a capacity of 1 or more, got {capacity}")
        self.capacity = capacity
        self.max_bytes = max_bytes
        self._items: list[tuple[int, Snapshot]] = []
        self._count = 0

    @property
    def items(self) -> list[Snapshot]:
        """The snapshots held, newest first."""
        return [s for _, s in reversed(self._items)]

    @property
    def nbytes(self) -> int:
        """Bytes held by all snapshots together."""
        return sum(s.nbytes for _, s in self._items)

    def add(self, snapshot: Snapshot) -> bool:
        """Keep ``snapshot``, thinning the older ones. A snapshot that is not verified is not kept: returns False."""
        if not snapshot.verified:
            return False
        self._items.append((self._count, snapshot))
        self._count += 1
        while len(self._items) > self.capacity or self._too_big():
            self._items.pop(self._redundant())
        return True

    def newest(self, before_step: int | None = None) -> Snapshot | None:
        """The newest snapshot, or the newest with ``step < before_step``; None where there is none."""
        held = (s for _, s in reversed(self._items) if before_step is None or s.step < before_step)
        return next(held, None)

    def clear(self) -> None:
        """Forget every snapshot."""
        self._items = []

    def drop_after(self, step: int) -> None:
        """Forget the snapshots taken after planned step ``step``, as after a rollback to it."""
        self._items = [(n, s) for n, s in self._items if s.step <= step]

    def _too_big(self) -> bool:
        return self.max_bytes is not None and len(self._items) > 1 and self.nbytes > self.max_bytes

    def _redundant(self) -> int:
        """The position whose loss opens the smallest ratio between its neighbours' ages; of equals the oldest."""
        ages = [self._count - n for n, _ in self._items]  # oldest first; the newest is 1
        if len(ages) == 2 or ages[0] > 2**self.capacity:
            return 0
        return min(range(1, len(ages) - 1), key=lambda i: ages[i - 1] / ages[i + 1])
