"""The image folder of a table, and each of its file names as a file that is really there."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from maskrcnn_coco.data.coco.shared_arrays import Texts
from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.file_names import Answer, FileIndex, plain_name
from maskrcnn_coco.data.images import is_file_inside
from maskrcnn_coco.data.tiff import split_command, tiff_facts
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.system.plain_files import open_regular
from maskrcnn_coco.wording import clean, count

_PROBES = 24


@dataclass
class Located:
    """``table`` with its folder and the names of files that are there; ``notes``: what differs from the annotations."""

    table: CocoTable
    notes: list[str]


def locate(table: CocoTable, places: Sequence[Path], *, given: Path | None, flag: str) -> Located:
    """Choose the folder, and find files under other names where exactly one answers.

    Args:
        places: folders that file names may start from, the likeliest first; looked at where none is ``given``.
        given: the folder that ``flag`` names. It is used, or its parent where the names begin with the folder's own
            name, which is said; never another.

    Raises:
        DataError: none of the files is there; the nearest names are told.
    """
    names = _probes(table)
    notes: list[str] = []
    if given is not None:
        root, rest = _of_given(given, names, notes), [given]
    else:
        root, rest = _fullest(places, lambda place: sum(is_file_inside(place, n) for n in names)), list(places)
    indexes: dict[Path, FileIndex] = {}
    if root is None:  # perhaps under other names
        indexes = {place: FileIndex(place) for place in _outermost(rest)}
        root = _fullest(indexes, lambda place: sum(len(indexes[place].answer(n).files) == 1 for n in names))
    if root is None:
        raise _not_found(table, names, rest, indexes, flag)
    table = replace(table, image_root=root)
    missing = [row for row, name in enumerate(table.names.decoded()) if not is_file_inside(root, name)]
    if not missing:
        return Located(table, notes)
    return _renamed(table, missing, indexes.get(root) or FileIndex(root), notes)


def _of_given(given: Path, names: list[str], notes: list[str]) -> Path | None:
    """The folder to start from where one was given; None where no name is found as it is written."""
    inside = sum(is_file_inside(given, n) for n in names)
    # Some exporters repeat the folder in file_name: "train/1.jpg", with the images in train/.
    repeats = [n for n in names if plain_name(n).split("/")[0] == given.absolute().name]
    above = given.absolute().parent if given.parent == given else given.parent
    outside = sum(is_file_inside(above, n) for n in repeats)
    if outside > inside and outside == len(repeats):
        notes.append(f"the file names begin with {given.name}/ themselves, so they are looked for from {above}")
        return above
    return given if inside else None


def _fullest(places: Iterable[Path], found: Callable[[Path], int]) -> Path | None:
    best, most = None, 0
    for place in places:
        number = found(place)
        if number > most:
            best, most = place, number
    return best


def _outermost(places: Sequence[Path]) -> list[Path]:
    """Without folders that lie in another of them: an index holds what is below."""
    real = {place: place.absolute() for place in places if place.is_dir()}
    return [p for p, full in real.items() if not any(o != full and full.is_relative_to(o) for o in real.values())]


def _renamed(table: CocoTable, missing: list[int], index: FileIndex, notes: list[str]) -> Located:
    names = [table.file_name(row) for row in range(len(table))]
    gone = set(missing)
    taken = {name for row, name in enumerate(names) if row not in gone}
    answers = {row: index.answer(names[row], taken) for row in missing}
    wanted = Counter(a.files[0] for a in answers.values() if len(a.files) == 1)
    kinds: dict[str, list[int]] = {}
    for row, answer in answers.items():
        if len(answer.files) == 1 and (wanted[answer.files[0]] == 1 or _same_name(names, row, answers)):
            kinds.setdefault(answer.how, []).append(row)
    for how, rows in kinds.items():
        first = rows[0]
        before, now = clean(repr(names[first])), clean(repr(answers[first].files[0]))
        notes.append(f"{count(len(rows), 'file name')} {how}: {before} is read as {now}")
        for row in rows:
            names[row] = answers[row].files[0]
    texts = Texts.of([name.encode("utf-8", "replace") for name in names])
    return Located(replace(table, names=texts) if kinds else table, notes)


def _same_name(names: list[str], row: int, answers: dict[int, Answer]) -> bool:
    """Whether all rows that found this row's file carry its name: an image that is listed twice."""
    return all(names[other] == names[row] for other, answer in answers.items() if answer == answers[row])


def _probes(table: CocoTable) -> list[str]:
    rows = np.unique(np.linspace(0, len(table) - 1, min(_PROBES, len(table))).astype(int))
    return [table.file_name(int(r)) for r in rows]


def _not_found(
    table: CocoTable, names: list[str], places: Sequence[Path], indexes: dict[Path, FileIndex], flag: str
) -> DataError:
    near = [f"{place / name}" for place, index in indexes.items() for name in index.near(names[0])][:3]
    got = f"for example {clean(repr(names[0]))}, looked for in {', '.join(str(p) for p in places[:6])}"
    fix = f"name the folder that its file names start from: {flag} FOLDER"
    pages = _pages(near[0]) if near else 1
    if pages > 1:
        got += f"; {clean(near[0])} is one file of {pages} pages"
        fix = f"save each page as a file, and name those in `file_name`: {split_command(near[0])}"
    elif not near and all("://" in name for name in names):
        fix = f"download the images first, then name their folder: {flag} FOLDER"
    elif not near and _unreadable_letters(names):
        how = sys.getfilesystemencoding()
        got += f"; file names are read as {how} here, and these have other letters"
        fix = "PYTHONUTF8=1 in front of the command reads them as UTF-8"
    elif near:
        got += f"; the nearest files are {clean(', '.join(map(repr, near)))}"
    return DataError(f"none of the images that {table.json_path} names was found", got=got, fix=fix)


def _unreadable_letters(names: list[str]) -> bool:
    """Whether letters of the names cannot be those of a file here: a locale of C or Latin-1 reads other ones."""
    try:
        return sys.getfilesystemencoding().lower().replace("-", "") != "utf8" and not "".join(names).isascii()
    except UnicodeError:
        return False


def _pages(path: str) -> int:
    try:
        with open_regular(Path(path)) as file:
            facts = tiff_facts(file)
    except OSError:
        return 1
    return 1 if facts is None else facts.pages
