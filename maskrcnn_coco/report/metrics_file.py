"""``metrics.jsonl`` as a file: one record a line, read back, and cut where a run goes back. Imports no torch."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from maskrcnn_coco.records import number
from maskrcnn_coco.system.files import sync, write_bytes
from maskrcnn_coco.system.plain_files import open_regular

METRICS = "metrics.jsonl"
_BLOCK = 1 << 18
UNDONE = "metrics_undone.jsonl"
"""Step lines that a roll-back or resume took out of `METRICS`: what those steps looked like the first time."""


def truncate(path: Path, resume_step: int | None, closed: int | None) -> None:
    """Repair a torn last line; with ``resume_step``, drop what the resumed run will write again.

    Read from the end, as far as lines go: a run of 100,000 steps that goes back ten reads ten lines. What goes is an
    end of the file, and goes in one step; else (foreign lines among them) the file is replaced, atomically.
    """
    tail: list[tuple[int, bytes]] = []
    for offset, line in lines_from_end(path):
        tail.append((offset, line))
        if (data := _entry(line)) is not None and (resume_step is None or _is_step(data, below=resume_step)):
            break
    if not tail:
        return
    start, raw = tail[-1][0], b"".join(line for _, line in reversed(tail))
    kept = cut(raw, resume_step, closed)
    if kept == raw:
        return
    gone = [line for line, d in _entries(raw) if d.get("kind") == "step" and not _is_step(d, below=resume_step or 0)]
    if gone and resume_step is not None:
        with path.with_name(UNDONE).open("ab") as f:
            f.write(b"".join(line + b"\n" for line in gone))
    if raw.startswith(kept):
        with path.open("r+b") as f:
            f.truncate(start + len(kept))
            sync(f.fileno())
    else:
        with open_regular(path) as f:
            before = f.read(start)
        write_bytes(path, before + kept)


def last_steps(path: Path, *, before: int, count: int) -> list[dict[str, Any]]:
    """The last ``count`` step lines of steps under ``before``, in order, as `read_metrics` gives them; read from the
    end. Lines that are not ours are left out."""
    found: list[dict[str, Any]] = []
    for _, line in lines_from_end(path):
        data = _entry(line)
        if data is not None and _is_step(data, below=before):
            found.append(_floats(data))
            if len(found) >= count:
                break
    return found[::-1]


def lines_from_end(path: Path) -> Iterator[tuple[int, bytes]]:
    """Place and content of each line, the last first, with its line break where it has one; no file has none."""
    try:
        file = open_regular(path)
    except FileNotFoundError:
        return
    with file:
        place, rest = file.seek(0, os.SEEK_END), b""
        while place > 0:
            size = min(_BLOCK, place)
            place -= size
            file.seek(place)
            # Everything but the first piece is whole: its beginning may lie in the block before.
            block = file.read(size) + rest
            end = len(block)
            while (start := block.rfind(b"\n", 0, end - 1) + 1) > 0:
                yield place + start, block[start:end]
                end = start
            rest = block[:end]
        if rest:
            yield 0, rest


def _is_step(data: dict[str, Any], *, below: int) -> bool:
    return data.get("kind") == "step" and isinstance(data.get("step"), int) and data["step"] < below


def _number(data: dict[str, Any], name: str) -> int:
    value = data.get(name, 0)
    return value if isinstance(value, int) else 0


def _entry(line: bytes) -> dict[str, Any] | None:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):  # empty, torn by a crash, or not ours
        return None
    return data if isinstance(data, dict) else None


def cut(raw: bytes, resume_step: int | None, closed: int | None) -> bytes:
    """The whole lines of ``raw``; with ``resume_step``, those of what happened before that step."""
    entries = list(_entries(raw))
    kept = entries if resume_step is None else _before(entries, resume_step, closed)
    return b"".join(line + b"\n" for line, _ in kept)


def _entries(raw: bytes) -> Iterable[tuple[bytes, dict[str, Any]]]:
    for line in raw.split(b"\n"):
        data = _entry(line)
        if data is not None:
            yield line, data


def _before(
    entries: list[tuple[bytes, dict[str, Any]]], step: int, closed: int | None
) -> list[tuple[bytes, dict[str, Any]]]:
    """The lines of what happened before planned step ``step``.

    A step line counts by its step. An epoch or eval line speaks of a whole epoch: it goes if its step lies past
    ``step``, its epoch has step lines that go, or the run has not ``closed`` that many epochs yet.
    """
    gone = {d.get("epoch") for _, d in entries if d.get("kind") == "step" and _number(d, "step") >= step}

    def stays(d: dict[str, Any]) -> bool:
        if d.get("kind") == "step":
            return _number(d, "step") < step
        still_open = closed is not None and _number(d, "epoch") >= closed
        return _number(d, "step") <= step and d.get("epoch") not in gone and not still_open

    return [(line, d) for line, d in entries if stays(d)]


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl`` in order, as dicts; a torn line is left out, no file is an empty list.

    The strings "nan", "inf" and "-inf" become floats again. A rolled-back step stands there once for each time it ran.
    """
    path = Path(path)
    if not path.exists():
        return []
    with open_regular(path) as file:
        raw = file.read()
    return [_floats(data) for _, data in _entries(raw) if isinstance(data.get("kind"), str)]


def _floats(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _floats(v) for k, v in value.items()}
    return number(value) if value in ("nan", "inf", "-inf") else value
