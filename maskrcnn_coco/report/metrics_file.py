"""``metrics.jsonl`` as a file: one record a line, read back, and cut where a run goes back. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maskrcnn_coco.records import number
from maskrcnn_coco.system.files import write_bytes

METRICS = "metrics.jsonl"
UNDONE = "metrics_undone.jsonl"
"""Step lines that a roll-back or resume took out of `METRICS`: what those steps looked like the first time."""


def truncate(path: Path, resume_step: int | None, closed: int | None) -> None:
    """Repair a torn last line; with ``resume_step``, drop what the resumed run will write again. Atomic."""
    raw = path.read_bytes()
    clean = cut(raw, resume_step, closed)
    if clean == raw:
        return
    gone = [line for line, d in _entries(raw) if d.get("kind") == "step" and d.get("step", 0) >= (resume_step or 0)]
    if resume_step is not None and gone:
        with path.with_name(UNDONE).open("ab") as f:
            f.write(b"".join(line + b"\n" for line in gone))
    write_bytes(path, clean)


def cut(raw: bytes, resume_step: int | None, closed: int | None) -> bytes:
    """The whole lines of ``raw``; with ``resume_step``, those of what happened before that step."""
    entries = list(_entries(raw))
    kept = entries if resume_step is None else _before(entries, resume_step, closed)
    return b"".join(line + b"\n" for line, _ in kept)


def _entries(raw: bytes) -> Iterable[tuple[bytes, dict[str, Any]]]:
    for line in raw.split(b"\n"):
        try:
            data = json.loads(line)
        except ValueError:  # empty, or torn by a crash
            continue
        if isinstance(data, dict):
            yield line, data


def _before(
    entries: list[tuple[bytes, dict[str, Any]]], step: int, closed: int | None
) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of what happened before planned step ``step``.

    A step line counts by its step. An epoch or eval line speaks of a whole epoch: it goes if its step lies past
    ``step``, its epoch has step lines that go, or the run has not ``closed`` that many epochs yet.
    """
    gone = {d.get("epoch") for _, d in entries if d.get("kind") == "step" and d.get("step", 0) >= step}

    def stays(d: dict[str, Any]) -> bool:
        if d.get("kind") == "step":
            return d.get("step", 0) < step
        still_open = closed is not None and d.get("epoch", 0) >= closed
        return d.get("step", 0) <= step and d.get("epoch") not in gone and not still_open

    return [(line, d) for line, d in entries if stays(d)]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` in order, as dicts; a torn line is left out, no file is an empty list.

    The strings "nan", "inf" and "-inf" become floats again. A rolled-back step stands there once for each time it ran.
    """
    path = Path(path)
    if not path.exists():
        return []
    return [_floats(data) for _, data in _entries(path.read_bytes())]


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    return number(value) if value in ("nan", "inf", "-inf") else value
