"""Pictures of coloured objects, and a detector that finds them without fail: a pure function of the pixels it sees."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskrcnn_coco.inference.detections import Found, Window, found_of, nothing
from maskrcnn_coco.inference.metadata import Card
from maskrcnn_coco.inference.predictor import Predictor

CLASSES = ("disc", "bar")


class ColourEngine:
    """Each colour but black is one object; its red channel's parity is its class. ``seen``: sizes of the images."""

    def __init__(self, score: float = 0.9) -> None:
        self.model, self.batch_size, self.score = None, 2, score
        self.seen: list[tuple[int, ...]] = []

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        self.seen += [i.shape[:2] for i in images]
        return [self._one(i) for i in images]

    def _one(self, image: np.ndarray) -> Found:
        codes = image.astype(np.int64) @ np.array([65536, 256, 1])
        values = [v for v in np.unique(codes) if v]
        if not values:
            return nothing()
        windows = [Window(0, 0, codes == v).trimmed() for v in values]
        scores = [self.score - 1e-4 * n for n in range(len(values))]
        return found_of([w.rectangle for w in windows], scores, [1 + int(v >> 16) % 2 for v in values], windows)


def predictor(score: float = 0.9, side: int | None = 64) -> Predictor:
    """A predictor of `ColourEngine`."""
    return Predictor(ColourEngine(score), Card(CLASSES, (7, 3), side))


def picture(height: int, width: int, objects: int, seed: int, *, largest: int = 60) -> np.ndarray:
    """uint8 (H, W, 3) with discs and bars that do not overlap, each in a colour of its own, on black."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3), np.uint8)
    y, x = np.mgrid[:height, :width]
    for n in range(objects):
        size = int(rng.integers(6, largest))
        cy, cx = int(rng.integers(0, height)), int(rng.integers(0, width))
        if n % 2:
            mask = (y - cy) ** 2 + (x - cx) ** 2 <= (size // 2) ** 2
        else:
            mask = (abs(y - cy) <= max(size // 8, 2)) & (abs(x - cx) <= size)
        mask &= image.sum(2) == 0
        # A ring of background around each: objects that touch would be cut by one another, not by a tile.
        image[mask] = (2 + n % 200, 50 + n // 200, 1 + int(rng.integers(0, 200)))
    return image
