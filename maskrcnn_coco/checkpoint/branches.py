"""A run that goes on from its folder: what a kill left half done is done, what a branch leaves behind is set aside.

Links and moves are several steps, and a kill may come between any two. So the names are written inside each file, and a
branch is one atomic write (`BRANCH` in the new ``last.pth``); all else follows from what the files say, at every start.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from maskrcnn_coco.checkpoint.content import BEST, LAST, Header
from maskrcnn_coco.checkpoint.saver import Saver
from maskrcnn_coco.checkpoint.store import checkpoints, peek
from maskrcnn_coco.checkpoint.verification import verify
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import files

BRANCH = "branch"
"""Key of a state that goes on from an older one by the user's wish: later states of the folder are another branch."""


def take_over(saver: Saver, chosen: Path, state: dict[str, Any], *, branch: bool) -> list[str]:
    """Make ``chosen`` the state that ``--resume auto`` would take, and the folder tell one story. Call under its lock.

    Args:
        chosen: the checkpoint of the saver's folder that the run goes on from; ``state`` is its content.
        branch: the user named ``chosen``; newer files of the folder are set aside, in a folder beside them.

    Returns:
        A sentence for each thing that was done.

    Raises:
        CheckpointError: the folder cannot be written; the files are as they were.
    """
    headers = _headers(saver.folder)
    mine = headers.get(chosen)
    newest = max((h.serial for h in headers.values()), default=-1)
    said = []
    if branch and mine is not None and mine.serial < newest and _later(headers, mine):
        state = {**state, BRANCH: mine.serial}
        saver.save_as_newest(state)
        said.append(f"{chosen.name} is where this run goes on; --resume auto takes this branch from now on")
    elif chosen.name != LAST:
        saver.save_as_newest(state)  # a kill came before it had this name too
    if BRANCH in state:
        said += _set_aside(saver.folder, state["loop"]["step"], int(state[BRANCH]))
    return said + _settle_best(saver.folder)


def _headers(folder: Path) -> dict[Path, Header]:
    found = {}
    for path in checkpoints(folder):
        with contextlib.suppress(CheckpointError):
            found[path] = peek(path)
    return found


def _later(headers: dict[Path, Header], mine: Header) -> bool:
    return any(h.serial > mine.serial and h.step > mine.step for h in headers.values())


def _set_aside(folder: Path, step: int, since: int) -> list[str]:
    """Move what the other branch saved after ``since`` into a folder of its own; each move is atomic, repeatable."""
    headers = _headers(folder)
    own = headers.get(folder / LAST)
    moved = [p for p, h in headers.items() if own and since < h.serial < own.serial and h.step > step]
    if not moved:
        return []
    aside = folder / f"left_at_step_{step}_{since}"
    try:
        aside.mkdir(exist_ok=True)
        for path in moved:
            path.rename(aside / path.name)
        files.sync_folder(folder)
    except OSError as e:
        return [f"checkpoints of the other branch stay in {folder}: {e}"]
    return [f"later checkpoints ({', '.join(p.name for p in moved)}) belong to another branch; they are in {aside} now"]


def _settle_best(folder: Path) -> list[str]:
    """``best.pth`` is the newest file that was saved as the best, wherever a kill left its name."""
    headers = _headers(folder)
    best = max((h.serial for h in headers.values() if BEST in h.names), default=None)
    held = headers.get(folder / BEST)
    if best is None or (held is not None and held.serial == best):
        return []
    for path in (p for p, h in headers.items() if h.serial == best):
        with contextlib.suppress(CheckpointError, OSError):
            verify(path)
            files.link_atomically(path, folder / BEST)
            return [f"best.pth was missing or of an older epoch; it is {path.name} again"]
    return []
