"""The built-in data: circles, squares and triangles on textured ground, drawn, never downloaded.

Made to be learnt in minutes: shapes stand almost upright, and each class prefers a third of the colour wheel, as real
classes have colours of their own.

Made to have what real sets have: occlusion (masks are what is visible), small and large objects, images without any
object, crowd regions, polygons as well as both kinds of RLE. The same arguments give the same bytes.
"""

from __future__ import annotations

import colorsys
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.errors import DataError

CLASSES = ("circle", "square", "triangle")
"""Category n + 1 is CLASSES[n]."""
VERSION = 2
"""Raise when the drawing changes, so that cached folders are drawn anew."""
EMPTY, CROWD = 0.08, 0.10
"""Shares of images without any object, and with a crowd region."""
_STAMP = "shapes.json"
_CORNERS = {"circle": 40, "square": 4, "triangle": 3}


@dataclass
class _Drawn:
    """One object while the image is painted; ``mask`` loses the pixels that later objects cover."""

    label: int
    mask: np.ndarray
    whole: int
    polygon: np.ndarray | None
    crowd: bool


def write_shapes(
    folder: str | Path, *, train: int = 120, val: int = 40, size: int = 128, seed: int = 0
) -> tuple[Path, Path]:
    """Draw the set, or find it drawn with the same arguments.

    Args:
        folder: gets ``train/`` and ``valid/``, each with PNG images and ``_annotations.coco.json`` beside them.
        train, val: images in each part. size: side of the square images, pixels.

    Returns:
        The annotation files of training and validation part; ``file_name`` is relative to their folders.

    Raises:
        DataError: the folder cannot be written, or holds a ``train`` or ``valid`` folder of somebody else.
    """
    folder = Path(folder)
    wanted = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    parts = {"train": train, "valid": val}
    jsons = (folder / "train" / "_annotations.coco.json", folder / "valid" / "_annotations.coco.json")
    if all(_stamp(folder / name) == wanted for name in parts):
        return jsons
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Drawn aside and moved in one piece: two runs that start together, or one that is killed, do no harm.
        with tempfile.TemporaryDirectory(dir=folder, prefix=".drawing-") as aside:
            for split, (name, count) in enumerate(parts.items()):
                _write_part(Path(aside) / name, split, count, size, seed)
                (Path(aside) / name / _STAMP).write_text(json.dumps(wanted), encoding="utf-8")
                _put(Path(aside) / name, folder / name, wanted)
    except OSError as e:
        raise DataError(
            f"cannot draw the built-in shapes into {folder}: {e.strerror or e}",
            fix="free some space, or set XDG_CACHE_HOME to a folder that can be written",
        ) from e
    return jsons


