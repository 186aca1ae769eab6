"""Folders of mask images as people have them: soft edges, JPEG, films, trimaps, masks beside their images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.convert.mask_images import hardened
from maskrcnn_coco.data.convert.recognise import convert, recognise
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError

H, W = 60, 80
BOXES = ((5, 5, 30, 25), (40, 30, 70, 52))
"""x0, y0, x1, y1 of the two objects."""


def labels(*values: int) -> np.ndarray:
    found = np.zeros((H, W), np.uint8)
    for (x0, y0, x1, y1), value in zip(BOXES, values, strict=False):
        found[y0:y1, x0:x1] = value
    return found


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (H, W, 3), np.uint8)).save(path)


def mask(path: Path, values: np.ndarray, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **how)


def soft(values: np.ndarray) -> np.ndarray:
    """Edges as a drawing program smooths them."""
    grown = Image.fromarray(values).resize((W // 2, H // 2), Image.Resampling.BILINEAR)
    return np.asarray(grown.resize((W, H), Image.Resampling.BICUBIC))


def objects(folder: Path) -> tuple[list[tuple[str, str, np.ndarray]], str]:
    """(file name, class, mask) of each object, and how the folder was understood."""
    source = recognise(folder)
    assert source is not None
    (document,) = convert(source).values()
    plain = document.plain()
    images, names = ({e["id"]: e for e in plain[k]} for k in ("images", "categories"))
    found = [
        (images[a["image_id"]]["file_name"], names[a["category_id"]]["name"], decode_mask(a["segmentation"], H, W))
        for a in plain["annotations"]
    ]
    return found, "; ".join(document.notes())


def agree(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.count_nonzero(one & other) / np.count_nonzero(one | other))


@pytest.mark.parametrize(("suffix", "how"), [(".png", {}), (".tif", {}), (".jpg", {"quality": 60})])
def test_black_and_white_masks_with_soft_edges_are_cut_at_half(tmp_path: Path, suffix: str, how: dict[str, int]):
    for n in range(3):
        picture(tmp_path / "images" / f"{n}.png", n)
        values = labels(255, 255)
        mask(tmp_path / "masks" / f"{n}{suffix}", values if suffix == ".jpg" else soft(values), **how)
    found, said = objects(tmp_path)
    assert len(found) == 6 and "soft edges" in said
    for n, (_, _, drawn) in enumerate(found):
        assert agree(drawn, np.asarray(labels(*((1, 0), (0, 1))[n % 2]), np.uint8)) > 0.85


def honest() -> dict[str, np.ndarray]:
    rng, many = np.random.default_rng(0), np.zeros((200, 200), np.uint8)
    for value in range(1, 251):
        y, x = divmod(value, 16)
        many[12 * y : 12 * y + 9, 12 * x : 12 * x + 9] = value
    ignored = many.copy()
    ignored[many > 60] = 255
    bordered = labels(1, 2)
    bordered[rng.random((H, W)) < 0.02] = 255
    return {"many numbers": many, "numbers and a large void": ignored, "numbers and specks of void": bordered,
            "black and white": labels(255, 255), "one": labels(1), "empty": labels()}  # fmt: skip


@pytest.mark.parametrize("name", honest())
def test_numbers_of_objects_are_never_taken_for_soft_edges(name: str):
    assert hardened(honest()[name], lossy=False) is None


def test_jpeg_masks_of_more_than_black_and_white_are_refused_in_a_sentence(tmp_path: Path):
    for n in range(3):
        picture(tmp_path / "images" / f"{n}.png", n)
        mask(tmp_path / "masks" / f"{n}.jpg", labels(80, 160), quality=60)
    with pytest.raises(DataError, match="nothing in") as caught:
        objects(tmp_path)
    assert "save them as PNG" in str(caught.value.got)


def test_pictures_of_masks_beside_them_are_not_read(tmp_path: Path):
    for n in range(2):
        picture(tmp_path / "images" / f"{n}.png", n)
        mask(tmp_path / "masks" / f"{n}.png", labels(1, 2))
        mask(tmp_path / "masks" / f"{n}_overlay.jpg", labels(90, 160))
    assert len(objects(tmp_path)[0]) == 4


def test_frames_of_several_films_have_the_same_names(tmp_path: Path):
    for n, film in enumerate(("bear", "camel")):
        for frame in range(2):
            picture(tmp_path / "JPEGImages" / "480p" / film / f"{frame:05}.jpg", 2 * n + frame)
            mask(tmp_path / "Annotations" / "480p" / film / f"{frame:05}.png", labels(1, 2 * n))
    found, _ = objects(tmp_path)
    per_image = {name: sum(1 for o in found if o[0] == name) for name, *_ in found}
    assert per_image == {
        f"JPEGImages/480p/{film}/{frame:05}.jpg": n + 1 for n, film in enumerate(("bear", "camel")) for frame in (0, 1)
    }
    assert {kind for _, kind, _ in found} == {"object"}


def test_trimaps_have_one_object_and_no_background_in_it(tmp_path: Path):
    for n in range(3):
        picture(tmp_path / "images" / f"{n}.jpg", n)
        values = labels(1)
        values[values == 0] = 2
        values[5:7, 5:30] = 3
        mask(tmp_path / "annotations" / "trimaps" / f"{n}.png", values)
    found, _ = objects(tmp_path)
    assert [(kind, int(drawn.sum())) for _, kind, drawn in found] == [("object", 18 * 25)] * 3


def test_masks_in_the_folder_of_their_images(tmp_path: Path):
    for n in range(3):
        picture(tmp_path / f"cell{n}.tif", n)
        mask(tmp_path / f"cell{n}_cp_masks.tif", labels(*(1, 2)[: 1 + n % 2]).astype(np.uint16))
    assert [name for name, *_ in objects(tmp_path)[0]] == ["cell0.tif", "cell1.tif", "cell1.tif", "cell2.tif"]


def test_a_mask_without_background_and_one_turned_inside_out_are_said(tmp_path: Path):
    for n in range(3):
        picture(tmp_path / "a" / "images" / f"{n}.png", n)
        mask(tmp_path / "a" / "masks" / f"{n}.png", 255 - labels(255))
        picture(tmp_path / "b" / "images" / f"{n}.png", n)
        mask(tmp_path / "b" / "masks" / f"{n}.png", 1 + labels(1, 2))
        picture(tmp_path / "c" / "images" / f"{n}.png", n)
        mask(tmp_path / "c" / "masks" / f"{n}.png", labels(255, 255))
    said = {name: objects(tmp_path / name)[1] for name in "abc"}
    assert "invert" in said["a"] and "no mask has a background" in said["b"]
    assert "background" not in said["c"]


def test_files_that_macos_hides_are_passed_over(tmp_path: Path):
    for n in range(2):
        picture(tmp_path / "images" / f"{n}.png", n)
        mask(tmp_path / "masks" / f"{n}.png", labels(1, 2))
        for folder in ("images", "masks"):
            (tmp_path / folder / f"._{n}.png").write_bytes(b"\0\5\x16\7\0\2\0\0Mac OS X")
    found, said = objects(tmp_path)
    assert len(found) == 4 and "left out" not in said
    assert main(["check", "--data", str(tmp_path)]) == 0
