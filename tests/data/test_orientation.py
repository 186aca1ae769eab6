"""EXIF turns that leave the sides as they are: the pictures tell whether a set was annotated before or after them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from silent.scene import Scene, write_coco

from maskrcnn_coco.data.coco.table import load_coco
from maskrcnn_coco.data.dataset import CocoDataset
from maskrcnn_coco.data.images import read_image
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.data.orientation import with_orientation
from maskrcnn_coco.inference.inputs import read_file

UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera does that writes the tag."""
SQUARE, WIDE = (80, 80), (64, 96)
CASES = [(o, SQUARE) for o in range(2, 9)] + [(o, WIDE) for o in (2, 3, 4)]


def phone(folder: Path, orientation: int, size: tuple[int, int], *, as_stored: bool, every: int = 1) -> Path:
    """A set of JPEGs with the tag, in each ``every``-th; annotated on what is stored, or on what is shown."""
    data = write_coco(folder, Scene(12, size=size))
    doc = json.loads(data.read_text())
    for n, entry in enumerate(doc["images"]):
        image = Image.open(folder / entry["file_name"])
        entry["file_name"] = f"{n:03d}.jpg"
        tag = Image.Exif()
        if n % every == 0:
            tag[0x0112] = orientation
            image = image if as_stored else image.transpose(UNDO[orientation])
        image.save(folder / entry["file_name"], quality=95, exif=tag)
    data.write_text(json.dumps(doc))
    return data


@pytest.mark.parametrize("as_stored", [False, True])
@pytest.mark.parametrize(("orientation", "size"), CASES)
def test_the_set_is_read_as_it_was_annotated(
    orientation: int, size: tuple[int, int], as_stored: bool, tmp_path: Path
) -> None:
    data = phone(tmp_path, orientation, size, as_stored=as_stored)
    found = find_data(data, images=tmp_path)
    assert found.train.as_stored is as_stored
    assert any("EXIF" in note for note in found.notes) is as_stored
    image, target = CocoDataset(found.train, train=False)[0]
    plain, wanted = Scene(12, size=size).plain(0)
    assert np.abs(image.numpy() - plain.numpy()).mean() < 0.08
    assert target["boxes"].tolist() == wanted["boxes"].tolist()


def test_images_without_the_tag_beside_turned_ones_are_read_as_ever(tmp_path: Path) -> None:
    table, text = with_orientation(load_coco(phone(tmp_path, 3, WIDE, as_stored=True, every=3), tmp_path))
    assert table.as_stored and text is not None and text.startswith("4 of the images")


def test_two_turned_images_do_not_tell_and_go_by_the_training_data(tmp_path: Path) -> None:
    table = load_coco(phone(tmp_path, 3, WIDE, as_stored=True, every=6), tmp_path)
    assert not with_orientation(table)[0].as_stored
    assert with_orientation(table, known=True)[0].as_stored


def test_prediction_reads_as_training_did(tmp_path: Path) -> None:
    phone(tmp_path, 3, WIDE, as_stored=True)
    file = tmp_path / "000.jpg"
    turned, stored = read_file(file), read_file(file, as_stored=True)
    assert np.array_equal(turned, stored[::-1, ::-1])
    assert np.array_equal(stored, read_image(tmp_path, "000.jpg", as_stored=True))
