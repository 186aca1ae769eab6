"""Files of other tools, read carefully: regular ones of a sane size, and text that is JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import clean

_MOST = 1 << 30


def read_text(path: Path) -> str:
    """The text of ``path``.

    Raises:
        DataError: no regular file, larger than a gigabyte, or not to be read.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MOST:
            raise DataError(f"{clean(path)} is no file of text", fix="name an annotation file")
        return path.read_bytes().decode("utf-8-sig", "replace")
    except OSError as e:
        raise DataError(f"cannot read {clean(path)}: {e.strerror}", fix="check the path and its permissions") from e


def as_dict(value: Any) -> dict[str, Any]:
    """``value`` where it is an object of JSON, else an empty one: a stranger's file may hold anything anywhere."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """``value`` where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def read_json(path: Path) -> Any:
    """The JSON value in ``path``; None where it is none. Raises DataError as `read_text`."""
    try:
        return json.loads(read_text(path))
    except (ValueError, RecursionError):
        return None


def shown(paths: Iterable[Path]) -> list[Path]:
    """``paths`` in order, without hidden ones: macOS leaves a ``._name`` beside each file, no text and no image."""
    return sorted(p for p in paths if not p.name.startswith("."))
