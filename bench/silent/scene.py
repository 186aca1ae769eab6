"""What the scenarios are made of: small pictures that are no squares, as a data set of one's own and as COCO files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HEIGHT, WIDTH = 64, 96
Target = dict[str, Any]
Change = Callable[[Tensor, Target], tuple[Tensor, Target]]


class Scene(torch.utils.data.Dataset):
    """Bright rectangles (label 1) and ellipses (label 2) on dark ground: a pure function of the index.

    Args:
        count: images. objects: in each image; or a function of the index. sides: shortest and longest side of an
            object, pixels. change: what a faulty (or odd, but honest) data set does with a sample.
    """

    class_names = ("background", "plate", "cell")

    def __init__(
        self,
        count: int = 24,
        objects: int | Callable[[int], int] = 3,
        sides: tuple[int, int] = (10, 24),
        change: Change | None = None,
        size: tuple[int, int] = (HEIGHT, WIDTH),
        seed: int = 0,
        classes: int = 2,
    ) -> None:
        self.count, self.objects, self.sides, self.change = count, objects, sides, change
        self.size, self.seed, self.classes = size, seed, classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, Target]:
        image, target = self.plain(i)
        return (image, target) if self.change is None else self.change(image, target)

    def plain(self, i: int) -> tuple[Tensor, Target]:
        """The sample as it should be."""
        g = np.random.default_rng((self.seed, i))
        height, width = self.size
        image = g.random((3, height, width), np.float32) * 0.2 + 0.1
        count = self.objects if isinstance(self.objects, int) else self.objects(i)
        masks, boxes, labels = np.zeros((count, height, width), np.uint8), [], []
        for n in range(count):
            w, h = (int(v) for v in g.integers(self.sides[0], self.sides[1] + 1, 2))
            w, h = min(w, width - 2), min(h, height - 2)
            x, y = int(g.integers(0, width - w)), int(g.integers(0, height - h))
            label = int(g.integers(1, self.classes + 1))
            yy, xx = np.mgrid[:height, :width]
            solid = (xx >= x) & (xx < x + w) & (yy >= y) & (yy < y + h)
            if label % 2 == 0:
                solid = ((xx + 0.5 - x - w / 2) / (w / 2)) ** 2 + ((yy + 0.5 - y - h / 2) / (h / 2)) ** 2 <= 1
            masks[n] = solid
            image[(label - 1) % 3][solid] = 0.6 + 0.3 * ((label * 7) % 5) / 4
            ys, xs = np.nonzero(solid)
            boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            labels.append(label)
        target = {
            "boxes": torch.tensor(np.array(boxes, np.float32).reshape(-1, 4)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "masks": torch.from_numpy(masks),
            "image_id": 100 + i,
        }
        return torch.from_numpy(image), target


def small_model(classes: int = 3, seed: int = 0, **changes: Any) -> torch.nn.Module:
    """The small network, from random weights."""
    from maskrcnn_coco.model.build import build_model

    torch.manual_seed(seed)
    return build_model("maskrcnn_resnet18_fpn", classes, small=True, min_size=HEIGHT, max_size=WIDTH, **changes)


def write_coco(folder: Path, scene: Scene, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    """``scene`` as ``folder/data.json`` beside its images; ``change`` may spoil the dict. Masks are plain RLE."""
    folder.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for i in range(len(scene)):
        image, target = scene.plain(i)
        pixels = (image.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
        height, width = pixels.shape[:2]
        images.append({"id": i + 1, "file_name": f"{i:03d}.png", "width": width, "height": height})
        for box, label, mask in zip(target["boxes"].tolist(), target["labels"].tolist(), target["masks"], strict=True):
            x0, y0, x1, y1 = box
            annotations.append({
                "id": len(annotations) + 1, "image_id": i + 1, "category_id": label, "iscrowd": 0,
                "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum()), "segmentation": rle(mask.numpy()),
            })  # fmt: skip
    categories = [{"id": n, "name": f"class {n}"} for n in range(1, scene.classes + 1)]
    data = {"images": images, "annotations": annotations, "categories": categories}
    if change is not None:
        change(data)
    path = folder / "data.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def rle(mask: np.ndarray, order: str = "F") -> dict[str, Any]:
    """Uncompressed RLE, along columns as COCO has it; ``order`` "C": along rows, as some exporters have it."""
    flat = mask.astype(bool).ravel(order=order)  # type: ignore[arg-type]
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), len(flat)]).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}
