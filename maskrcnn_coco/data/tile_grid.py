"""How a large image is cut: the same tiles in training, evaluation and prediction. NumPy only."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

Rectangle = tuple[int, int, int, int]
"""(x0, y0, x1, y1) in pixels, x1 and y1 just outside."""
OVERLAP = 0.25
"""Share of a tile that its neighbour sees, too, unless told otherwise."""
_WORTH = 1.5
"""An image is cut where it is longer than this many tiles."""


def grid(height: int, width: int, side: int, overlap: float) -> list[Rectangle]:
    """Tiles of one size that cover an image, at least ``overlap`` of each shared with its neighbour.

    An image not longer than 1.5 tiles is one tile.
    """
    if max(height, width) <= _WORTH * side:
        return [(0, 0, width, height)]
    rows, columns = (_starts(length, side, overlap) for length in (height, width))
    h, w = min(side, height), min(side, width)
    return [(x, y, x + w, y + h) for y in rows for x in columns]


def _starts(length: int, side: int, overlap: float) -> list[int]:
    if length <= side:
        return [0]
    count = math.ceil((length - side) / max(side * (1 - overlap), 1)) + 1
    return [round(n * (length - side) / (count - 1)) for n in range(count)]


@dataclass(frozen=True, eq=False)
class Tiles:
    """A data set's images as tiles; an image that is not cut is one tile.

    Attributes:
        side: of the square tiles, pixels; one at least as long as its image is as long as that.
        rows: int64 (T,), the image of each tile, in order.
        rectangles: int64 (T, 4): x0, y0, x1, y1 of each in its image; zeros for an image that is not cut.
        numbers: int64 (T,): how many tiles of the same image come before it.
    """

    side: int
    rows: np.ndarray
    rectangles: np.ndarray
    numbers: np.ndarray

    @classmethod
    def of(cls, heights: np.ndarray, widths: np.ndarray, side: int) -> Tiles:
        """The tiles of images of these sizes, pixels; one whose size is not known (0) is not cut."""
        rows, rectangles, numbers = [], [], []
        for row, (height, width) in enumerate(zip(heights.tolist(), widths.tolist(), strict=True)):
            found = grid(height, width, side, OVERLAP)
            for number, rectangle in enumerate(found):
                rows.append(row)
                rectangles.append(rectangle if len(found) > 1 else (0, 0, 0, 0))
                numbers.append(number)
        cut = np.array(rectangles, np.int64).reshape(-1, 4)
        return cls(side, np.array(rows, np.int64), cut, np.array(numbers, np.int64))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def cut(self) -> np.ndarray:
        """int64: the images that are cut."""
        return np.unique(self.rows[self.rectangles[:, 2] > 0])

    def rectangle(self, index: int) -> Rectangle | None:
        """Tile ``index`` in its image; None: the whole image."""
        x0, y0, x1, y1 = self.rectangles[index].tolist()
        return (x0, y0, x1, y1) if x1 else None
