"""A small sound set of objects that look different from each side, to be written down in every odd way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.masks import decode_mask, encode_rle


class OddSet:
    """``images`` pictures with ``objects`` L-shaped polygons each; change the lists, then write.

    ``sizes``: (width, height) of the pictures, in turn.
    """

    def __init__(
        self,
        folder: Path,
        *,
        images: int = 8,
        objects: int = 3,
        seed: int = 0,
        sizes: tuple[tuple[int, int], ...] = ((120, 80),),
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories: list[dict[str, Any]] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        for i in range(1, images + 1):
            width, height = sizes[i % len(sizes)]
            self.images.append({"id": i, "file_name": f"{i}.png", "height": height, "width": width})
            Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"{i}.png")
            for _ in range(objects):
                self.annotations.append(self._object(rng, i, width, height))

    def _object(self, rng: np.random.Generator, image: int, width: int, height: int) -> dict[str, Any]:
        w, h = (int(v) for v in rng.integers((width // 5, height // 7), (width // 2, height // 4)))
        x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
        ell = [x, y, x + w, y, x + w, y + h // 2, x + w // 3, y + h // 2, x + w // 3, y + h, x, y + h]
        area = w * (h // 2) + (w // 3) * (h - h // 2)
        known = {"id": len(self.annotations) + 1 + 100 * image, "image_id": image, "category_id": 1 + image % 2}
        return known | {"bbox": [x, y, w, h], "area": area, "iscrowd": 0, "segmentation": [[float(v) for v in ell]]}

    def size_of(self, ann: dict[str, Any]) -> tuple[int, int]:
        """(width, height) of an annotation's image."""
        image = next(i for i in self.images if i["id"] == ann["image_id"])
        return image["width"], image["height"]

    def mask(self, ann: dict[str, Any]) -> np.ndarray:
        """The mask of an annotation, uint8 (H, W)."""
        width, height = self.size_of(ann)
        return decode_mask(ann["segmentation"], height, width)

    def to_rle(self) -> None:
        """Write all masks as compressed RLE."""
        for ann in self.annotations:
            ann["segmentation"] = encode_rle(self.mask(ann))

    def write(self, name: str = "a.json") -> Path:
        """The annotation file."""
        document = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.folder / name).write_text(json.dumps(document), encoding="utf-8")
        return self.folder / name

    def table(self, name: str = "a.json") -> CocoTable:
        """The annotation file, written and read."""
        return load_coco(self.write(name), self.folder)
