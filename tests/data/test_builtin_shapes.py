"""The built-in data: the same bytes each time, and all the kinds of things that real data have."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from maskrcnn_coco.data.builtin_shapes import CLASSES, write_shapes
from maskrcnn_coco.data.masks import decode_mask
from maskrcnn_coco.errors import DataError


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=120, val=4)


@pytest.fixture(scope="module")
def coco(drawn: tuple[Path, Path]) -> dict:
    return json.loads(drawn[0].read_text())


def test_the_same_arguments_give_the_same_bytes(tmp_path: Path):
    write_shapes(tmp_path / "a", train=6, val=3, size=48, seed=5)
    write_shapes(tmp_path / "b", train=6, val=3, size=48, seed=5)
    write_shapes(tmp_path / "c", train=6, val=3, size=48, seed=6)
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest(tmp_path / "c")


def test_a_larger_set_begins_with_the_smaller_one(tmp_path: Path):
    small, _ = write_shapes(tmp_path / "a", train=3, val=1, size=48)
    large, _ = write_shapes(tmp_path / "b", train=5, val=1, size=48)
    assert (small.parent / "000003.png").read_bytes() == (large.parent / "000003.png").read_bytes()


def test_train_and_validation_images_differ(drawn: tuple[Path, Path]):
    train, val = ({hashlib.sha256(p.read_bytes()).digest() for p in j.parent.glob("*.png")} for j in drawn)
    assert len(train) == 120 and not train & val


def test_drawn_once(tmp_path: Path):
    train, _ = write_shapes(tmp_path, train=3, val=1, size=48)
    before = train.stat().st_mtime_ns
    write_shapes(tmp_path, train=3, val=1, size=48)
    assert train.stat().st_mtime_ns == before
    write_shapes(tmp_path, train=4, val=1, size=48)
    assert len(list(train.parent.glob("*.png"))) == 4


def test_a_half_drawn_folder_is_drawn_again(tmp_path: Path):
    _, val = write_shapes(tmp_path, train=3, val=1, size=48)
    whole = digest(tmp_path)
    for path in val.parent.iterdir():
        path.unlink()
    val.parent.rmdir()
    write_shapes(tmp_path, train=3, val=1, size=48)
    assert digest(tmp_path) == whole


def test_somebody_elses_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "mine.txt").write_text("mine")
    with pytest.raises(DataError, match="not of the built-in shapes"):
        write_shapes(tmp_path, train=2, val=1, size=48)
    assert (tmp_path / "train" / "mine.txt").read_text() == "mine"


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file"):
        write_shapes(tmp_path / "file" / "shapes", train=1, val=1)


def test_it_has_what_real_sets_have(coco: dict):
    annotations = coco["annotations"]
    used = {a["image_id"] for a in annotations}
    assert 0.02 <= 1 - len(used) / len(coco["images"]) <= 0.2
    assert {a["category_id"] for a in annotations} == {1, 2, 3} and len(CLASSES) == 3
    crowds = [a for a in annotations if a["iscrowd"]]
    plain = [a for a in annotations if not a["iscrowd"]]
    assert 3 <= len(crowds) <= 25
    assert all(isinstance(c["segmentation"], dict) for c in crowds)
    kinds = {
        "polygon": [a for a in plain if isinstance(a["segmentation"], list)],
        "compressed": [
            a for a in plain if isinstance(a["segmentation"], dict) and isinstance(a["segmentation"]["counts"], str)
        ],
        "uncompressed": [
            a for a in plain if isinstance(a["segmentation"], dict) and isinstance(a["segmentation"]["counts"], list)
        ],
    }
    assert all(kinds.values()), {k: len(v) for k, v in kinds.items()}
    sides = np.sqrt([a["bbox"][2] * a["bbox"][3] for a in plain])
    assert sides.max() > 60 and sides.min() < 20 and np.mean(sides >= 12) > 0.97


def test_masks_boxes_and_areas_agree(coco: dict):
    for a in coco["annotations"]:
        mask = decode_mask(a["segmentation"], 128, 128)
        rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        x, y, w, h = a["bbox"]
        assert abs(int(mask.sum()) - a["area"]) <= 0.08 * a["area"] + 4
        found = np.array([cols[0], rows[0], cols[-1] + 1, rows[-1] + 1])
        assert np.abs(found - [x, y, x + w, y + h]).max() <= 1.5
        assert min(x, y) >= 0 and max(x + w, y + h) <= 128


def test_visible_masks_do_not_overlap(coco: dict):
    for image in coco["images"]:
        masks = [decode_mask(a["segmentation"], 128, 128) for a in coco["annotations"] if a["image_id"] == image["id"]]
        total = np.sum(masks, axis=0) if masks else np.zeros(1)
        # polygons are cut at whole pixels by COCO's rule, RLE by coverage: borders may differ by a pixel
        assert (total > 1).sum() <= 0.02 * 128 * 128


def test_images_are_rgb_of_the_said_size(drawn: tuple[Path, Path], coco: dict):
    for image in coco["images"][:5]:
        with Image.open(drawn[0].parent / image["file_name"]) as picture:
            assert picture.mode == "RGB" and picture.size == (image["width"], image["height"]) == (128, 128)
