"""Incident files: NNNN.json says what happened, NNNN.pt beside it replays the step on another machine."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import Incident, record_from, to_json
from maskrcnn_coco.system.files import write_text
from maskrcnn_coco.system.plain_files import read_regular


def write_incident(folder: str | Path, incident: Incident) -> Path:
    """Write ``incident`` as ``<folder>/<id>.json``, whole or not at all."""
    folder = Path(folder)
    path = folder / f"{incident.id}.json"
    write_text(path, to_json(incident, indent=1) + "\n")
    return path


def read_incident(path: str | Path) -> Incident:
    """One incident from its JSON file.

    Raises:
        DataError: no such file, or not an incident.
    """
    path = Path(path)
    try:
        data = json.loads(read_regular(path))
        return record_from(Incident, data)
    except OSError as e:
        raise DataError(f"cannot read {path}: {e.strerror}", fix="give an incident file or a run folder") from e
    except (ValueError, TypeError, AttributeError, RecursionError) as e:
        raise DataError(
            f"{path} is not an incident file: {e}",
            expected="a file NNNN.json of an incidents folder",
            fix="name one of those, the run's folder, or a checkpoint",
        ) from e


def read_incidents(folder: str | Path, *, damaged: Callable[[str], None] | None = None) -> list[Incident]:
    """All incidents of a folder, by id; an empty list where there is no such folder.

    Args:
        damaged: told of each file that is none, which is then left out.

    Raises:
        DataError: as `read_incident`, without ``damaged``.
    """
    folder = Path(folder)
    found = []
    for path in sorted(folder.glob("[0-9]*.json")) if folder.is_dir() else ():
        try:
            found.append(read_incident(path))
        except DataError as e:
            if damaged is None:
                raise
            damaged(e.what)
    return found


def set_aside(folder: Path, known: set[str]) -> None:
    """Move the files of incidents other than ``known`` to ``undone/``: the run went back to before they happened."""
    for path in sorted(folder.glob("[0-9]*")):
        if path.is_file() and path.name.split(".")[0].split("_")[0] not in known:
            (folder / "undone").mkdir(exist_ok=True)
            path.replace(folder / "undone" / path.name)
