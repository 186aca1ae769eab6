from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.coco.table import CocoTable, load_coco


def scene(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (9, 12, 3), dtype=np.uint8))
    return np.asarray(small.resize((96, 72), Image.Resampling.BICUBIC))


def table(folder: Path, pictures: list[Image.Image], suffix: str) -> CocoTable:
    folder.mkdir()
    for n, picture in enumerate(pictures):
        picture.save(folder / f"{n}{suffix}")
    entries = [
        {"id": n, "file_name": f"{n}{suffix}", "width": p.width, "height": p.height} for n, p in enumerate(pictures)
    ]
    (folder / "l.json").write_text(
        json.dumps({"images": entries, "annotations": [], "categories": [{"id": 1, "name": "a"}]})
    )
    return load_coco(folder / "l.json", folder)


COPIES = {
    "saved anew": lambda p: p,
    "smaller": lambda p: p.resize((72, 54)),
    "stretched": lambda p: p.resize((80, 80)),
    "mirrored": lambda p: p.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    "mirrored top to bottom": lambda p: p.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    "turned by half": lambda p: p.transpose(Image.Transpose.ROTATE_180),
    "turned": lambda p: p.transpose(Image.Transpose.ROTATE_90),
}


def leaks(tmp_path: Path, train: list[Image.Image], val: list[Image.Image]) -> list[tuple[int | None, str]]:
    mine, theirs = table(tmp_path / "train", train, ".png"), table(tmp_path / "val", val, ".jpg")
    return [(f.image_id, f.message) for f in audit(mine, other=theirs) if f.code == "IMAGE_NEAR_LEAK"]


@pytest.mark.parametrize("how", COPIES)
def test_a_copy_is_told(how: str, tmp_path: Path) -> None:
    train = [Image.fromarray(scene(n)) for n in range(6)]
    ((image, said),) = leaks(tmp_path, train, [Image.fromarray(scene(9)), COPIES[how](train[3])])
    assert image == 3 and "'1.jpg'" in said
    assert ("mirrored" in how or "turned" in how) == said.endswith(f", {how}")


def frame(n: int) -> np.ndarray:
    picture = scene(0).copy()
    picture[20:44, 8 + 9 * n : 30 + 9 * n] = 240
    return picture


def dark_wells(n: int) -> np.ndarray:
    rng, picture = np.random.default_rng(n), np.full((72, 96, 3), 12, np.uint8)
    for y, x in rng.integers(4, 60, (14, 2)):
        picture[y : y + 9, x : x + 9] = 130
    return picture


@pytest.mark.parametrize("make", [scene, frame, dark_wells, lambda n: np.full((72, 96, 3), 20 * n, np.uint8)])
def test_what_is_alike_is_no_copy(make, tmp_path: Path) -> None:
    pictures = [Image.fromarray(make(n)) for n in range(6)]
    assert leaks(tmp_path, pictures[:4], pictures[4:]) == []
