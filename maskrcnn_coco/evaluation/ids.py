"""The ids that predictions are written with: the data's own, so that COCO tools can lay them beside its annotations."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from maskrcnn_coco.data.classes import Classes, match_classes
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.file_names import plain_name, tails
from maskrcnn_coco.wording import clean, listed


@dataclass
class ResultIds:
    """``categories``: label → category id. ``images``: path → image id; ``notes``: what is worth saying about them."""

    categories: dict[int, int]
    images: dict[Path, int]
    notes: list[str] = field(default_factory=list)


def result_ids(paths: Sequence[Path], classes: Classes, table: CocoTable | None = None) -> ResultIds:
    """The ids for predictions on ``paths``.

    Without ``table`` categories are the checkpoint's (the data's that it was trained on) and images are numbered from
    1. With ``table`` both are its own: images by file name, classes by name. What it does not have gets ids beyond its
    largest, so that no id of it ever stands for something else.

    Args:
        classes: of the checkpoint, see `data.classes.saved_classes`.
        table: of the annotation file whose ids are wanted (``--coco``).
    """
    labels = range(1, len(classes.names) + 1)
    if table is None:
        return ResultIds({n: classes.id_of(n) for n in labels}, {p: n for n, p in enumerate(paths, 1)})
    notes: list[str] = []
    images = _image_ids(paths, table, notes)
    return ResultIds(_category_ids(classes, table, notes), images, notes)


def _category_ids(classes: Classes, table: CocoTable, notes: list[str]) -> dict[int, int]:
    theirs = Classes.of(table.categories)
    if classes.generic and len(classes.names) == len(theirs.names):
        return {n: theirs.id_of(n) for n in range(1, len(theirs.names) + 1)}
    match = match_classes(classes, theirs, range(1, len(classes.names) + 1))
    free = 1 + max([c.id for c in table.categories] + list(classes.ids or ()), default=0)
    ids: dict[int, int] = {}
    for label, there in enumerate(match.labels, 1):
        ids[label] = table.categories[there - 1].id if there else free
        free += not there
    new = [f"{name} {ids[n]}" for n, name in enumerate(classes.names, 1) if not match.labels[n - 1]]
    if new:
        notes.append(
            clean(f"{table.json_path} has no category of these names; their ids are new: {listed(new, 8)}", 1000)
        )
    return ids


def _image_ids(paths: Sequence[Path], table: CocoTable, notes: list[str]) -> dict[Path, int]:
    rows: dict[str, list[int]] = {}
    for row in range(len(table)):
        for tail in tails(plain_name(table.file_name(row))):
            rows.setdefault(tail, []).append(row)
    best: dict[int, tuple[int, Path]] = {}  # row → the path that shares most with its name
    for path in paths:
        row, shared = _row(path, rows)
        if row is not None and shared > best.get(row, (0, path))[0]:
            best[row] = shared, path
    ids = {path: int(table.image_ids[row]) for row, (_, path) in best.items()}
    new = [p for p in paths if p not in ids]
    ids |= dict(zip(new, itertools.count(1 + max(table.image_ids.tolist(), default=0))))
    if new:
        few = listed(new, 8)
        notes.append(clean(f"{table.json_path} does not list {len(new)} of the images; their ids are new: {few}", 1000))
    return ids


def _row(path: Path, rows: dict[str, list[int]]) -> tuple[int | None, int]:
    """The row whose name shares the longest end of the path, where it is one row, and how many parts they share."""
    for tail in tails(plain_name(path.absolute().as_posix())):
        if found := rows.get(tail):
            return (found[0] if len(found) == 1 else None), tail.count("/") + 1
    return None, 0
