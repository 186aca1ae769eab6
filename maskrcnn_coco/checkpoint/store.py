"""A checkpoint as a file: written whole and read back, loaded only when intact, the newest one found.

`content` holds what a state must say, `archive` how it becomes bytes with their SHA-256, `verification` whether a file
still is what was written, `inspection` what is checked before ``torch.load``. The newest file is found by the count of
saves written inside, never by the clock: a rollback may lower the step, and clocks jump.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

import torch

from maskrcnn_coco.checkpoint import archive
from maskrcnn_coco.checkpoint.content import (
    BEST,
    EPOCH,
    LAST,
    PREVIOUS,
    Header,
    header_of,
    nonfinite,
    plain_copy,
    to_document,
)
from maskrcnn_coco.checkpoint.digests import changed_since_saved
from maskrcnn_coco.checkpoint.inspection import inspect
from maskrcnn_coco.checkpoint.verification import check_digest, reading, verify_written
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import files
from maskrcnn_coco.wording import listed

_T = TypeVar("_T")


class Skipped(NamedTuple):
    """A checkpoint that was passed over, and the sentence why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path.name}: {self.reason}"


def save(path: str | Path, state: dict[str, Any], *, names: tuple[str, ...] | None = None, serial: int = 0) -> None:
    """Write ``state`` to ``path``: whole or not at all, read back before it takes the place of an older file.

    Args:
        names: every file name that this content may be found under; its own by default.
        serial: larger than that of every older checkpoint of the run.

    Raises:
        CheckpointError: not plain data, or non-finite; nothing was written.
        OSError: the disk is full, failing or read-only; an older file at ``path`` is intact.
    """
    path = Path(path)
    write_document(path, to_document(plain_copy(state), names=names or (path.name,), serial=serial))


def write_document(path: Path, document: dict[str, Any], *, keep_old_as: Path | None = None) -> None:
    """Write what `to_document` made, verified on the disk before it is renamed. Raises OSError."""
    files.write_atomically(
        path, lambda sink: archive.write(sink, document), verify=verify_written, keep_old_as=keep_old_as
    )


def load(path: str | Path, *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """The state in ``path``. Nothing of the file is run, and nothing is built before its SHA-256 and sizes are right.

    Raises:
        CheckpointError: no such file, damaged, refused, of another version, under another file's name, or non-finite.
    """
    path = Path(path)
    with reading(path), archive.open_regular(path) as file:
        try:
            check_digest(file, path)
        except CheckpointError as e:
            raise _with_wound(e, file, path) from e
        header_of(inspect(file, path), path)
        state = archive.read(file, path, map_location)
    bad = nonfinite(state)
    if bad:
        raise CheckpointError(f"the checkpoint {path} holds non-finite values: {listed(bad)}", fix="use an older one")
    return state


def load_as_saved(path: str | Path, *, map_location: str | torch.device = "cpu") -> dict[str, Any]:
    """`load`, of a file whose tensors are the ones that the run saved; files of older versions cannot tell.

    Raises:
        CheckpointError: as of `load`, or another program changed, exchanged or removed tensors; they are named.
    """
    state = load(path, map_location=map_location)
    changed = changed_since_saved(state)
    if changed:
        raise CheckpointError(
            f"the checkpoint {path} is not as the run saved it: {listed(changed)} were changed since",
            fix=f"go on from an older one; to train on from the changed weights, begin a new run: --weights {path}",
        )
    return state


def _with_wound(error: CheckpointError, file: BinaryIO, path: Path) -> CheckpointError:
    """``error``, and what is non-finite in the file where it can be read all the same: somebody changed the weights."""
    try:
        document = inspect(file, path)
        header_of(document, path)
        bad = nonfinite(archive.read(file, path, "cpu"))
    except CheckpointError:
        return error
    return CheckpointError(f"{error.what}; it holds non-finite values: {listed(bad)}", fix=error.fix) if bad else error


def peek(path: str | Path) -> Header:
    """The header of ``path``, without its tensors and before its digest is checked. Raises CheckpointError."""
    path = Path(path)
    with reading(path), archive.open_regular(path) as file:
        return header_of(inspect(file, path), path)


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoint files of a run's folder, sorted by name; [] where there is no folder."""
    folder = Path(folder)
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if p.name in (LAST, BEST, PREVIOUS) or EPOCH.fullmatch(p.name))


def newest_intact(folder: str | Path) -> tuple[Path | None, list[Skipped]]:
    """The newest checkpoint of ``folder`` that is intact and finite, and what was passed over on the way to it.

    Newest by what is written inside (count of saves, then step), never by file time. (None, []) where there is none.
    """
    path, _, skipped = _newest(Path(folder), load)
    return path, skipped


def load_newest(
    folder: str | Path, *, map_location: str | torch.device = "cpu", as_saved: bool = False
) -> tuple[Path | None, dict[str, Any] | None, list[Skipped]]:
    """The newest intact checkpoint of ``folder``, its state, and what was passed over; (None, None, …) where none is.

    Nothing is changed: damaged files stay for a look.

    Args:
        as_saved: pass over those that another program changed too: see `load_as_saved`.
    """
    read = load_as_saved if as_saved else load
    return _newest(Path(folder), lambda p: read(p, map_location=map_location))


def by_age(folder: str | Path) -> list[Path]:
    """The checkpoints of ``folder`` whose header can be read, newest first, by what is written inside."""
    return [path for _, path in _sorted(Path(folder))[0]]


def _sorted(folder: Path) -> tuple[list[tuple[Header, Path]], list[Skipped]]:
    skipped: list[Skipped] = []
    found: list[tuple[Header, Path]] = []
    for path in checkpoints(folder):
        try:
            found.append((peek(path), path))
        except CheckpointError as e:
            skipped.append(Skipped(path, _why(path, e)))
    # Equal headers are names of one file: any will do, last.pth reads best.
    found.sort(key=lambda item: (item[0].serial, item[0].step, item[1].name == LAST), reverse=True)
    return found, skipped


def _newest(folder: Path, use: Callable[[Path], _T]) -> tuple[Path | None, _T | None, list[Skipped]]:
    found, skipped = _sorted(folder)
    for _, path in found:
        try:
            return path, use(path), skipped
        except CheckpointError as e:
            skipped.append(Skipped(path, e.what))
    return None, None, skipped


def _why(path: Path, seen: CheckpointError) -> str:
    """The better reason for a file whose header cannot be read: most often it is damaged, not hostile."""
    try:
        load(path)
    except CheckpointError as e:
        return e.what
    return seen.what
