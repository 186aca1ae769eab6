"""Boxes, masks and labels on a picture, legible at any size. NumPy and Pillow only, no torch."""

from __future__ import annotations

import io
import math
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
"""Of what a picture is about: it has its box and its label in however full a picture."""
_FILL = 0.38
_GAP = 8
_CROWD = 40
"""Boxes and labels of more objects would hide what they are about."""
_SMALL_SIDE = 420
"""Smaller pictures are enlarged before drawing: a line of one pixel covers too much of them."""


@dataclass(frozen=True)
class Shape:
    """One object to draw: ``box`` xywh in pixels, ``mask`` bool or None, and the text beside it.

    The mask's upper left pixel lies at ``corner`` (column, row): masks of a whole image have none.
    """

    box: Sequence[float]
    mask: np.ndarray | None
    text: str
    colour: Colour
    crowd: bool = False
    corner: tuple[int, int] = (0, 0)


def colour_of(place: int) -> Colour:
    """The colour of class or object ``place``, from 0."""
    return PALETTE[place % len(PALETTE)]


def shapes_of(
    results: Sequence[Mapping[str, Any]], names: Mapping[int, str], height: int, width: int, *, min_score: float = 0.0
) -> list[Shape]:
    """COCO results or annotations as shapes, in one colour a class; with a single class, in one colour an object.

    The name of a single class is left out: it would say the same on each.

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
        words = [names.get(label, f"class {label}")] if len(names) != 1 else []
        words += [f"{r['score']:.2f}"] if "score" in r else []
        mask = decode_mask(r["segmentation"], height, width).view(bool) if r.get("segmentation") else None
        place = order.get(label, 0) if len(names) > 1 else n
        shapes.append(Shape(r["bbox"], mask, " ".join(words), colour_of(place), bool(r.get("iscrowd"))))
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
            _paint_mask(canvas, shape, (width, height))
    picture = Image.fromarray(canvas.clip(0, 255).astype(np.uint8))
    pen = ImageDraw.Draw(picture)
    crowded = len(shapes) > _CROWD
    for shape in sorted(ordered, key=_is_alarm):
        if shape.mask is None or _is_alarm(shape) or not crowded:
            thick = shape.mask is None or (_is_alarm(shape) and crowded)
            _draw_box(pen, shape, scale, 2 * _line(size) if thick else _line(size))
    taken: list[tuple[float, float, float, float]] = []
    boxes = [_scaled(s.box, scale) for s in ordered]
    for n in sorted(range(len(ordered) - 1, -1, -1), key=lambda n: not _is_alarm(ordered[n])):
        if _is_alarm(ordered[n]) or not crowded:
            _draw_label(pen, ordered[n], boxes[n], boxes[:n] + boxes[n + 1 :], picture.size, taken)
    return picture


def _is_alarm(shape: Shape) -> bool:
    return shape.colour == ALARM


def _paint_mask(canvas: np.ndarray, shape: Shape, source: tuple[int, int]) -> None:
    """Fill and outline one object inside its own window of ``canvas``; ``source``: (width, height) before scaling."""
    placed = _placed(shape, source, (canvas.shape[1], canvas.shape[0]))
    if placed is None:
        return
    left, top, mask = placed
    part = canvas[top : top + mask.shape[0], left : left + mask.shape[1]]
    colour = np.array(shape.colour, np.float32)
    inside = mask if not shape.crowd else mask & _hatch(mask.shape)
    part[inside] += (colour - part[inside]) * _FILL
    inner = mask
    for _ in range(_line((canvas.shape[1], canvas.shape[0]))):
        inner = _eroded(inner)
    part[mask & ~inner] = colour


def _placed(shape: Shape, source: tuple[int, int], size: tuple[int, int]) -> tuple[int, int, np.ndarray] | None:
    """(left, top, mask) on a canvas of ``size`` (width, height); None where there is no pixel to paint.

    As if the mask of the whole picture were resized; only the object's surroundings are.
    """
    assert shape.mask is not None
    rows, columns = np.flatnonzero(shape.mask.any(1)), np.flatnonzero(shape.mask.any(0))
    if len(rows) == 0:
        return None
    (x0, x1), (y0, y1) = (
        (int(v[0]) + c, int(v[-1]) + 1 + c) for v, c in zip((columns, rows), shape.corner, strict=True)
    )
    sx, sy = size[0] / source[0], size[1] / source[1]
    # Where a resize of the whole would set pixels: one pixel of either size around the object at most.
    left, top = max(math.floor((x0 - 1) * sx) - 1, 0), max(math.floor((y0 - 1) * sy) - 1, 0)
    right, bottom = min(math.ceil((x1 + 1) * sx) + 1, size[0]), min(math.ceil((y1 + 1) * sy) + 1, size[1])
    margin = math.ceil(3 / min(sx, sy, 1.0)) + 2
    object_ = shape.mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    padded = Image.fromarray(np.pad(object_.astype(np.uint8) * 255, margin))
    box = [left / sx, top / sy, right / sx, bottom / sy]
    within = [v - o + margin for v, o in zip(box, (x0, y0, x0, y0), strict=True)]
    limits = (padded.width, padded.height) * 2
    clipped = tuple(min(max(v, 0.0), float(m)) for v, m in zip(within, limits, strict=True))
    resized = padded.resize((right - left, bottom - top), Image.Resampling.BILINEAR, box=clipped)  # type: ignore[arg-type]
    return left, top, np.asarray(resized) > 127


def _line(size: tuple[int, int]) -> int:
    return max(1, round(max(size) / 700))


def _hatch(shape: tuple[int, ...]) -> np.ndarray:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return (x + y) % 8 < 4


def _eroded(mask: np.ndarray) -> np.ndarray:
    inner = np.zeros_like(mask)
    inner[1:-1, 1:-1] = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return inner


def _scaled(box: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    """(x0, y0, x1, y1) of a box xywh."""
    x, y, w, h = (float(v) * scale for v in box)
    return x, y, x + w, y + h


def _draw_box(pen: ImageDraw.ImageDraw, shape: Shape, scale: float, line: int) -> None:
    x0, y0, x1, y1 = _scaled(shape.box, scale)
    if x1 > x0 and y1 > y0:
        pen.rectangle((x0, y0, x1, y1), outline=shape.colour, width=line)


def _draw_label(
    pen: ImageDraw.ImageDraw,
    shape: Shape,
    box: tuple[float, float, float, float],
    others: Sequence[tuple[float, float, float, float]],
    size: tuple[int, int],
    taken: list[Any],
) -> None:
    """A chip above, inside or below the box; left out where it would cover another chip or hide an object.

    That of an `ALARM` may lie on other objects, where there is no free place.
    """
    text = clean(shape.text)[:40]
    if not text:
        return
    font = ImageFont.load_default(max(12, max(size) // 50))
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    w, h = right - left + 6, bottom - top + 5
    x = min(max(box[0], 0), max(size[0] - w, 0))
    spare = [()] if _is_alarm(shape) else []
    for hidden, place in ((o, p) for o in [others, *spare] for p in (box[1] - h, box[3], box[1])):
        chip = (x, place, x + w, place + h)
        inside = place >= 0 and place + h <= size[1]
        hides = _share(box, chip) > 0.25 or any(_share(o, chip) > 0.25 for o in hidden)
        if inside and not hides and not any(_overlap(chip, t) for t in taken):
            pen.rectangle(chip, fill=shape.colour)
            pen.text((x + 3 - left, place + 2 - top), text, fill=_ink(shape.colour), font=font)
            taken.append(chip)
            return


def _share(box: tuple[float, ...], chip: tuple[float, ...]) -> float:
    """How much of a box lies under a chip, 0..1."""
    w, h = min(box[2], chip[2]) - max(box[0], chip[0]), min(box[3], chip[3]) - max(box[1], chip[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return w * h / area if w > 0 and h > 0 and area > 0 else 0.0


def _overlap(a: tuple[float, ...], b: tuple[float, ...]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _ink(colour: Colour) -> Colour:
    """Black or white, whichever stands out more on ``colour``."""
    r, g, b = (c / 255 for c in colour)
    return (0, 0, 0) if 0.2126 * r**2.2 + 0.7152 * g**2.2 + 0.0722 * b**2.2 > 0.18 else (255, 255, 255)


def beside(pictures: Sequence[Image.Image]) -> Image.Image:
    """One picture of several, from left to right, with a white gap between them."""
    width = sum(p.width for p in pictures) + _GAP * (len(pictures) - 1)
    whole = Image.new("RGB", (width, max(p.height for p in pictures)), (255, 255, 255))
    left = 0
    for picture in pictures:
        whole.paste(picture, (left, 0))
        left += picture.width + _GAP
    return whole


def encoded(picture: Image.Image, suffix: str) -> bytes:
    """The picture's file: JPEG, WEBP or BMP by its ending, else PNG."""
    file = io.BytesIO()
    if suffix.lower() in (".jpg", ".jpeg"):
        picture.save(file, "JPEG", quality=88, optimize=True)
    else:
        picture.save(file, {".webp": "WEBP", ".bmp": "BMP"}.get(suffix.lower(), "PNG"))
    return file.getvalue()
