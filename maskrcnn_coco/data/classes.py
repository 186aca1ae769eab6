"""Classes of two lists matched by name: a validation set's with the training data's, a test set's with a checkpoint's.

Labels are positions in a list and mean nothing outside it: the same number may be an apple here and a pear there.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class _Named(Protocol):
    @property
    def id(self) -> int: ...

    @property
    def name(self) -> str: ...


@dataclass(frozen=True)
class Classes:
    """What the labels 1, 2, … stand for. ``ids``: the data's category id of each; None where nobody wrote it down."""

    names: tuple[str, ...]
    ids: tuple[int, ...] | None = None

    @classmethod
    def of(cls, categories: Sequence[_Named]) -> Classes:
        """Names and ids of a table's categories."""
        return cls(tuple(c.name for c in categories), tuple(c.id for c in categories))

    @property
    def generic(self) -> bool:
        """The names say nothing: "class 1", "class 2" … of a data set that brought none."""
        return all(name == f"class {n}" for n, name in enumerate(self.names, 1))

    def id_of(self, label: int) -> int:
        """The category id that results are written with; the label itself where no id is known."""
        return self.ids[label - 1] if self.ids is not None and 1 <= label <= len(self.ids) else label


@dataclass(frozen=True)
class Match:
    """``labels``: for each label of one list, from 1, the label in the other; 0 where the other has no such class.

    ``unknown``: names of used labels that the other list lacks. ``repeated``: names of used labels that stand in a
    list twice, where the ids do not tell which is which.
    """

    labels: tuple[int, ...]
    unknown: tuple[str, ...]
    repeated: tuple[str, ...]


def match_classes(mine: Classes, theirs: Classes, used: Collection[int]) -> Match:
    """The labels of ``mine`` in the numbering of ``theirs``, by name; ``used``: labels of ``mine`` with annotations.

    A name that stands twice in a list is told apart by the category ids, where both lists give that name the same ones.
    """
    if mine.names == theirs.names and (mine.ids is None or theirs.ids is None or mine.ids == theirs.ids):
        return Match(tuple(range(1, len(mine.names) + 1)), (), ())
    my_names, their_names = [_plain(n) for n in mine.names], [_plain(n) for n in theirs.names]
    often = Counter(my_names), Counter(their_names)
    label_of = {name: n for n, name in enumerate(their_names, 1)}
    labels, unknown, repeated = [], [], []
    for label, name in enumerate(my_names, 1):
        there = label_of.get(name, 0)
        if there and max(often[0][name], often[1][name]) > 1:
            there = _by_id(mine, theirs, label, [n for n, other in enumerate(their_names, 1) if other == name], name)
            if not there and label in used:
                repeated.append(mine.names[label - 1])
        elif not there and label in used:
            unknown.append(mine.names[label - 1])
        labels.append(there)
    return Match(tuple(labels), tuple(unknown), tuple(dict.fromkeys(repeated)))


def _by_id(mine: Classes, theirs: Classes, label: int, candidates: list[int], name: str) -> int:
    if mine.ids is None or theirs.ids is None:
        return 0
    own = {i for i, n in zip(mine.ids, mine.names, strict=True) if _plain(n) == name}
    by_id = {theirs.ids[n - 1]: n for n in candidates}
    return by_id[mine.ids[label - 1]] if own == by_id.keys() else 0


def _plain(name: str) -> str:
    """Without what nobody sees: two ways to write "é", blanks at the ends."""
    return unicodedata.normalize("NFC", name).strip()


def saved_classes(contents: Mapping[str, Any], count: int) -> Classes | None:
    """The classes that a checkpoint holds for a model of ``count`` classes with background.

    None: it holds no names (a torchvision file), or they do not fit the model. Names that say nothing ("class 1" …) are
    handed out: `Classes.generic` tells them.
    """
    names, ids = contents.get("classes"), contents.get("category_ids")
    if not isinstance(names, (list, tuple)) or len(names) != count or not all(isinstance(n, str) for n in names):
        return None
    fits = isinstance(ids, (list, tuple)) and len(ids) == count - 1 and all(type(i) is int for i in ids)
    return Classes(tuple(names[1:]), tuple(ids) if fits and ids is not None else None)


def named_classes(contents: Mapping[str, Any], count: int) -> Classes:
    """`saved_classes`, with "class 1", "class 2" … for a checkpoint that holds no names."""
    return saved_classes(contents, count) or Classes(tuple(f"class {n}" for n in range(1, count)))
