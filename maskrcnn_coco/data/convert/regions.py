"""Label maps → objects: the values in a picture, and the connected regions of one value. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from maskrcnn_coco.data.images import raw_values, read_image
from maskrcnn_coco.errors import DataError


def read_map(path: Path) -> np.ndarray:
    """A label map as whole numbers (H, W): palette and grey values as they are, colours as 65536 r + 256 g + b.

    Raises:
        DataError: not an image.
    """
    deep = raw_values(path.parent, path.name)
    if deep is not None:
        return deep.astype(np.int64) if deep.ndim == 2 else _colours(deep >> 8)
    pixels = read_image(path.parent, path.name)  # refuses bombs, and what is no image
    try:
        with Image.open(path) as image:
            if image.mode in ("P", "L", "1"):
                values = np.asarray(image)
                return values.astype(np.int64)
    except (OSError, ValueError, SyntaxError) as e:
        raise DataError(f"the mask {path} cannot be read: {e}", fix="write it again as PNG") from e
    grey = bool((pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 1] == pixels[..., 2]).all())
    return pixels[..., 0].astype(np.int64) if grey else _colours(pixels)


def _colours(pixels: np.ndarray) -> np.ndarray:
    wide = pixels.astype(np.int64)
    return (wide[..., 0] << 16) + (wide[..., 1] << 8) + wide[..., 2]


def regions(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The connected regions of a mask (H, W) bool, each as a mask; pixels that touch at a corner are connected."""
    runs = _runs(mask)
    owner = list(range(len(runs)))

    def find(n: int) -> int:
        while owner[n] != n:
            owner[n] = owner[owner[n]]
            n = owner[n]
        return n

    above, current, row = range(0), range(0), -1
    for n, (y, start, stop) in enumerate(runs):
        if y != row:
            above = current if y == row + 1 else range(0)
            current, row = range(n, n), y
        current = range(current.start, n + 1)
        for m in above:
            if runs[m][1] <= stop and start <= runs[m][2]:  # one pixel further: corners count
                owner[find(n)] = find(m)
    groups: dict[int, list[int]] = {}
    for n in range(len(runs)):
        groups.setdefault(find(n), []).append(n)
    for members in groups.values():
        part = np.zeros(mask.shape, bool)
        for n in members:
            y, start, stop = runs[n]
            part[y, start:stop] = True
        yield part


def _runs(mask: np.ndarray) -> list[tuple[int, int, int]]:
    """(row, first column, column after the last) of each run of pixels, in reading order."""
    edges = np.diff(np.pad(mask.astype(np.int8), ((0, 0), (1, 1))), axis=1)
    rows, starts = np.nonzero(edges == 1)
    _, stops = np.nonzero(edges == -1)
    return list(zip(rows.tolist(), starts.tolist(), stops.tolist(), strict=True))
