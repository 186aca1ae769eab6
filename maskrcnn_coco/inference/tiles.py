"""A large image in tiles that overlap, and the objects of all tiles as objects of the image. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maskrcnn_coco.data.tile_grid import OVERLAP, Rectangle
from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.inference.detections import Found, Window, found_of, nothing, union

_SAME = 0.5
"""Two masks are of one object where they overlap by more than this."""
_UNSURE = 1 / 3
"""Of the score of a part of an object: a whole view that is less sure than that is not taken in its place."""


def tile_side(tile: int | str | None, usual: int | None) -> int | None:
    """The side of tiles in pixels; None: images are not cut.

    Args:
        tile: a side, "auto" or None.
        usual: the side of the images that the model knows, pixels.

    Raises:
        ConfigError: neither a usable number nor "auto".
    """
    if tile is None:
        return None
    text = str(tile).strip().lower().removesuffix(".0")
    if text == "auto":
        return usual
    if not text.isascii() or not text.isdigit() or not 32 <= int(text) <= 8192:
        raise ConfigError("--tile is no size", got=tile, expected="auto, or 32 to 8192 pixels", fix="--tile auto")
    return int(text)


def check_overlap(overlap: Any) -> float:
    """The share as it is. Raises ConfigError where it is no number in 0..0.75."""
    number = isinstance(overlap, (int, float, np.integer, np.floating)) and not isinstance(overlap, bool)
    if not number or not 0.0 <= overlap <= 0.75:
        pixels = number and overlap >= 1
        raise ConfigError(
            "--overlap is not a usable share", got=repr(overlap),
            expected="0 to 0.75, a share of the tile" + (" and no number of pixels" if pixels else ""),
            fix="--overlap 0.25",
        )  # fmt: skip
    return float(overlap)


def idle_overlap(tile: Any, overlap: Any) -> str | None:
    """A sentence where an overlap is given and nothing is cut; ``tile`` and ``overlap`` as the flags have them."""
    if tile is not None or overlap == OVERLAP:
        return None
    return f"--overlap {overlap} does nothing: without --tile no image is cut"


@dataclass
class _Piece:
    """One object as one tile saw it. ``cut``: the tile may have seen only a part of it."""

    tile: int
    box: np.ndarray
    score: float
    label: int
    window: Window
    area: int
    cut: bool


def merge(tiles: Sequence[Rectangle], found: Sequence[Found], height: int, width: int) -> Found:
    """The objects of an image from what was found in each tile (in the tile's own pixels).

    Two pieces are views of one object where their masks agree on the part of the image that both tiles see, or where
    a piece cut off at its tile's side lies in the other. The surest come first: a view that its tile saw whole takes
    all others of its object away; pieces of one that no tile saw whole, or only a third as surely, are joined, with
    the best piece's score.
    """
    pieces = [
        _piece(n, tile, one, i, height, width)
        for n, (tile, one) in enumerate(zip(tiles, found, strict=True))
        for i in range(len(one))
    ]
    if not pieces:
        return nothing()
    kept = [_joined(group) for group in _groups(pieces, tiles)]
    return found_of([p.box for p in kept], [p.score for p in kept], [p.label for p in kept], [p.window for p in kept])


def _piece(number: int, tile: Rectangle, found: Found, i: int, height: int, width: int) -> _Piece:
    x0, y0, x1, y1 = tile
    window = found.windows[i].trimmed().moved(x0, y0)
    box = found.boxes[i] + np.array((x0, y0, x0, y0), np.float32)
    left, top, right, bottom = window.rectangle if window.mask.size else box.tolist()
    near = max(2, (x1 - x0) // 100)
    cut = (
        (left - x0 < near and x0 > 0) or (top - y0 < near and y0 > 0)
        or (x1 - right < near and x1 < width) or (y1 - bottom < near and y1 < height)
    )  # fmt: skip
    score, label = float(found.scores[i]), int(found.labels[i])
    return _Piece(number, box, score, label, window, int(window.mask.sum()), bool(cut))


def _groups(pieces: list[_Piece], tiles: Sequence[Rectangle]) -> list[list[_Piece]]:
    """One view that was seen whole, or the pieces that make up an object that was not; each object once."""
    near: list[list[int]] = [[] for _ in pieces]
    for a, b in _near_pairs(pieces, tiles):
        near[a].append(b)
        near[b].append(a)
    beside = _beside(pieces, [bool(n) for n in near])
    free, groups = [True] * len(pieces), []
    for n in sorted(range(len(pieces)), key=lambda n: -pieces[n].score * (_UNSURE if pieces[n].cut else 1.0)):
        if not free[n]:
            continue
        free[n], group = False, [n]
        for m in beside.get(n, []):
            if free[m] and _lies_in(pieces[m], pieces[n]):
                free[m] = False
        for k in group:  # grows while it is gone through
            for m in near[k]:
                if free[m] and (_same(pieces[k], pieces[m], tiles) or _lies_in(pieces[m], pieces[k])):
                    free[m] = False
                    # Whatever is unsure may lie across two objects: it goes, but joins nothing.
                    if pieces[n].cut and pieces[m].cut and pieces[m].score > _UNSURE * pieces[n].score:
                        group.append(m)
        groups.append([pieces[k] for k in group])
    return groups


def _beside(pieces: list[_Piece], seen_twice: list[bool]) -> dict[int, list[int]]:
    """Of each piece that another tile may have seen, too, those of its own tile and class whose windows meet its."""
    corners = np.array([p.window.rectangle for p in pieces])
    of_tile: dict[tuple[int, int], list[int]] = {}
    for n, piece in enumerate(pieces):
        if seen_twice[n]:
            of_tile.setdefault((piece.tile, piece.label), []).append(n)
    out = {}
    for places in of_tile.values():
        meet = _meet(corners[places][:, None], corners[places][None])
        for i, n in enumerate(places):
            out[n] = [places[j] for j in np.flatnonzero(meet[i]) if j != i]
    return out


def _near_pairs(pieces: list[_Piece], tiles: Sequence[Rectangle]) -> list[tuple[int, int]]:
    """Pairs of the same class and of different tiles whose windows meet.

    A window lies in its tile, so two meet only on what both tiles see: pieces are compared along seams alone.
    """
    corners, labels = np.array([p.window.rectangle for p in pieces]), np.array([p.label for p in pieces])
    owners, sides = np.array([p.tile for p in pieces]), np.array(tiles)
    ours = [np.flatnonzero(owners == n) for n in range(len(tiles))]
    pairs: list[tuple[int, int]] = []
    for n in range(len(tiles) - 1):
        for m in n + 1 + np.flatnonzero(_meet(sides[n], sides[n + 1 :])):
            shared = np.concatenate([np.maximum(sides[n, :2], sides[m, :2]), np.minimum(sides[n, 2:], sides[m, 2:])])
            here, there = (k[_meet(shared, corners[k])] for k in (ours[n], ours[m]))
            near = _meet(corners[here][:, None], corners[there][None]) & (labels[here][:, None] == labels[there])
            pairs += [(int(here[i]), int(there[j])) for i, j in np.argwhere(near)]
    return pairs


def _meet(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether rectangles (…, 4) have pixels in common, bool (…)."""
    return np.all((a[..., :2] < b[..., 2:]) & (b[..., :2] < a[..., 2:]), -1)


def _same(a: _Piece, b: _Piece, tiles: Sequence[Rectangle]) -> bool:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = tiles[a.tile], tiles[b.tile]
    shared = (max(ax0, bx0), max(ay0, by0), min(ax1, bx1), min(ay1, by1))
    ours, theirs = _inside(a.window, shared), _inside(b.window, shared)
    common = _common(a.window, b.window)
    if common == 0:
        return False
    if common > _SAME * (ours + theirs - common):
        return True
    return any(p.cut and common > _SAME * p.area for p in (a, b))


def _lies_in(piece: _Piece, surer: _Piece) -> bool:
    """Whether most of a less sure piece is another's; of two that were seen whole, whether most of either is."""
    least = piece.area if piece.cut or surer.cut else min(piece.area, surer.area)
    return _common(piece.window, surer.window) > _SAME * least


def _inside(window: Window, r: Rectangle) -> int:
    left, top, right, bottom = window.rectangle
    x0, y0, x1, y1 = max(r[0], left), max(r[1], top), min(r[2], right), min(r[3], bottom)
    return int(window.mask[y0 - top : y1 - top, x0 - left : x1 - left].sum()) if x0 < x1 and y0 < y1 else 0


def _common(a: Window, b: Window) -> int:
    left, top, right, bottom = a.rectangle
    x0, y0, x1, y1 = b.rectangle
    x0, y0, x1, y1 = max(left, x0), max(top, y0), min(right, x1), min(bottom, y1)
    return int((a.part(x0, y0, x1, y1) & b.part(x0, y0, x1, y1)).sum()) if x0 < x1 and y0 < y1 else 0


def _joined(group: list[_Piece]) -> _Piece:
    if len(group) == 1:
        return group[0]
    best = max(group, key=lambda p: p.score)
    boxes = np.array([p.box for p in group])
    box = np.concatenate([boxes[:, :2].min(0), boxes[:, 2:].max(0)])
    window = union([p.window for p in group])
    return _Piece(best.tile, box, best.score, best.label, window, int(window.mask.sum()), True)