def _stamp(part: Path) -> object:
    """The arguments that a part was drawn with; None where it is not one of ours."""
    try:
        return json.loads((part / _STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _put(source: Path, target: Path, wanted: dict[str, int]) -> None:
    """Move a drawn part into its place, instead of an older drawing; never instead of anything else."""
    if target.exists():
        if _stamp(target) is None:
            raise DataError(
                f"{target} exists and is not of the built-in shapes", fix="name an empty folder for the shapes"
            )
        if _stamp(target) == wanted:
            return
        shutil.rmtree(target)
    try:
        os.replace(source, target)
    except OSError:
        if _stamp(target) != wanted:  # another run was faster, and drew the same
            raise


def _write_part(folder: Path, split: int, count: int, size: int, seed: int) -> None:
    folder.mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(count):
        rng = np.random.Generator(np.random.Philox(key=[seed, (split << 32) + index]))
        image_id = index + 1
        name = f"{image_id:06d}.png"
        pixels, drawn = draw_image(rng, size)
        Image.fromarray(pixels).save(folder / name, compress_level=3)
        images.append({"id": image_id, "file_name": name, "height": size, "width": size})
        for one in drawn:
            annotations.append({"id": len(annotations) + 1, "image_id": image_id, **_annotation(one, len(annotations))})
    categories = [{"id": n, "name": c, "supercategory": "shape"} for n, c in enumerate(CLASSES, 1)]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (folder / "_annotations.coco.json").write_text(text, encoding="utf-8")


def _annotation(one: _Drawn, number: int) -> dict[str, Any]:
    """COCO's entry: a polygon where the whole object is seen, else RLE of what is; every third RLE uncompressed."""
    area = int(one.mask.sum())
    if one.polygon is not None and area == one.whole:
        low, high = one.polygon.min(axis=0), one.polygon.max(axis=0)
        segmentation: Any = [[round(float(v), 2) for v in one.polygon.ravel()]]
        bbox = [round(float(v), 2) for v in (*low, *(high - low))]
    else:
        rows, cols = np.flatnonzero(one.mask.any(axis=1)), np.flatnonzero(one.mask.any(axis=0))
        bbox = [float(v) for v in (cols[0], rows[0], cols[-1] - cols[0] + 1, rows[-1] - rows[0] + 1)]
        segmentation = _runs(one.mask) if number % 3 == 0 else encode_rle(one.mask)
    return {
        "category_id": one.label,
        "bbox": bbox,
        "area": float(area),
        "iscrowd": int(one.crowd),
        "segmentation": segmentation,
    }


def _runs(mask: np.ndarray) -> dict[str, Any]:
    """Uncompressed RLE: run lengths in column order, background first."""
    flat = mask.T.ravel().astype(np.int8)
    edges = np.flatnonzero(np.diff(flat, prepend=0))
    counts = np.diff(np.concatenate([[0], edges, [flat.size]]))
    return {"size": list(mask.shape), "counts": [int(c) for c in counts]}


def draw_image(rng: np.random.Generator, size: int) -> tuple[np.ndarray, list[_Drawn]]:
    """One image, uint8 (size, size, 3), and its objects from back to front, each with its visible mask."""
    canvas = _ground(rng, size)
    if rng.random() < EMPTY:
        return _to_uint8(canvas), []
    drawn: list[_Drawn] = []
    if rng.random() < CROWD:
        drawn.append(_paint_crowd(rng, canvas))
    for _ in range(int(rng.choice([3, 4, 5, 6], p=[0.25, 0.35, 0.25, 0.15]))):
        _place(rng, canvas, drawn)
    return _to_uint8(canvas), drawn


def _to_uint8(canvas: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(canvas), 0, 255).astype(np.uint8)


def _ground(rng: np.random.Generator, size: int) -> np.ndarray:
    """Clouds of one colour plus grain, float64 (size, size, 3) around 0..255."""
    colour = rng.uniform(40, 215, 3)
    coarse = rng.normal(0, 14, (7, 7, 3))
    at = np.linspace(0, 6, size)
    low = np.minimum(at.astype(int), 5)
    part = at - low
    rows = coarse[low] * (1 - part)[:, None, None] + coarse[low + 1] * part[:, None, None]
    clouds = rows[:, low] * (1 - part)[None, :, None] + rows[:, low + 1] * part[None, :, None]
    return colour + clouds + rng.normal(0, 6, (size, size, 1))


def _side(rng: np.random.Generator, size: int) -> float:
    """Side of an object, pixels: a quarter small, the rest up to almost half the image, even in the logarithm."""
    low, high = (0.095, 0.14) if rng.random() < 0.25 else (0.16, 0.46)
    return max(6.0, size * math.exp(rng.uniform(math.log(low), math.log(high))))


def _corners(rng: np.random.Generator, kind: str, centre: np.ndarray, side: float) -> np.ndarray:
    """Corners (n, 2) of a convex shape about as large as a square of ``side`` pixels, turned by up to 20 degrees."""
    n = _CORNERS[kind]
    radius = side * {"circle": 0.54, "square": 0.70, "triangle": 0.74}[kind]
    upright = math.pi / 4 if n == 4 else -math.pi / 2
    angles = upright + rng.uniform(-0.35, 0.35) + np.arange(n) * (2 * math.pi / n)
    return centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _cover(corners: np.ndarray, size: int) -> np.ndarray:
    """How much of each pixel a convex polygon covers, about, 0..1: from the distance of its centre to the edges."""
    edge = np.roll(corners, -1, axis=0) - corners
    normal = np.stack([edge[:, 1], -edge[:, 0]], axis=1) / np.linalg.norm(edge, axis=1, keepdims=True)
    offset = (normal * corners).sum(axis=1)
    left, top = (max(0, int(v) - 1) for v in corners.min(axis=0))
    right, bottom = (min(size, int(v) + 2) for v in corners.max(axis=0))
    x, y = np.arange(left, right) + 0.5, np.arange(top, bottom) + 0.5
    outside = normal[:, 0, None, None] * x[None, None, :] + normal[:, 1, None, None] * y[None, :, None]
    cover = np.zeros((size, size))
    cover[top:bottom, left:right] = np.clip(0.5 - (outside - offset[:, None, None]).max(axis=0), 0.0, 1.0)
    return cover


def _colour(rng: np.random.Generator, below: np.ndarray, label: int) -> np.ndarray:
    """A colour that differs from what lies below (3,) by enough to be seen, of the class's part of the colour wheel."""
    while True:
        hue = ((label - 1) / len(CLASSES) + rng.normal(0, 0.06)) % 1.0
        colour = 255 * np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.55, 1.0), rng.uniform(0.6, 1.0)))
        if np.abs(colour - below).max() >= 70:
            return colour


