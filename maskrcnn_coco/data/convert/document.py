"""A COCO document that converters fill: images, objects by class name, and what could not be taken along."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.data.coco.entries import SIDE_LIMIT
from maskrcnn_coco.data.images import probe
from maskrcnn_coco.data.masks import encode_rle
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.wording import count

CIRCLE_POINTS = 64
"""Corners of the polygon that stands for a circle or an ellipse."""

Points = Sequence[Sequence[float]]


class Document:
    """Images and objects of one set. Categories are numbered from 1, in the order given or by name.

    Args:
        root: the folder that ``file_name`` starts from.
        classes: names in the order of their ids; None: the names that occur, sorted.
    """

    def __init__(self, root: Path, classes: Sequence[str] | None = None) -> None:
        self.root = root
        self.classes = None if classes is None else list(classes)
        self.images: list[dict[str, Any]] = []
        self.objects: list[dict[str, Any]] = []
        self.left_out: Counter[str] = Counter()
        self.said: str | None = None

    def skip(self, why: str) -> None:
        """Count something that is not taken along; ``why`` is the same sentence for all of its kind."""
        self.left_out[why] += 1

    def add_image(self, path: Path, size: tuple[int, int] | None = None) -> int | None:
        """The id of an image; None where its ``size`` (height, width) is neither given nor in the file."""
        if size is None or not 0 < min(size) <= max(size) <= SIDE_LIMIT:
            try:
                facts = probe(path.parent, path.name, decode=False)
            except DataError as e:
                self.skip(f"images that cannot be read, so that their size is not known (the first: {e.what})")
                return None
            size = facts.height, facts.width
        name = path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else path.as_posix()
        image_id = len(self.images) + 1
        self.images.append({"id": image_id, "file_name": name, "height": int(size[0]), "width": int(size[1])})
        return image_id

    def add_polygons(self, image_id: int, name: str, polygons: Sequence[Points]) -> None:
        """An object of several outlines, (x, y) in pixels."""
        try:
            parts = [[float(v) for point in polygon for v in point[:2]] for polygon in polygons if len(polygon) >= 3]
        except (TypeError, ValueError, OverflowError):
            parts = []
        if not parts or not all(math.isfinite(v) for part in parts for v in part):
            self.skip("outlines of fewer than 3 points, or of no numbers")
            return
        xs, ys = np.concatenate([p[0::2] for p in parts]), np.concatenate([p[1::2] for p in parts])
        box = [float(xs.min()), float(ys.min()), float(np.ptp(xs)), float(np.ptp(ys))]
        area = sum(_shoelace(part) for part in parts)
        self._add(image_id, name, {"segmentation": parts, "bbox": box, "area": area})

    def add_mask(self, image_id: int, name: str, mask: np.ndarray) -> None:
        """An object of pixels: ``mask`` (H, W) of the image's size."""
        image = self.images[image_id - 1]
        if mask.shape != (image["height"], image["width"]):
            self.skip("masks of another size than their image")
            return
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not len(rows):
            self.skip("masks without a pixel")
            return
        x, y = int(columns[0]), int(rows[0])
        box = [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]
        self._add(image_id, name, {"segmentation": encode_rle(mask), "bbox": box, "area": int(np.count_nonzero(mask))})

    def _add(self, image_id: int, name: str, values: dict[str, Any]) -> None:
        self.objects.append({"image_id": image_id, "name": str(name).strip() or "object", "iscrowd": 0, **values})

    def plain(self) -> dict[str, Any]:
        """The COCO document.

        Raises:
            DataError: not one object is in it.
        """
        if not self.objects:
            why = "; ".join(self.notes()) or "there are no outlines and no masks"
            raise DataError(
                f"nothing in {self.root} becomes an object to train on",
                got=why,
                fix="Mask R-CNN learns from outlines or masks: draw them, or export them from the tool",
            )
        used = sorted({o["name"] for o in self.objects})
        names = [*(self.classes or ()), *(n for n in used if self.classes is None or n not in self.classes)]
        number = {name: n for n, name in enumerate(names, 1)}
        annotations = [
            {"id": n, "category_id": number[o["name"]], **{k: v for k, v in o.items() if k != "name"}}
            for n, o in enumerate(self.objects, 1)
        ]
        categories = [{"id": n, "name": name} for name, n in number.items()]
        return {"images": self.images, "annotations": annotations, "categories": categories}

    def notes(self) -> list[str]:
        """How the source was understood, and what was not taken along, a sentence for each kind."""
        said = [self.said] if self.said is not None else []
        return said + [f"{count(n, 'thing')} left out: {why}" for why, n in self.left_out.items()]


def _shoelace(part: Sequence[float]) -> float:
    x, y = np.asarray(part[0::2]), np.asarray(part[1::2])
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)


def ellipse(cx: float, cy: float, rx: float, ry: float, theta: float = 0.0) -> Points:
    """Corners of an ellipse; ``theta`` turns it, radians."""
    t = np.linspace(0, 2 * math.pi, CIRCLE_POINTS, endpoint=False)
    x, y = rx * np.cos(t), ry * np.sin(t)
    turned = np.stack([cx + x * math.cos(theta) - y * math.sin(theta), cy + x * math.sin(theta) + y * math.cos(theta)])
    return turned.T.tolist()


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    """Corners of a rectangle, from any two opposite ones."""
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
