"""Boxes, masks and labels on a picture, legible at any size. NumPy and Pillow only, no torch."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.wording import clean

Colour = tuple[int, int, int]

# Okabe and Ito's set for the colour-blind without its black, then Tol's bright set.
PALETTE: tuple[Colour, ...] = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167),
    (102, 204, 238), (34, 136, 51), (204, 187, 68), (238, 102, 119), (170, 51, 119),
)  # fmt: skip
ALARM: Colour = (238, 51, 51)
_FILL = 0.38
_SMALL_SIDE = 420
"""Smaller pictures are enlarged before drawing: a line of one pixel covers too much of them."""


@dataclass(frozen=True)
class Shape:
    """One object to draw: ``box`` xywh in pixels, ``mask`` bool (H, W) or None, and the text beside it."""

    box: Sequence[float]
    mask: np.ndarray | None
    text: str
    colour: Colour
    crowd: bool = False


def shapes_of(
    results: Sequence[Mapping[str, Any]], names: Mapping[int, str], height: int, width: int, *, min_score: float = 0.0
) -> list[Shape]:
    """COCO results or annotations as shapes, in one colour a class; with a single class, in one colour an object.

    Args:
        results: dicts with category_id, bbox xywh (pixels), and optionally segmentation, score, iscrowd.
        names: class name of each category id.
        height, width: of the picture the segmentations belong to, pixels.
        min_score: results below are left out; annotations have no score.
    """
    kept = [r for r in results if float(r.get("score", 1.0)) >= min_score]
    order = {category: n for n, category in enumerate(sorted(names))}
    shapes = []
    for n, r in enumerate(kept):
        label = int(r["category_id"])
        score = f" {r['score']:.2f}" if "score" in r else ""
        mask = decode_mask(r["segmentation"], height, width).view(bool) if r.get("segmentation") else None
        place = order.get(label, 0) if len(names) > 1 else n
        text = f"{names.get(label, f'class {label}')}{score}"
        shapes.append(Shape(r["bbox"], mask, text, PALETTE[place % len(PALETTE)], bool(r.get("iscrowd"))))
    return shapes


def draw(pixels: np.ndarray, shapes: Sequence[Shape], *, longest: int | None = None) -> Image.Image:
    """The picture with everything in ``shapes`` on it, largest objects below.

    Args:
        pixels: uint8 (H, W, 3) RGB.
        shapes: in the picture's pixels.
        longest: shrink the result to this longest side, pixels. Small pictures are enlarged.
    """
    height, width = pixels.shape[:2]
    scale = max(1.0, _SMALL_SIDE / max(min(height, width), 1))
    if longest is not None:
        scale = min(scale, longest / max(height, width))
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    ordered = sorted(shapes, key=lambda s: -float(s.box[2]) * float(s.box[3]))
    canvas = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)).astype(np.float32)
    for shape in ordered:
        if shape.mask is not None:
            _paint_mask(canvas, shape, size)
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    crowded = len(shapes) > 40  # then boxes and labels would hide what they are about
    for shape in ordered:
        if shape.mask is None or not crowded:
            width = _line(size) if shape.mask is not None else 2 * _line(size)
            _draw_box(pen, shape, scale, width)
    if not crowded:
        taken: list[tuple[float, float, float, float]] = []
        for shape in reversed(ordered):
            _draw_label(pen, shape, scale, picture.size, taken)
    return picture


def _paint_mask(canvas: np.ndarray, shape: Shape, size: tuple[int, int]) -> None:
    assert shape.mask is not None
    image = Image.fromarray(shape.mask.astype(np.uint8) * 255)
    mask = np.asarray(image.resize(size, Image.Resampling.BILINEAR)) > 127
    colour = np.array(shape.colour, np.float32)
    inside = mask if not shape.crowd else mask & _hatch(mask.shape)
    canvas[inside] += (colour - canvas[inside]) * _FILL
    inner = mask
    for _ in range(_line(size)):
        inner = _eroded(inner)
    edge = mask & ~inner
    canvas[edge] = colour


def _line(size: tuple[int, int]) -> int:
    return max(1, round(max(size) / 700))


def _hatch(shape: tuple[int, ...]) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x + y) % 8 < 4


def _eroded(mask: np.ndarray) -> np.ndarray:
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner


def _draw_box(pen: ImageDraw.ImageDraw, shape: Shape, scale: float, line: int) -> None:
    x, y, w, h = (float(v) * scale for v in shape.box)
    if w > 0 and h > 0:
        pen.rectangle((x, y, x + w, y + h), outline=shape.colour, width=line)


def _draw_label(pen: ImageDraw.ImageDraw, shape: Shape, scale: float, size: tuple[int, int], taken: list[Any]) -> None:
    """A chip above the box, inside the picture; left out where it would cover another one."""
    font = ImageFont.load_default(max(12, max(size) // 50))
    text = clean(shape.text)[:40]
    x, y = float(shape.box[0]) * scale, float(shape.box[1]) * scale
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    w, h = right - left + 6, bottom - top + 5
    x = min(max(x, 0), max(size[0] - w, 0))
    for place in (y - h, y, y + float(shape.box[3]) * scale):
        chip = (x, place, x + w, place + h)
        inside = place >= 0 and place + h <= size[1]
        if inside and not any(_overlap(chip, t) for t in taken):
            pen.rectangle(chip, fill=shape.colour)
            pen.text((x + 3 - left, place + 2 - top), text, fill=_ink(shape.colour), font=font)
            taken.append(chip)
            return


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever stands out more on ``colour``."""
    r, g, b = (c / 255 for c in colour)
    return (0, 0, 0) if 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2 > 0.18 else (255, 255, 255)


def encoded(picture: Image.Image, suffix: str) -> bytes:
    """The picture's file, JPEG for ".jpg" and ".jpeg", else PNG."""
    file = io.BytesIO()
    if suffix.lower() in (".jpg", ".jpeg"):
        picture.save(file, "JPEG", quality=88, optimize=True)
    else:
        picture.save(file, "PNG")
    return file.getvalue()
