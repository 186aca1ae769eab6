"""A folder of results: one run's files, whole, and never a mix of two. Standard library only.

A run's files are gathered in a hidden folder inside and take their places together at the end. What the run before
wrote is known from a list that it left, and goes; files of anybody else's stay.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import BinaryIO

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.system.plain_files import read_regular
from maskrcnn_coco.system.processes import alive

LIST = ".predictions.json"
"""Names the files of the last run: {"files": {name: [bytes, time of writing in ns]}}."""
_STAGE = ".writing-"


class OutFolder:
    """``out`` while a run writes into it: call `path` or `write`, then `finish`, or `abandon` to leave all as it was.

    Raises:
        ConfigError: ``out`` is a file, or holds a result that somebody has changed since.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out {out} is a file", expected="a folder, or a name that is free")
        self._old = _listed(out)
        changed = [n for n, known in self._old.items() if (out / n).exists() and _stamp(out / n) != known]
        if changed:
            raise ConfigError(
                f"{out / changed[0]} was changed since it was written, and would be lost"
                + (f" ({len(changed)} such files)" if len(changed) > 1 else ""),
                fix="name another folder with --out, or move that file away",
            )
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        self._stage = out / f"{_STAGE}{os.getpid()}"
        shutil.rmtree(self._stage, ignore_errors=True)
        self._stage.mkdir()
        self.names: list[str] = []

    def is_others(self, name: str) -> bool:
        """Whether there is a file of this name that no run of ours wrote."""
        return name not in self._old and os.path.lexists(self.out / name)

    def path(self, name: str) -> Path:
        """Where a file is written that is to lie at ``out``/``name``."""
        path = self._stage / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.names.append(name)
        return path

    def write(self, name: str, content: bytes) -> None:
        """One file. Raises OSError."""
        self.path(name).write_bytes(content)

    def open(self, name: str) -> BinaryIO:
        """A file that grows; close it before `finish`."""
        return self.path(name).open("wb")

    def finish(self) -> None:
        """Everything takes its place, and what the run before left and this one did not write is removed."""
        new = {name: _stamp(self._stage / name) for name in self.names}
        # First both lists: whatever is cut off below, the next run knows all files of ours.
        self._note({**self._old, **new})
        for name in self.names:
            target = self.out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(self._stage / name, target)
        for name in self._old.keys() - set(self.names):
            _remove(self.out, name)
        self._note(new)
        shutil.rmtree(self._stage, ignore_errors=True)

    def abandon(self) -> None:
        """Nothing of this run is kept."""
        shutil.rmtree(self._stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.out.rmdir()  # only where it is empty: this run made it

    def _note(self, files: dict[str, list[int]]) -> None:
        temporary = self._stage / LIST
        temporary.write_text(json.dumps({"files": files}), encoding="utf-8")
        os.replace(temporary, self.out / LIST)


def _stamp(path: Path) -> list[int]:
    info = path.stat()
    return [info.st_size, info.st_mtime_ns]


def _listed(out: Path) -> dict[str, list[int]]:
    """The files that the last run wrote; names that lead out of the folder are not believed."""
    if not (out / LIST).is_file():  # nor is a pipe or a folder of that name a list of ours
        return {}
    try:
        files = json.loads(read_regular(out / LIST))["files"]
        pairs = {str(n): [int(v) for v in stamp] for n, stamp in files.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise ConfigError(
            f"{out / LIST}, the list of what the run before wrote here, cannot be read: its files would stay beside "
            "the new ones",
            fix="name another folder with --out, or remove this one",
        ) from e
    return {n: s for n, s in pairs.items() if n and not Path(n).is_absolute() and ".." not in Path(n).parts}


def _sweep(out: Path) -> None:
    """Remove what runs that were killed had gathered."""
    for left in out.glob(_STAGE + "*"):
        number = left.name.removeprefix(_STAGE)
        if number.isdigit() and not alive(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _remove(out: Path, name: str) -> None:
    path = out / name
    with contextlib.suppress(OSError):
        path.unlink()
        for folder in list(path.relative_to(out).parents)[:-1]:
            (out / folder).rmdir()  # only where it is empty
