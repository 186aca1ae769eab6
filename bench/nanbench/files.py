"""A scene's samples as a COCO folder: what the command line trains on."""

from __future__ import annotations

import json
from pathlib import Path

from torchvision.io import write_png

from nanbench.scene import Scene


def write_files(scene: Scene, folder: Path) -> Path:
    """``train/*.png`` and ``annotations/instances_train.json`` under ``folder``; outlines are the boxes' corners."""
    (folder / "train").mkdir(parents=True)
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for image, target in scene.samples:
        number = int(target["image_id"])
        height, width = image.shape[-2:]
        write_png((image * 255).byte(), str(folder / "train" / f"{number}.png"))
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for row, label, its_id in zip(
            target["boxes"].tolist(), target["labels"].tolist(), target["annotation_ids"].tolist(), strict=True
        ):
            x1, y1, x2, y2 = row
            annotations.append(
                {
                    "id": its_id,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": (x2 - x1) * (y2 - y1),
                    "iscrowd": 0,
                    "segmentation": [[x1, y1, x2, y1, x2, y2, x1, y2]],
                }
            )
    categories = [{"id": n, "name": f"shape {n}"} for n in (1, 2, 3)]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))
    return folder
