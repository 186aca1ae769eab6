"""What it takes to make each recent step again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskrcnn_coco.records import StepRecord


@dataclass
class TapeEntry:
    """What it takes to make one planned step again. ``keys`` are the sample keys of each micro-batch."""

    step: int
    epoch: int
    keys: list[list[Any]]
    lr: dict[str, float]
    loss_scale: float | None
    applied: bool
    record: StepRecord | None = None
    settings: list[dict[str, Any]] | None = None
    """Of each parameter group, see `optimizer.settings_of`; None where nobody wrote them down."""


class Tape:
    """The last ``length`` planned steps, oldest first."""

    def __init__(self, length: int = 256) -> None:
        self._entries: deque[TapeEntry] = deque(maxlen=length)

    def add(self, entry: TapeEntry) -> None:
        """Append one planned step."""
        last = self._entries[-1].settings if self._entries else None
        if entry.settings == last:
            entry.settings = last  # held once, as long as nobody changes them
        self._entries.append(entry)

    def complete(self, record: StepRecord) -> None:
        """What became of a step, which a guard that reads late says after the step was added."""
        for entry in reversed(self._entries):
            if entry.step == record.step:
                entry.applied, entry.loss_scale = record.applied, record.loss_scale
                return

    def since(self, step: int) -> list[TapeEntry]:
        """The entries of planned steps ``step`` and later."""
        return [e for e in self._entries if e.step >= step]

    def drop_from(self, step: int) -> None:
        """Forget planned steps ``step`` and later, as after a rollback to it."""
        kept = [e for e in self._entries if e.step < step]
        self._entries.clear()
        self._entries.extend(kept)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[TapeEntry]:
        return iter(self._entries)
