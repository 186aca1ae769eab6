from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.coco.table import CocoTable, load_coco
from maskrcnn_coco.data.views import views_of


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


def cut(share: float, x: float, y: float):
    def change(picture: Image.Image) -> Image.Image:
        wide, high = round(picture.width * (1 - share)), round(picture.height * (1 - share))
        left, top = round((picture.width - wide) * x), round((picture.height - high) * y)
        return picture.crop((left, top, left + wide, top + high))

    return change


@pytest.mark.parametrize("share", [0.03, 0.05])
@pytest.mark.parametrize(("x", "y"), [(0.5, 0.5), (0, 0), (1, 0.2)])
@pytest.mark.parametrize("which", ["train", "val"])
def test_a_copy_without_its_sides_is_told(tmp_path: Path, share: float, x: float, y: float, which: str) -> None:
    pictures = [Image.fromarray(scene(n)).resize((320, 240), Image.Resampling.BICUBIC) for n in range(5)]
    part = cut(share, x, y)(pictures[3])
    train, val = (pictures, [part]) if which == "val" else ([*pictures[:3], part], [pictures[3]])
    ((image, said),) = leaks(tmp_path, train, [Image.fromarray(scene(9)), *val])
    assert image == 3 and said.endswith(", cut at its sides")


TONES = {
    "brighter": lambda v: min(255, int(v * 1.3)), "darker": lambda v: int(v * 0.6),
    "more contrast": lambda v: min(255, max(0, int(128 + 1.4 * (v - 128)))),
    "gamma": lambda v: int(255 * (v / 255) ** 0.7), "grey": lambda v: v,
}  # fmt: skip


@pytest.mark.parametrize("how", TONES)
def test_a_copy_in_another_tone_is_told(how: str, tmp_path: Path) -> None:
    pictures = [Image.fromarray((60 + scene(n) * 0.5).astype(np.uint8)) for n in range(5)]
    copy = pictures[2].convert("L").convert("RGB") if how == "grey" else pictures[2].point(TONES[how])
    assert [image for image, _ in leaks(tmp_path, pictures, [Image.fromarray(scene(9)), copy])] == [2]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_views_are_those_of_the_picture_that_is_shown(orientation: int) -> None:
    stored, tag = Image.fromarray(scene(4)), Image.Exif()
    tag[0x0112] = orientation
    stored.info["exif"] = tag.tobytes()
    shown = ImageOps.exif_transpose(stored)
    there, here = (v.astype(int) for v in (views_of(shown), views_of(stored, orientation)))
    assert np.abs(there - here).max() <= 1


def panning(n: int) -> np.ndarray:
    return np.asarray(Image.fromarray(scene(0)).resize((300, 72), Image.Resampling.BICUBIC))[:, 60 * n : 60 * n + 96]


def test_frames_of_a_moving_camera_are_no_copies(tmp_path: Path) -> None:
    pictures = [Image.fromarray(panning(n)) for n in range(4)]
    assert leaks(tmp_path, pictures[::2], pictures[1::2]) == []
