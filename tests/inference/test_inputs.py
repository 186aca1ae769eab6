"""What a person names: files that are missing, of other kinds, of many pages. Nothing is passed over in silence."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from colours import picture, predictor
from PIL import Image

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.inference.arrays import check_pixels
from maskrcnn_coco.inference.inputs import Pictures, read_file


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a.png"
    Image.fromarray(picture(50, 60, 2, 0)).save(path)
    return path


@pytest.mark.parametrize("missing", ["no.png", "", "https://example.org/a.png", "a\0b.png", "x" * 5000 + ".png", "*.x"])
def test_a_missing_file_costs_itself_alone(missing: str, image: Path) -> None:
    told: list[str] = []
    results = predictor().predict([image, missing, image], on_unreadable=told.append)
    assert [r.number for r in results] == [1, 3]
    assert len(told) == len(results.failed) == 1
    assert len(told[0]) < 500
    with pytest.raises(DataError):
        predictor().predict(missing)
    with pytest.raises(DataError):
        predictor().predict([missing])


def test_a_name_written_as_elsewhere_is_understood_but_not_guessed(image: Path) -> None:
    for other in (f"file://{image}", str(image).replace("/", "\\")):
        with pytest.raises(DataError, match=r"here it is .*a\.png"):
            predictor().predict(other)
    with pytest.raises(DataError, match="name an image file"):
        predictor().predict(r"C:\images\a.png")
    with pytest.raises(DataError, match="got: dict"):
        predictor().predict({"image": np.zeros((9, 9, 3), np.uint8)})


def test_what_is_wrong_is_said_once(image: Path) -> None:
    (image.parent / "page.jpg").write_text("<html>sign in</html>")
    (image.parent / "empty.png").write_bytes(b"")
    os.mkfifo(image.parent / "pipe.png")
    told: list[str] = []
    names = [image.parent / n for n in ("page.jpg", "empty.png", "pipe.png")]
    list(predictor().predict([image, *names], on_unreadable=told.append))
    assert [t.count("download it again") for t in told] == [1, 1, 0]
    assert "annotations" not in told[2]


def test_a_folder_says_what_it_passes_over(image: Path) -> None:
    for name in ("b.heic", "c.DCM", "d.nd2", "film.mp4", "notes.txt"):
        (image.parent / name).write_bytes(b"x")
    (image.parent / "__MACOSX").mkdir()
    shutil.copy(image, image.parent / "__MACOSX" / "a.png")
    pictures = Pictures(image.parent)
    assert [p.name for p in pictures] == ["a.png"]
    (note,) = pictures.notes
    assert all(k in note for k in ("1 .heic", "1 .dcm", "1 .nd2", "1 .mp4"))
    assert "txt" not in note
    image.unlink()
    with pytest.raises(DataError, match="heic"):
        Pictures(image.parent)


@pytest.mark.parametrize("ending", ["tif", "gif"])
def test_pages_beyond_the_first_are_said(ending: str, tmp_path: Path) -> None:
    pages = [Image.fromarray(picture(50, 60, 2, n)) for n in range(3)]
    pages[0].save(tmp_path / f"stack.{ending}", save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / f"one.{ending}")
    (note,) = Pictures(tmp_path).notes
    assert "stack" in note
    assert "3 pages" in note
    with pytest.warns(UserWarning, match="3 pages"):
        predictor().predict(tmp_path)
    assert Pictures(tmp_path / f"one.{ending}").notes == []


def test_an_image_too_thin_says_so() -> None:
    model = predictor()
    model.engine.run = lambda images: (_ for _ in ()).throw(RuntimeError("sizes should be greater than 0"))  # pyright: ignore
    told: list[str] = []
    list(model.predict(np.zeros((1, 900, 3), np.uint8), on_unreadable=told.append))
    assert "too thin" in told[0]


@pytest.mark.parametrize(
    ("array", "said"),
    [(np.full((9, 9, 3), np.nan), "243 of its 243 numbers are not finite"),
     (np.full((9, 9, 3), 200.0), "divide by 255"), (np.full((9, 9, 3), -1), "one scale"),
     (np.zeros((9, 9, 7), np.uint8), "three of its 7"), (np.zeros((9, 9, 3), complex), "complex")],
)  # fmt: skip
def test_an_array_that_is_no_picture_says_what_to_do(array: np.ndarray, said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_pixels(array, "image 1")
    with pytest.warns(UserWarning, match=said):
        list(predictor().predict(array))


def test_a_picture_beyond_all_limits_says_what_to_do(tmp_path: Path) -> None:
    Image.new("1", (20000, 20000)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match="cut it into tiles"):
        read_file(tmp_path / "bomb.png")
