"""Images of one set that another holds again: saved anew, resized, cut, mirrored or turned. No torch.

Each image is a few squares of 16 × 16 grey means (`views`), whose correlation finds candidates among all pairs in one
product of two matrices. A candidate is looked at again, larger: in a copy no part differs, in two frames of one film
something moved, and two wells of one plate only look alike. What may be cut at its sides is laid on the other first.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product

import numpy as np
from PIL import Image

from maskrcnn_coco.data.coco.table import CocoTable
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.views import PARTS, SIDE, grey, views_of
from maskrcnn_coco.errors import DataError

LIKE = 0.95
"""Correlation of two squares from which on the images are looked at again."""
PLAIN = 3.0
"""Grey levels by which the square of an image spreads, at least: an empty picture is like any other."""
LARGE, BLOCK, KEPT = 96, 8, 200
"""Side of the larger square, of its parts that are compared, and of the picture that a cut one is laid on, pixels."""
BLOCKS, PIXELS = 0.2, 0.25
"""What a part, and all pixels in the root mean square, may differ by, in standard deviations of the picture."""
TONE_BLOCKS, TONE_PIXELS = 0.3, 0.1
"""The same where brightness was cut off: little is different, and at the bright or dark end."""
CUT_BLOCKS, CUT_PIXELS = 0.15, 0.15
"""The same where one picture was laid on the other: what is right lies within 0.05."""
MOST_CUT = 0.12
"""Share of width and height that may be gone."""
PAIRS = 40_000_000
"""Pairs, in all positions, that are compared: of more, some of the images that could be copies."""
CANDIDATES, LAID = 300, 100
"""Pairs that are looked at again, most, and those of them that are laid on each other: 20 ms each."""
POSITIONS = ("", "mirrored", "turned by half", "mirrored top to bottom", "turned", "turned", "turned", "turned")
"""What was done to the copy, for each of `_positions`."""
CUT = "cut at its sides"


@dataclass(frozen=True)
class Copy:
    """Row ``one`` of the first set is row ``other`` of the second; ``how``: what was done to it, "" for nothing."""

    one: int
    other: int
    how: str


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
        mine, theirs: float32 (N, 6, SIDE, SIDE) as of `views_of`; NaN where there is no picture. A part of one that is
            like the whole of the other has the position 0.
    """
    ours, some = [_directions(mine[:, n]) for n in range(1 + len(PARTS))], np.arange(len(theirs))
    most = max(1, PAIRS // ((len(POSITIONS) + 2 * len(PARTS)) * max(1, len(mine))))
    if len(some) > most:
        some = np.unique(np.linspace(0, len(theirs) - 1, most).astype(int))
    found: dict[tuple[int, int, int], float] = {}
    whole = enumerate(map(_directions, _positions(theirs[some, 0])))
    compared = [(position, ours[0], directions) for position, directions in whole]
    compared += [(0, ours[1 + n], compared[0][2]) for n in range(len(PARTS))]
    compared += [(0, ours[0], _directions(theirs[some, 1 + n])) for n in range(len(PARTS))]
    for position, one, other in compared:
        for start in range(0, len(some), 256):
            like = other[start : start + 256] @ one.T
            for a, b in np.argwhere(like >= LIKE).tolist():
                key = (b, int(some[start + a]), position)
                found[key] = max(found.get(key, 0.0), float(like[a, b]))
        if len(found) > 100 * CANDIDATES:  # all pictures are alike: it is not copies
            break
    return sorted(((like, *key) for key, like in found.items()), reverse=True)[:CANDIDATES]


def _directions(squares: np.ndarray) -> np.ndarray:
    """Each square without its mean and spread, float32 (N, SIDE²); zeros where it is plain."""
    flat = squares.reshape(len(squares), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    spread = flat.std(axis=1, keepdims=True)
    usable = np.isfinite(spread) & (spread >= PLAIN)
    return np.where(usable, flat / np.where(usable, spread, 1) / np.sqrt(flat.shape[1]), 0).astype(np.float32)


def near_copies(
    table: CocoTable, other: CocoTable, workers: int = 1, views: list[np.ndarray | None] | None = None
) -> list[Copy]:
    """Which images of ``table`` ``other`` holds again; one answer for each image of ``other``.

    Args:
        views: of the images of ``table`` as `views_of` gives them, None for those that cannot be read; None: they are
            read here.
    """
    kept: dict[tuple[int, int], Image.Image | None] = {}
    found: dict[int, Copy] = {}
    laid = 0
    ours, theirs = (_stacked(v) for v in (views or _views(table, workers), _views(other, workers)))
    for _, one, twin, position in candidates(ours, theirs):
        if twin in found:
            continue
        for which, (of, row) in enumerate(((table, one), (other, twin))):
            if (which, row) not in kept:
                kept[which, row] = _picture(of, row)
        a, b = kept[0, one], kept[1, twin]
        if a is None or b is None:
            continue
        x, y = grey(a, LARGE), _positions(grey(b, LARGE))[position]
        if is_copy(x, y) or is_copy(x, y, TONE_BLOCKS, TONE_PIXELS):
            found[twin] = Copy(one, twin, POSITIONS[position])
        elif position == 0 and laid < LAID:
            laid += 1
            if is_cut(a, b) or is_cut(b, a):
                found[twin] = Copy(one, twin, CUT)
    return sorted(found.values(), key=lambda c: c.one)


def _stacked(views: list[np.ndarray | None]) -> np.ndarray:
    missing = np.full((1 + len(PARTS), SIDE, SIDE), np.nan, np.float32)
    return np.array([missing if v is None else v for v in views], np.float32).reshape(-1, *missing.shape)


def _views(table: CocoTable, workers: int) -> list[np.ndarray | None]:
    def views(row: int) -> np.ndarray | None:
        image = _image(table, row)
        return None if image is None else views_of(image)

    with ThreadPoolExecutor(max(workers, 1)) as pool:
        return list(pool.map(views, range(len(table)), chunksize=16))


def _image(table: CocoTable, row: int) -> Image.Image | None:
    try:
        return Image.fromarray(read_image(table.image_root, table.file_name(row), table.bit_range))
    except DataError:
        return None


def _picture(table: CocoTable, row: int) -> Image.Image | None:
    image = _image(table, row)
    return None if image is None else Image.fromarray(grey(image, KEPT))


def is_copy(one: np.ndarray, other: np.ndarray, blocks: float = BLOCKS, pixels: float = PIXELS) -> bool:
    """Whether two squares, uint8 (LARGE, LARGE), show the same everywhere, brightness and contrast left aside."""
    if min(one.std(), other.std()) < PLAIN:
        return False
    return any(_differ(x, y, blocks, pixels) is False for x, y in ((one, other), (other, one)))


def _differ(x: np.ndarray, y: np.ndarray, blocks: float, pixels: float) -> bool:
    """Whether ``x`` differs from ``y`` with its greys exchanged for those of ``x``, the darkest for the darkest."""
    often = np.bincount(y.ravel(), minlength=256)
    ends = np.cumsum(often)
    sums = np.concatenate([[0.0], np.cumsum(np.sort(x.ravel()), dtype=np.float64)])
    left = x - ((sums[ends] - sums[ends - often]) / np.maximum(often, 1))[y]
    parts = left.reshape(LARGE // BLOCK, BLOCK, LARGE // BLOCK, BLOCK).mean(axis=(1, 3))
    spread = float(x.std())
    return bool(np.abs(parts).max() >= blocks * spread or left.std() >= pixels * spread)


def is_cut(whole: Image.Image, part: Image.Image) -> bool:
    """Whether ``part`` is ``whole`` without up to `MOST_CUT` of its width and height: it is laid where it fits best."""
    square = grey(part, LARGE)
    if square.std() < PLAIN:
        return False
    centred = square - square.mean()
    centred = centred / np.sqrt((centred * centred).sum())

    def look(share: float, x: float, y: float) -> tuple[float, np.ndarray]:
        side = KEPT * (1 - share)
        x0, y0 = (KEPT - side) * x, (KEPT - side) * y
        there = grey(whole, LARGE, (x0, y0, x0 + side, y0 + side))
        u = there - there.mean()
        return float((u * centred).sum() / max(np.sqrt((u * u).sum()), 1e-6)), there

    place, steps, best = (0.05, 0.5, 0.5), (0.03, 0.5, 0.5), look(0.05, 0.5, 0.5)
    for _ in range(6):
        moved = [tuple(p + m * s for p, m, s in zip(place, move, steps, strict=True)) for move in _MOVES]
        around = [(min(max(f, 0.005), MOST_CUT), min(max(x, 0.0), 1.0), min(max(y, 0.0), 1.0)) for f, x, y in moved]
        seen = [look(*p) for p in around]
        nearest = max(range(len(seen)), key=lambda n: seen[n][0])
        if seen[nearest][0] > best[0]:
            best, place = seen[nearest], around[nearest]
        steps = (steps[0] / 2, steps[1] / 2, steps[2] / 2)
    return is_copy(best[1], square, CUT_BLOCKS, CUT_PIXELS)


_MOVES = list(product((-1, 0, 1), repeat=3))