def _paint(rng: np.random.Generator, canvas: np.ndarray, cover: np.ndarray, colour: np.ndarray) -> None:
    rows, cols = np.flatnonzero(cover.any(axis=1)), np.flatnonzero(cover.any(axis=0))
    window = np.s_[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    part = canvas[window]
    part += cover[window][:, :, None] * (colour + rng.normal(0, 5, (*part.shape[:2], 1)) - part)


def _place(rng: np.random.Generator, canvas: np.ndarray, drawn: list[_Drawn]) -> None:
    """Paint one more object in front, if there is a spot where everything behind stays recognisable."""
    size = canvas.shape[0]
    label = int(rng.integers(1, len(CLASSES) + 1))
    for _ in range(12):
        side = _side(rng, size)
        margin = 0.75 * side + 1
        corners = _corners(rng, CLASSES[label - 1], rng.uniform(margin, size - margin, 2), side)
        cover = _cover(corners, size)
        mask = cover >= 0.5
        left = [one.mask & ~mask for one in drawn]
        hidden = [int(rest.sum()) < 0.55 * one.whole for rest, one in zip(left, drawn, strict=True)]
        if mask.any() and not any(hidden):
            for one, rest in zip(drawn, left, strict=True):
                one.mask = rest
            _paint(rng, canvas, cover, _colour(rng, canvas[mask].mean(axis=0), label))
            drawn.append(_Drawn(label, mask, int(mask.sum()), corners, crowd=False))
            return


def _paint_crowd(rng: np.random.Generator, canvas: np.ndarray) -> _Drawn:
    """A swarm of tiny shapes of one class, annotated as one crowd region."""
    size = canvas.shape[0]
    label = int(rng.integers(1, len(CLASSES) + 1))
    centre = rng.uniform(0.25 * size, 0.75 * size, 2)
    union = np.zeros((size, size), bool)
    colour = _colour(rng, canvas.mean(axis=(0, 1)), label)
    for _ in range(int(rng.integers(9, 16))):
        at = np.clip(centre + rng.uniform(-0.17 * size, 0.17 * size, 2), 4, size - 4)
        cover = _cover(_corners(rng, CLASSES[label - 1], at, max(4.0, 0.045 * size)), size)
        _paint(rng, canvas, cover, colour)
        union |= cover >= 0.5
    return _Drawn(label, union, int(union.sum()), None, crowd=True)
