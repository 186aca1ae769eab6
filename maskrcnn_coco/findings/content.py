"""Do outlines lie where pictures have edges? As they are, and read otherwise. NumPy only.

Boxes and masks that agree with each other say nothing of the picture: one that was flipped alone, or belongs to another
item, trains for days. Edges tell. Each picture's edge strength is replaced by its rank, so that an outline laid at
random scores 0.5 in any picture, dark or bright; whether a reading fits is judged over the pictures, never on one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from maskrcnn_coco.findings.facts import Content
from maskrcnn_coco.findings.placements import Place, moved, scaled

SIDE, OBJECTS, POINTS = 320, 10, 1500
"""Longest side that is looked at, pixels; objects, and points of their outlines, of one picture."""
FEW = 250
"""Points of a picture with which the hundreds of factors are tried."""
FEWEST = 8
"""Pictures with objects that an answer needs."""
SURE, LITTLE = 5.0, 0.3
"""Standard errors by which a reading has to be above the outlines as they are, and above chance; and the share of its
own gain over chance that these may have."""
BESIDE = 0.6
"""That share for outlines that lie beside their objects by the same way everywhere: they still meet some edges."""
MOST, HIGH = 0.8, 0.65
"""Share of the pictures that a reading must fit better, and the rank that it must reach."""
LEAP, PART = 0.2, 0.2
"""What a picture gains where it alone was flipped, and the share of such pictures from which on it is said."""
TURNS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mirrored left to right": lambda p: np.stack([1 - p[:, 0], p[:, 1]], 1),
    "mirrored top to bottom": lambda p: np.stack([p[:, 0], 1 - p[:, 1]], 1),
    "turned by half": lambda p: 1 - p,
    "x and y exchanged": lambda p: p[:, ::-1],
    "turned to the left": lambda p: np.stack([p[:, 1], 1 - p[:, 0]], 1),
    "turned to the right": lambda p: np.stack([1 - p[:, 1], p[:, 0]], 1),
    "exchanged and turned": lambda p: 1 - p[:, ::-1],
}
"""Name → where a point of an outline, in shares of width and height, lies under that reading."""


@dataclass(frozen=True)
class Picture:
    """``ranks`` float32 (h, w) in 0..1, edge strength; ``points`` float64 (N, 2), of outlines, x and y in shares.

    ``index``: its place in the data set. ``sides``: its true width and height, pixels.
    """

    ranks: np.ndarray
    points: np.ndarray
    image_id: int
    index: int
    sides: tuple[int, int]


def picture_of(image: np.ndarray, masks: np.ndarray, image_id: int, index: int) -> Picture:
    """A picture (3, H, W) of any range with masks bool (N, h, w), also of another size, made small."""
    height, width = image.shape[-2:]
    small = _means(image.astype(np.float32), _step(height, width))
    step = _step(*masks.shape[1:])
    points = [_outline(m[::step, ::step]) for m in masks[:: max(1, -(-len(masks) // OBJECTS))]]
    found = np.concatenate(points) if points else np.zeros((0, 2))
    if len(found) > POINTS:
        found = found[np.linspace(0, len(found) - 1, POINTS).astype(np.int64)]
    shares = (found * step + step / 2) / masks.shape[:0:-1]
    return Picture(_ranks(_edges(small)), shares, image_id, index, (width, height))


def _step(height: int, width: int) -> int:
    return max(1, -(-max(height, width) // SIDE))


def _means(image: np.ndarray, step: int) -> np.ndarray:
    h, w = (s // step * step for s in image.shape[-2:])
    return image[:, :h, :w].reshape(len(image), h // step, step, w // step, step).mean(axis=(2, 4))


def _edges(image: np.ndarray) -> np.ndarray:
    """Largest gradient of the channels, and of the pixels around: outlines are drawn to about a pixel."""
    gradients = np.gradient(image, axis=(1, 2)) if min(image.shape[1:]) > 1 else [np.zeros_like(image)] * 2
    strength = np.pad(np.hypot(*gradients).max(axis=0), 1, mode="edge")
    h, w = image.shape[1:]
    return np.max([strength[y : y + h, x : x + w] for y in range(3) for x in range(3)], axis=0)


def _ranks(values: np.ndarray) -> np.ndarray:
    flat = np.nan_to_num(values.ravel())
    order = np.sort(flat)
    middle = np.searchsorted(order, flat, "left") + np.searchsorted(order, flat, "right")
    return (middle / (2 * max(len(flat), 1))).astype(np.float32).reshape(values.shape)


def _outline(mask: np.ndarray) -> np.ndarray:
    """x and y of the pixels of a mask that have a neighbour outside it, but for those at the border of the picture."""
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    line = mask & ~inner
    line[[0, -1]] = False
    line[:, [0, -1]] = False
    ys, xs = np.nonzero(line)
    return np.stack([xs, ys], axis=1).astype(np.float64)


def score(ranks: np.ndarray, points: np.ndarray) -> float:
    """Mean rank under the points; 0.5 for those outside."""
    h, w = ranks.shape
    x, y = np.floor(points[:, 0] * w).astype(np.int64), np.floor(points[:, 1] * h).astype(np.int64)
    inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
    found = np.where(inside, ranks[np.clip(y, 0, h - 1), np.clip(x, 0, w - 1)], 0.5)
    return float(found.mean())


def content_of(pictures: list[Picture], of: str = "training data") -> Content | None:
    """How outlines fit as they are, and read otherwise; None where there are too few to tell."""
    seen = [p for p in pictures if len(p.points) >= 8]
    if len(seen) < FEWEST:
        return None
    own, chance = _under(seen, lambda p: p.points)
    found = Content(len(seen), float(own.mean()), float(chance.mean()), _errors(own - chance), of=of)
    found.image_ids = [p.image_id for p in seen[:20]]
    _turns(found, seen, own, chance)
    if found.own - found.chance <= LITTLE * (1 - found.chance) and not found.readings:
        _elsewhere(found, seen, own)
        if not found.elsewhere:
            _scaled(found, seen, own, chance)
    if found.own - found.chance <= BESIDE * (1 - found.chance) and not (
        found.readings or found.elsewhere or found.parts
    ):
        way = moved([(p.ranks, p.points, np.array(p.sides)) for p in seen])
        if way is not None:
            _placed(found, seen, own, chance, way, BESIDE)
    return found


def _under(pictures: list[Picture], where: Callable[[Picture], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) of the outlines laid as ``where`` says, and of the same on three other pictures: chance."""
    count = len(pictures)
    laid = [where(p) for p in pictures]
    own = np.array([score(p.ranks, points) for p, points in zip(pictures, laid, strict=True)])
    ways = {count // 3, count // 2, 5} - {0, count}
    chance = [[score(pictures[(n + k) % count].ranks, points) for k in ways] for n, points in enumerate(laid)]
    return own, np.array(chance).mean(axis=1)


def _errors(difference: np.ndarray) -> float:
    """A mean in standard errors of itself."""
    spread = float(difference.std(ddof=1)) / np.sqrt(len(difference))
    return float(difference.mean() / max(spread, 1e-3))


def _fits(new: np.ndarray, there: np.ndarray, own: np.ndarray, chance: np.ndarray, most: float = LITTLE) -> bool:
    """Clearly better than as they are, in most pictures, and only where they belong (``there``: elsewhere)."""
    better = float((new > own).mean())
    sure = min(_errors(new - own), _errors(new - there)) >= SURE
    little = own.mean() - chance.mean() <= most * (new.mean() - there.mean())
    return better >= MOST and bool(new.mean() >= HIGH) and sure and bool(little)


def _turns(found: Content, seen: list[Picture], own: np.ndarray, chance: np.ndarray) -> None:
    square = all(0.98 < p.sides[0] / p.sides[1] < 1.02 for p in seen)
    for name, turn in list(TURNS.items())[: None if square else 3]:
        new, there = _under(seen, lambda p, turn=turn: turn(p.points))
        leaps = (new - own >= LEAP) & (new >= HIGH) & (own <= chance + LEAP / 2)
        if _fits(new, there, own, chance):
            found.readings[name] = float(new.mean())
        elif leaps.mean() >= PART and leaps.sum() >= 4:
            found.parts[name] = int(leaps.sum())
            found.image_ids = [p.image_id for p, leap in zip(seen, leaps, strict=True) if leap][:20]


def _scaled(found: Content, seen: list[Picture], own: np.ndarray, chance: np.ndarray) -> None:
    """Outlines that were meant for pictures of another size."""
    ways = list(scaled())
    few = [replace(p, points=p.points[:: 1 + len(p.points) // FEW]) for p in seen]
    scores = [float(np.mean([score(p.ranks, way(p.points, np.array(p.sides))) for p in few])) for _, way in ways]
    _placed(found, seen, own, chance, ways[int(np.argmax(scores))])


def _placed(
    found: Content,
    seen: list[Picture],
    own: np.ndarray,
    chance: np.ndarray,
    reading: tuple[str, Place],
    most: float = LITTLE,
) -> None:
    name, place = reading
    new, there = _under(seen, lambda p: place(p.points, np.array(p.sides)))
    if _fits(new, there, own, chance, most):
        found.readings[name] = float(new.mean())


def _elsewhere(found: Content, seen: list[Picture], own: np.ndarray) -> None:
    """Outlines that each lie on another picture: which, by its place in the data set."""
    table = np.array([[score(q.ranks, p.points) for q in seen] for p in seen])
    best = table.argmax(axis=1)
    second = np.sort(table, axis=1)[:, -2]
    sure = (table.max(axis=1) >= HIGH) & (table.max(axis=1) - second >= LEAP / 4) & (best != np.arange(len(seen)))
    if sure.mean() < 0.5 or len(set(best[sure].tolist())) < 0.8 * sure.sum():
        return
    ways = [seen[int(b)].index - p.index for p, b, s in zip(seen, best, sure, strict=True) if s]
    steps, counts = np.unique(ways, return_counts=True)
    step = int(steps[counts.argmax()]) if counts.max() >= 0.8 * len(ways) else 0
    found.elsewhere, found.step = int(sure.sum()), step
