"""A small sound set of objects that look different from each side, to be written down in every odd way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from maskrcnn_coco.data.coco.table import CocoTable, load_coco

HEIGHT, WIDTH = 80, 120


class OddSet:
    """``images`` pictures of 120 × 80 with ``objects`` L-shaped polygons each; change the lists, then write."""

    def __init__(self, folder: Path, *, images: int = 8, objects: int = 3, seed: int = 0) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        rng = np.random.default_rng(seed)
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.categories: list[dict[str, Any]] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
        for i in range(1, images + 1):
            self.images.append({"id": i, "file_name": f"{i}.png", "height": HEIGHT, "width": WIDTH})
            Image.fromarray(rng.integers(0, 255, (HEIGHT, WIDTH, 3), np.uint8)).save(folder / f"{i}.png")
            self.annotations += [self._object(rng, i) for _ in range(objects)]

    def _object(self, rng: np.random.Generator, image: int) -> dict[str, Any]:
        w, h = int(rng.integers(24, 50)), int(rng.integers(12, 20))
        x, y = int(rng.integers(0, WIDTH - w)), int(rng.integers(0, HEIGHT - h))
        ell = [x, y, x + w, y, x + w, y + h // 2, x + w // 3, y + h // 2, x + w // 3, y + h, x, y + h]
        area = w * (h // 2) + (w // 3) * (h - h // 2)
        known = {"id": len(self.annotations) + 1 + 100 * image, "image_id": image, "category_id": 1 + image % 2}
        return known | {"bbox": [x, y, w, h], "area": area, "iscrowd": 0, "segmentation": [[float(v) for v in ell]]}

    def write(self, name: str = "a.json") -> Path:
        """The annotation file."""
        document = {"images": self.images, "annotations": self.annotations, "categories": self.categories}
        (self.folder / name).write_text(json.dumps(document), encoding="utf-8")
        return self.folder / name

    def table(self, name: str = "a.json") -> CocoTable:
        """The annotation file, written and read."""
        return load_coco(self.write(name), self.folder)
