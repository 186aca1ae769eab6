"""Which images are held back for validation: by group, so that what belongs together stays together, with each class
in its share, the rare ones first (iterative stratification: Sechidis, Tsoumakas and Vlahavas, 2011). Nothing is left to
chance: the same file, seed and key give the same images on every machine.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from pathlib import Path

import numpy as np

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.system.plain_files import read_regular
from maskrcnn_coco.wording import clean, count


def fold_of(text: str) -> tuple[int, int]:
    """``"2/5"`` → (2, 5): the second of five folds.

    Raises:
        ConfigError: something else.
    """
    found = re.fullmatch(r"\s*(\d{1,6})\s*/\s*(\d{1,6})\s*", text)
    n, k = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= n <= k or k < 2:
        raise ConfigError("--fold names no fold", got=text, expected="N/K, as 1/5 to 5/5", fix="--fold 1/5")
    return n, k


def groups_of(table: CocoTable, key: str | None) -> list[str]:
    """The group of each image.

    Args:
        key: a regular expression on the file name: its first group, else all of what it matches, is the image's group;
            or a csv file of file name and group. None: each image by itself. Images that it does not name likewise.

    Raises:
        ConfigError: not a regular expression. DataError: the csv cannot be read; no image is named.
    """
    names = table.names.decoded()
    if key is None:
        return names
    known = _from_csv(Path(key)) if key.lower().endswith(".csv") else _from_pattern(key, names)
    if not known.keys() & set(names):
        raise DataError(
            "--split-by finds no group in the file names",
            got=f"{clean(key)}; file names are like {clean(names[0])}",
            expected=r"a pattern such as '^(patient\d+)_', or a csv of file name and group",
            fix="check --split-by",
        )
    return [f"group:{known[n]}" if n in known else f"image:{n}" for n in names]


def _from_pattern(key: str, names: list[str]) -> dict[str, str]:
    try:
        pattern = re.compile(key)
    except re.error as e:
        raise ConfigError(f"--split-by is no regular expression: {e}", got=key, fix=r"--split-by '^(\w+)_'") from e
    found = {n: m for n in names if (m := pattern.search(n)) is not None}
    return {n: (m[1] if pattern.groups and m[1] is not None else m[0]) for n, m in found.items()}


def _from_csv(path: Path) -> dict[str, str]:
    try:
        text = read_regular(path).decode("utf-8-sig")
        rows = [r for r in csv.reader(io.StringIO(text, newline="")) if len(r) >= 2]
    except (OSError, UnicodeError, csv.Error) as e:
        why = e.strerror if isinstance(e, OSError) else str(e)
        raise DataError(f"cannot read the groups in {path}: {why}", fix="check --split-by") from e
    return {name.strip(): group.strip() for name, group, *_ in rows}


def held_back(table: CocoTable, groups: list[str], shares: list[float], seed: int) -> np.ndarray:
    """The part of each image, int64 (I,), 0 to len(shares) - 1: groups whole, each class in its share.

    Raises:
        DataError: fewer groups than parts.
    """
    names, member = np.unique(np.array(groups, dtype=object).astype(str), return_inverse=True)
    if len(names) < len(shares):
        raise DataError(
            f"{table.json_path} cannot be split into {len(shares)} parts",
            got=f"{count(len(names), 'group')} of images, which stay together",
            fix="name a finer key (--split-by), or fewer folds (--fold)",
        )
    counts = np.zeros((len(names), table.num_classes))
    counts[:, 0] = np.bincount(member, minlength=len(names))  # images, in the place of the background
    known = (table.ann_image >= 0) & (table.labels > 0)
    np.add.at(counts, (member[table.ann_image[known]], table.labels[known]), 1)
    part = _stratified(counts, np.array(shares) / sum(shares), _order(names.tolist(), seed))
    return part[member]


def _order(names: list[str], seed: int) -> np.ndarray:
    digests = [hashlib.sha256(f"{seed}:{n}".encode("utf-8", "replace")).digest() for n in names]
    return np.array(sorted(range(len(names)), key=lambda i: digests[i]), np.int64)


def _stratified(counts: np.ndarray, shares: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Each group goes where its rarest class is most wanted, then where images are; int64 (G,)."""
    wanted = shares[:, None] * counts.sum(axis=0)
    part = np.full(len(counts), -1, np.int64)
    classes = [c for c in range(1, counts.shape[1]) if counts[:, c].any()]
    for c in [*sorted(classes, key=lambda c: counts[:, c].sum()), 0]:
        rows = order[(part[order] < 0) & (counts[order, c] > 0)]
        for row in rows[np.argsort(-counts[rows, c], kind="stable")].tolist():
            best = max(range(len(shares)), key=lambda p: (wanted[p, c], wanted[p, 0], -p))
            part[row] = best
            wanted[best] -= counts[row]
    for p in np.flatnonzero(np.bincount(part, minlength=len(shares)) == 0).tolist():
        # No part may be empty: the one with the most groups gives its smallest.
        giver = np.flatnonzero(part == np.bincount(part).argmax())
        part[giver[counts[giver, 0].argmin()]] = p
    return part


def split_by(
    table: CocoTable, fraction: float, seed: int, *, key: str | None, fold: str | None
) -> tuple[CocoTable, CocoTable]:
    """(train, val): one fold of K as ``fold`` says, else ``fraction``, held back whole groups of ``key`` at a time.

    Raises:
        ConfigError, DataError: as `fold_of`, `groups_of`, `held_back`.
    """
    n, k = fold_of(fold) if fold is not None else (2, 2)
    shares = [1.0] * k if fold is not None else [1 - fraction, fraction]
    held = held_back(table, groups_of(table, key), shares, seed) == n - 1
    return table.subset(np.flatnonzero(~held)), table.subset(np.flatnonzero(held))
