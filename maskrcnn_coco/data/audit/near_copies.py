"""Images of one set that another holds again: saved anew, resized, mirrored or turned. No torch.

Each image is a square of 16 × 16 grey means, whose correlation finds candidates among all pairs in one product of two
matrices. A candidate is looked at again, larger: in a copy no part differs, in two frames of one film something moved,
and two wells of one plate only look alike.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.errors import DataError

SIDE = 16
"""Of the squares that all pairs are compared by."""
LIKE = 0.95
"""Correlation of two squares from which on the images are looked at again."""
PLAIN = 3.0
"""Grey levels by which the square of an image spreads, at least: an empty picture is like any other."""
LARGE, BLOCK = 96, 8
"""Side of the larger square, and of its parts that are compared, pixels."""
BLOCKS, PIXELS = 0.2, 0.25
"""What a part, and all pixels in the root mean square, may differ by, in standard deviations of the picture."""
PAIRS = 40_000_000
"""Pairs, in all eight positions, that are compared: of more, some of the images that could be copies."""
CANDIDATES = 300
"""Pairs that are looked at again, most."""
POSITIONS = ("", "mirrored", "turned by half", "mirrored top to bottom", "turned", "turned", "turned", "turned")
"""What was done to the copy, for each of `_positions`."""


@dataclass(frozen=True)
class Copy:
    """Row ``one`` of the first set is row ``other`` of the second; ``how``: what was done to it, "" for nothing."""

    one: int
    other: int
    how: str


def square(pixels: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Grey means of uint8 (H, W, 3) as float32 (side, side); alike from both ends, so that mirrored copies stay so."""
    grey = Image.fromarray(pixels.mean(axis=2, dtype=np.float32))
    return np.asarray(grey.resize((side, side), Image.Resampling.BILINEAR))


def _positions(squares: np.ndarray) -> list[np.ndarray]:
    """The eight ways to lay a square on itself, (…, side, side) each."""
    quarter = np.swapaxes(squares, -1, -2)
    return [
        s[..., rows, :][..., :, columns]
        for s in (squares, quarter)
        for rows, columns in ((_ALL, _ALL), (_ALL, _BACK), (_BACK, _BACK), (_BACK, _ALL))
    ]


_ALL, _BACK = slice(None), slice(None, None, -1)


def candidates(mine: np.ndarray, theirs: np.ndarray) -> list[tuple[float, int, int, int]]:
    """(correlation, row of ``mine``, row of ``theirs``, position) of pairs that may be copies, the likest first.

    Args:
        mine, theirs: float32 (N, SIDE, SIDE); NaN where there is no picture.
    """
    ours, some = _directions(mine), np.arange(len(theirs))
    most = max(1, PAIRS // (8 * max(1, len(mine))))
    if len(some) > most:
        some = np.unique(np.linspace(0, len(theirs) - 1, most).astype(int))
    found = []
    for position, squares in enumerate(_positions(theirs[some])):
        directions = _directions(squares)
        for start in range(0, len(some), 256):
            like = directions[start : start + 256] @ ours.T
            for a, b in np.argwhere(like >= LIKE).tolist():
                found.append((float(like[a, b]), b, int(some[start + a]), position))
        if len(found) > 100 * CANDIDATES:  # all pictures are alike: it is not copies
            break
    return sorted(found, reverse=True)[:CANDIDATES]


def _directions(squares: np.ndarray) -> np.ndarray:
    """Each square without its mean and spread, float32 (N, SIDE²); zeros where it is plain."""
    flat = squares.reshape(len(squares), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    spread = flat.std(axis=1, keepdims=True)
    usable = np.isfinite(spread) & (spread >= PLAIN)
    return np.where(usable, flat / np.where(usable, spread, 1) / np.sqrt(flat.shape[1]), 0).astype(np.float32)


def near_copies(table: CocoTable, other: CocoTable, workers: int = 1) -> list[Copy]:
    """Which images of ``table`` ``other`` holds again; one answer for each image of ``other``."""
    kept: dict[tuple[int, int], np.ndarray | None] = {}
    found: dict[int, Copy] = {}
    for _, one, twin, position in candidates(_squares(table, workers), _squares(other, workers)):
        if twin in found:
            continue
        for which, (of, row) in enumerate(((table, one), (other, twin))):
            if (which, row) not in kept:
                kept[which, row] = _square_of(of, row, LARGE)
        a, b = kept[0, one], kept[1, twin]
        if a is not None and b is not None and is_copy(a, _positions(b)[position]):
            found[twin] = Copy(one, twin, POSITIONS[position])
    return sorted(found.values(), key=lambda c: c.one)


def _squares(table: CocoTable, workers: int) -> np.ndarray:
    missing = np.full((SIDE, SIDE), np.nan, np.float32)
    with ThreadPoolExecutor(max(workers, 1)) as pool:
        found = list(pool.map(lambda row: _square_of(table, row, SIDE), range(len(table)), chunksize=16))
    return np.array([missing if s is None else s for s in found])


def _square_of(table: CocoTable, row: int, side: int) -> np.ndarray | None:
    try:
        return square(read_image(table.image_root, table.file_name(row), table.bit_range), side)
    except DataError:
        return None


def is_copy(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two squares, float32 (LARGE, LARGE), show the same everywhere, brightness and contrast left aside."""
    x, y = one - one.mean(), other - other.mean()
    spread = float(x.std())
    if spread < PLAIN or float(y.std()) < PLAIN:
        return False
    left = x - y * float((x * y).sum() / (y * y).sum())
    parts = left.reshape(LARGE // BLOCK, BLOCK, LARGE // BLOCK, BLOCK).mean(axis=(1, 3))
    return bool(np.abs(parts).max() < BLOCKS * spread and left.std() < PIXELS * spread)
