from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.file_names import IMAGE_SUFFIXES
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.inference.inputs import Pictures

FORMATS = {"jpg": "JPEG", "jpe": "JPEG", "jfi": "JPEG", "png": "PNG", "apn": "PNG", "bmp": "BMP", "dib": "BMP"}
FORMATS |= {"gif": "GIF", "tif": "TIFF", "web": "WEBP", "ppm": "PPM", "pgm": "PPM", "pbm": "PPM", "pnm": "PPM"}


def picture(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = {".pgm": "L", ".pbm": "1"}.get(path.suffix.lower(), "RGB")
    Image.linear_gradient("L").resize((32, 24)).convert(mode).save(path, FORMATS[path.suffix[1:4].lower()])


def coco(path: Path, names: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    entries = [{"id": n, "file_name": name, "height": 24, "width": 32} for n, name in enumerate(names)]
    outline = {"category_id": 1, "bbox": [4, 4, 10, 10], "area": 100, "iscrowd": 0,
               "segmentation": [[4, 4, 14, 4, 14, 14, 4, 14]]}  # fmt: skip
    objects = [{"id": n + 1, "image_id": n, **outline} for n in range(len(names))]
    path.write_text(json.dumps({"images": entries, "annotations": objects, "categories": [{"id": 1, "name": "a"}]}))


def images_and_json(root: Path, name: str) -> None:
    picture(root / "images" / "deep" / name)
    coco(root / "labels.json", [name])


def splits(root: Path, name: str) -> None:
    picture(root / "train2017" / name)
    coco(root / "annotations/instances_train2017.json", [name])


def roboflow(root: Path, name: str) -> None:
    picture(root / "train" / name)
    coco(root / "train/_annotations.coco.json", [name])


def stem_alone(root: Path, name: str) -> None:
    picture(root / "images" / name)
    coco(root / "labels.json", [Path(name).stem])


def yolo(root: Path, name: str) -> None:
    picture(root / "images/train" / name)
    (root / "labels/train").mkdir(parents=True)
    (root / "labels/train/a.txt").write_text("0 0.1 0.1 0.6 0.1 0.6 0.6 0.1 0.6\n")
    (root / "data.yaml").write_text("train: images/train\nnames: [a]\n")


def mask_images(root: Path, name: str) -> None:
    picture(root / "images" / name)
    mask = Image.new("L", (32, 24))
    mask.paste(255, (4, 4, 14, 14))
    (root / "masks").mkdir()
    mask.save(root / "masks/a.png")


@pytest.mark.parametrize("suffix", IMAGE_SUFFIXES)
def test_each_suffix_is_known_in_every_layout_and_to_prediction(suffix: str, tmp_path: Path) -> None:
    for spelled in (suffix, suffix.upper()):
        for layout in (images_and_json, splits, roboflow, stem_alone, yolo, mask_images):
            root = tmp_path / spelled / layout.__name__
            layout(root, f"a{spelled}")
            table = find_data(root).train
            assert (len(table), len(table.ann_ids)) == (1, 1), layout
            assert [f.message for f in audit(table) if f.severity == "error"] == [], layout
            shown = [p.name for p, pixels in Pictures(root).loaded() if not isinstance(pixels, Exception)]
            assert any(n.endswith(f"a{spelled}") for n in shown), layout
