"""A data set to evaluate on, in the labels of a checkpoint: classes are matched by name, or the data is refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.data.classes import Classes, match_classes, saved_classes
from maskrcnn_coco.data.coco.table import Category, CocoTable
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.evaluation.ground_truth import TableSet
from maskrcnn_coco.wording import clean, listed

_SHOWN = 12


def in_labels_of(
    table: CocoTable, contents: Mapping[str, Any], num_classes: int, checkpoint: str | Path
) -> tuple[TableSet, list[str]]:
    """``table`` as a set to evaluate a checkpoint on, and one sentence for each thing worth saying.

    Labels are the checkpoint's; detections come out with the ids of ``table``. Classes that only one of the two has are
    accepted where ``table`` has no annotation of them.

    Args:
        contents: what `model.build.load_for_inference` returned beside the model.
        num_classes: of the model, with background.

    Raises:
        ConfigError: ``table`` has annotations of classes that the checkpoint does not know; a name stands for two
            classes and the ids do not tell which is which; no names are known and the numbers of classes differ.
    """
    saved = saved_classes(contents, num_classes)
    own = Classes.of(table.categories)
    if saved is None or (saved.generic and not set(own.names) <= set(saved.names)):
        return _by_position(table, num_classes, checkpoint)
    used = np.unique(table.labels[table.labels > 0]).tolist()
    match = match_classes(own, saved, used)
    if match.unknown or match.repeated:
        raise _refusal(table, own, saved, match.unknown, match.repeated, checkpoint)
    lookup = np.array([0, *match.labels], np.int64)
    ids: list[int | None] = [None] * len(saved.names)
    for category, label in zip(table.categories, match.labels, strict=True):
        if label:
            ids[label - 1] = category.id
    categories = tuple(Category(-1 if i is None else i, n) for i, n in zip(ids, saved.names, strict=True))
    notes = _notes(table, own, saved, match.labels, ids)
    return TableSet(replace(table, labels=lookup[table.labels], categories=categories), ids), notes


def _by_position(table: CocoTable, num_classes: int, checkpoint: str | Path) -> tuple[TableSet, list[str]]:
    if table.num_classes != num_classes:
        raise ConfigError(
            f"{checkpoint} holds no class names, and has another number of classes than the data",
            got=f"{num_classes} classes with background",
            expected=f"{table.num_classes} classes with background",
            fix="evaluate on the data set it was trained for, or train with --weights " + str(checkpoint),
        )
    names = clean(listed(table.class_names[1:], _SHOWN))
    return TableSet(table), [f"{checkpoint} holds no class names: its labels 1, 2, … are taken for {names}"]


def _refusal(
    table: CocoTable,
    own: Classes,
    saved: Classes,
    unknown: tuple[str, ...],
    repeated: tuple[str, ...],
    checkpoint: str | Path,
) -> ConfigError:
    if unknown:
        what = (
            f"{table.json_path} has annotations of classes that {checkpoint} does not know: {listed(unknown, _SHOWN)}"
        )
        fix = "rename the categories to the checkpoint's names, or remove the annotations of the others"
    else:
        what = (
            f"{table.json_path} and {checkpoint} use one name for several classes, and their ids differ: "
            f"{listed(repeated, _SHOWN)}"
        )
        fix = "give each category a name of its own"
    return ConfigError(
        clean(what, 1000),
        got=clean(f"classes of the data: {listed(own.names, _SHOWN)}", 1000),
        expected=clean(f"classes of the checkpoint: {listed(saved.names, _SHOWN)}", 1000),
        fix=fix,
    )


def _notes(table: CocoTable, own: Classes, saved: Classes, labels: tuple[int, ...], ids: list[int | None]) -> list[str]:
    notes = []
    unused = [name for name, label in zip(own.names, labels, strict=True) if not label]
    if unused:
        notes.append(
            f"classes without annotations that the checkpoint does not know are left out: {listed(unused, _SHOWN)}"
        )
    absent = [name for name, i in zip(saved.names, ids, strict=True) if i is None]
    if absent:
        notes.append(
            f"{table.json_path} does not list {len(absent)} of the checkpoint's {len(ids)} classes, which do not "
            f"count: {listed(absent, _SHOWN)}"
        )
    moved = [
        f"{name} {before} → {now}"
        for name, before, now in zip(saved.names, saved.ids or (), ids, strict=False)
        if now is not None and now != before
    ]
    if moved:
        notes.append(f"classes are matched by name; category ids in training → in this data: {listed(moved, _SHOWN)}")
    return [clean(n, 1000) for n in notes]
