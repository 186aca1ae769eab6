"""Both parts of the data are checked before a run: errors are left out and said, leaks are said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from maskrcnn_coco.audit import cache
from maskrcnn_coco.config import Config
from maskrcnn_coco.datasets import RunData, check_data, complaints, open_data
from maskrcnn_coco.errors import DataError

JSON = "_annotations.coco.json"


@pytest.fixture
def folder(tiny_shapes, tmp_path: Path) -> Path:
    """A copy of the tiny shapes that may be spoiled."""
    return Path(shutil.copytree(tiny_shapes.root, tmp_path / "data"))


def spoil(folder: Path, change) -> None:
    """Rewrite the validation annotations after ``change`` of the decoded JSON."""
    path = folder / "valid" / JSON
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def checked(folder: Path, **settings) -> RunData:
    config = Config(data=str(folder), **settings)
    data = open_data(config)
    check_data(data, config)
    return data


def test_sound_data_has_nothing_to_complain_of(folder: Path):
    data = checked(folder)
    assert data.val is not None and len(data.val) == 8 and complaints(data) == []


def test_errors_of_the_validation_data_are_left_out_and_said(folder: Path):
    def change(data):
        next(a for a in data["annotations"] if a["image_id"] == 2)["bbox"] = [5, 5, -3, 8]
        data["annotations"][-1]["segmentation"] = [[1, 2]]

    spoil(folder, change)
    (folder / "valid" / "000001.png").write_bytes(b"not a picture")
    bad = {json.loads((folder / "valid" / JSON).read_text())["annotations"][-1]["id"]}
    data = checked(folder)
    assert data.val is not None and data.train is not None
    assert data.val.image_ids.tolist() == [2, 3, 4, 5, 6, 7, 8] and len(data.train) == 24
    assert not bad & set(data.val.ann_ids.tolist()) and not data.bad_images and not data.bad_annotations
    assert all(data.val.boxes[data.val.annotations_of(data.val.row_of(2)), 2] > 0)
    (sentence,) = complaints(data)
    assert "validation data" in sentence and "left out of the evaluation" in sentence


def test_strict_refuses_them(folder: Path):
    spoil(folder, lambda data: data["annotations"][0].update(bbox=[5, 5, -3, 8]))
    with pytest.raises(DataError, match=r"valid.*--strict"):
        checked(folder, strict=True)


def test_nothing_left_to_validate_on_is_an_error(folder: Path):
    for path in (folder / "valid").glob("*.png"):
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"no usable image is left in .*valid"):
        checked(folder)


def test_an_image_in_both_parts_is_said(folder: Path):
    shutil.copy(folder / "train" / "000004.png", folder / "valid" / "000003.png")
    (sentence,) = complaints(checked(folder))
    assert "1 training images are validation images too" in sentence and "000003.png" in sentence


def test_both_are_checked_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    spoil(folder, lambda data: data["annotations"][0].update(bbox=[5, 5, -3, 8]))
    first = checked(folder)
    monkeypatch.setattr(cache, "audit", lambda *_, **__: pytest.fail("checked again"))
    again = checked(folder)
    assert first.val_findings and again.val_findings == first.val_findings and again.findings == first.findings
