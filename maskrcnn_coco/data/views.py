"""A picture as a few grey means, small enough to keep for a whole set: what near copies are looked for by."""

from __future__ import annotations

import numpy as np
from PIL import Image

from maskrcnn_coco.data.jpeg import TURNS

SIDE = 16
"""Of a view, pixels."""
CUT = 0.05
"""Share of the width and height that the views of a part leave out."""
PARTS = ((0.5, 0.5), (0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (1.0, 1.0))
"""Where these parts lie: in the middle, and at each corner."""
Box = tuple[float, float, float, float]


def grey(image: Image.Image, side: int, box: Box | None = None) -> np.ndarray:
    """Grey means of a picture, or of the part in ``box`` (x0, y0, x1, y1 in pixels), uint8 (side, side)."""
    how = {"box": box, "reducing_gap": 4.0}
    return np.asarray(image.convert("L").resize((side, side), Image.Resampling.BILINEAR, **how))


def views_of(image: Image.Image, orientation: int = 1) -> np.ndarray:
    """The whole picture and `PARTS` of it, turned as its EXIF ``orientation`` says; uint8 (6, SIDE, SIDE)."""
    width, height = image.size
    plain = image.convert("RGB").convert("L") if image.mode == "P" else image.convert("L")
    wide, high = (1 - CUT) * width, (1 - CUT) * height
    corners = [(x * CUT * width, y * CUT * height) for x, y in PARTS]
    boxes: list[Box | None] = [None, *((x, y, x + wide, y + high) for x, y in corners)]
    found = np.stack([grey(plain, SIDE, box) for box in boxes])
    if orientation == 1:
        return found
    # A corner of the stored picture is another one of the picture that is shown: the parts go along.
    return np.stack([TURNS[orientation](v) for v in found])[_ORDER[orientation]]


def _order(orientation: int) -> list[int]:
    """Which part of the stored picture becomes each part of the one that is shown."""
    marks = np.zeros((2, 2), np.int64)
    for n, (x, y) in enumerate(PARTS[1:], 2):
        marks[int(y), int(x)] = n
    marks = TURNS[orientation](marks)
    return [0, 1, *(int(marks[int(y), int(x)]) for x, y in PARTS[1:])]


_ORDER = {n: _order(n) for n in TURNS}
