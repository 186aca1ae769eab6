"""Image entries that share a file of several pages: its first page is read for each, and can be that of one alone."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import open_inside
from maskrcnn_coco.data.tiff import split_command, tiff_facts
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import clean, count


def shared_stacks(table: CocoTable) -> dict[int, str]:
    """Row of each such entry → what is said of it. Only files that several entries name are opened."""
    entries: defaultdict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(table.names.decoded()):
        if name.lower().endswith((".tif", ".tiff")):
            entries[name].append(row)
    found: dict[int, str] = {}
    for name, rows in entries.items():
        pages = _pages(table, name) if len(rows) > 1 else 1
        if pages > 1:
            text = f"{len(rows)} entries name this file of {pages} pages, of which the first is read for each"
            found |= dict.fromkeys(rows, text)
    return found


def without_stacks(table: CocoTable) -> tuple[CocoTable, str | None]:
    """The table without such entries, and a sentence about them.

    Raises:
        DataError: nothing else is in it.
    """
    found = shared_stacks(table)
    if not found:
        return table, None
    first = next(iter(found))
    said = f"{clean(table.file_name(first))}: {found[first]}"
    fix = f"save each page as a file, and name those: {split_command(table.file_name(first))}"
    if len(found) == len(table):
        raise DataError(f"no image of {table.json_path} can be told from the others: {said}", fix=fix)
    rest = table.subset(np.setdiff1d(np.arange(len(table)), list(found)))
    return rest, f"{count(len(found), 'image')} left out, {said}; {fix}"


def _pages(table: CocoTable, name: str) -> int:
    try:
        with open_inside(table.image_root, name) as file:
            facts = tiff_facts(file)
    except DataError:
        return 1
    return 1 if facts is None else facts.pages
