"""The image that an annotation file of another tool speaks of, wherever it lies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from maskrcnn_coco.data.file_names import FileIndex, plain_name, tails


class Images:
    """Image files below a folder, found by the names that tools give them: with folders or none, with suffix or none.

    Args:
        root: of the annotations. images: of the images, if elsewhere.
    """

    def __init__(self, root: Path, images: Path | None) -> None:
        self.root = images or root
        self._index: FileIndex | None = None

    def find(self, name: str, near: Sequence[Path] = ()) -> Path:
        """The file that ``name`` means: in a folder ``near``, else below the root; else where it should be."""
        plain = plain_name(name)
        for place in near:
            for tail in tails(plain):
                if (place / tail).is_file():
                    return place / tail
        if self._index is None:
            self._index = FileIndex(self.root)
        found = self._index.answer(plain).files if plain else ()
        return self.root / (found[0] if len(found) == 1 else plain.rpartition("/")[2])
