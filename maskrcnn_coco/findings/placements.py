"""Where outlines may lie that do not lie on their pictures: by a factor, in resized or padded pictures, moved."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

SCALES = np.exp(np.arange(np.log(0.1), np.log(10.001), 0.008))
UNITS = (100, 1000, 416, 512, 640, 1024)
"""Sides of the picture that numbers are shares of: percent, thousandths, and what pictures are often stretched to."""
FARTHEST = 0.25
"""Share of a side by which outlines may have been moved: a crop, a margin."""

NEAR, ALONE = 3, 0.6
"""Pixels of what is looked at, or the length of the way, around the best one; what others may have of its gain."""

Place = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Points (N, 2) in shares of width and height, and those sides (2,) in pixels → the points where they may belong."""


def scaled() -> Iterator[tuple[str, Place]]:
    """One factor for all, or numbers that were meant for pictures of another size, stretched, shrunk or padded."""
    for f in SCALES:
        if abs(np.log(f)) > 0.05:
            yield f"scaled by about {f:.2g}", lambda p, sides, f=f: p * f
    for unit in UNITS:
        name = "read as percent" if unit == 100 else f"read in pictures of {unit} × {unit}"
        yield name, lambda p, sides, u=unit: p * sides / u
    yield "read in shares of the longer side", lambda p, sides: p * sides.max() / sides
    for unit in UNITS[2:]:
        yield f"read in pictures whose longer side is {unit}", lambda p, sides, u=unit: p * sides.max() / u
        yield f"read in pictures padded to {unit} × {unit}", lambda p, sides, u=unit: _unpadded(p, sides, u)


def _unpadded(points: np.ndarray, sides: np.ndarray, unit: int) -> np.ndarray:
    """Points in a square of ``unit`` in whose middle the picture lies, as in a letterbox."""
    longer = sides.max()
    return (points * sides * longer / unit - (longer - sides) / 2) / sides


def moved(pictures: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> tuple[str, Place] | None:
    """The one way by which outlines of all pictures have to be moved to lie on the most of their edges.

    None where another way does about as well: lines within objects, as of cracks, come to an edge either way.

    Args:
        pictures: of each, edge ranks (h, w) in 0..1, points (N, 2) in shares, sides (2,) in pixels.
    """
    middle = np.median([sides for _, _, sides in pictures], axis=0)
    shape = np.median([ranks.shape for ranks, _, _ in pictures], axis=0)
    step = float(max(middle / shape[::-1]))  # a pixel of what is looked at
    reach = [int(FARTHEST * side / step) for side in middle]
    x, y = (step * np.arange(-r, r + 1) for r in reach)
    total = np.zeros((len(y), len(x)))
    for ranks, points, sides in pictures:
        at = [
            np.rint(v / side * n).astype(np.int64) for v, side, n in zip((x, y), sides, ranks.shape[::-1], strict=True)
        ]
        total += _gains(ranks, points)[np.ix_(at[1] % (2 * ranks.shape[0]), at[0] % (2 * ranks.shape[1]))]
    row, column = np.unravel_index(int(total.argmax()), total.shape)
    way = np.array([x[column], y[row]])
    near = max(NEAR * step, float(np.hypot(*way)))
    others = total[np.hypot(x[None] - way[0], y[:, None] - way[1]) > near]
    if len(others) and others.max() > ALONE * total.max():
        return None
    named = zip(way, (("left", "right"), ("up", "down")), strict=True)
    words = [f"{abs(v):.0f} pixels {word[int(v > 0)]}" for v, word in named if abs(v) >= 0.5]
    return f"moved about {' and '.join(words)}", lambda p, sides: p + way / sides


def _gains(ranks: np.ndarray, points: np.ndarray) -> np.ndarray:
    """(2h, 2w): the mean rank above a half under the points, moved by each number of rows and columns; cyclic."""
    h, w = ranks.shape
    hits = np.zeros((2 * h, 2 * w))
    at = np.floor(points * (w, h)).astype(np.int64)
    at = at[((at >= 0) & (at < (w, h))).all(axis=1)]
    np.add.at(hits, (at[:, 1], at[:, 0]), 1 / max(len(points), 1))
    above = np.zeros_like(hits)
    above[:h, :w] = ranks - 0.5
    return np.fft.irfft2(np.fft.rfft2(above) * np.fft.rfft2(hits).conj(), s=hits.shape)
