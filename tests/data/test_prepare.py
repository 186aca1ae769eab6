"""Both parts of the data are checked before a run: errors are left out and said, leaks are said."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.audit import cache
from maskrcnn_coco.data.batch import image_id
from maskrcnn_coco.data.prepare import RunData, check_data, complaints, counts_of, open_data, require_items
from maskrcnn_coco.errors import ConfigError, DataError
from maskrcnn_coco.system.files import cache_folder
from tests.helpers.odd_sets import OddSet

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


AHEAD = """
import os, sys
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.prepare import drawn_ahead
with drawn_ahead(Config({settings})):
    assert not {{"numpy", "torch"}} & sys.modules.keys()
"""


def ahead(cache: Path, settings: str = "") -> set[str]:
    """What lies in an empty cache folder after the built-in set was drawn ahead; nothing may have been printed."""
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", AHEAD.format(settings=settings)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()} if cache.is_dir() else set()


@pytest.mark.skipif(sys.platform != "linux", reason="there the run draws by itself")
def test_the_built_in_set_is_drawn_and_checked_while_torch_is_imported(tmp_path: Path, monkeypatch):
    cache = tmp_path / "cache"
    files = ahead(cache)
    drawn = cache / "maskrcnn_coco" / "shapes"
    stamps = [(drawn / part / "shapes.json").stat().st_mtime_ns for part in ("train", "valid")]
    assert sum("/checks/" in name for name in files) == 2
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    data = open_data(Config())
    assert data.train is not None and len(data.train) == 120
    check_data(data, Config())
    assert [(drawn / part / "shapes.json").stat().st_mtime_ns for part in ("train", "valid")] == stamps
    assert {str(p.relative_to(cache)) for p in cache.rglob("*") if p.is_file()} == files, (
        "the run drew or checked again"
    )


def test_nothing_is_drawn_ahead_for_data_of_the_users_own(tmp_path: Path):
    assert ahead(tmp_path / "cache", "data='somewhere'") == set()


def test_a_cache_folder_that_cannot_be_used_is_left_to_the_run(tmp_path: Path, monkeypatch):
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / "maskrcnn_coco").write_text("in the way")
    ahead(cache)
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    with pytest.raises(DataError, match="cannot draw"):
        open_data(Config())


@pytest.mark.parametrize("mode", [0o644, 0o755])
def test_where_the_cache_folder_is_a_file_the_temporary_folder_serves(tmp_path: Path, monkeypatch, mode: int):
    file, temporary = tmp_path / "cache", tmp_path / "temporary"
    file.write_text("in the way")
    file.chmod(mode)
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    for base in (file, file / "below"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(base))
        assert cache_folder("shapes").is_relative_to(temporary)


class Long:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


@pytest.mark.parametrize("length", [-1, 2**40, 2**70])
def test_a_length_that_cannot_be_is_told(length: int):
    with pytest.raises(ConfigError, match=r"train_data (has a length|says)"):
        require_items(Long(length), "train_data")


@pytest.mark.parametrize(("told", "used"), [(2**63 - 1, 2**63 - 1), (2**63, 7), (2**70, 7), (-(2**70), 7), (-3, -3)])
def test_an_image_id_beyond_64_bits_is_the_position(told: int, used: int):
    assert image_id({"image_id": told}, 7) == used


def test_objects_and_images_of_each_class_are_counted(tmp_path: Path):
    data = OddSet(tmp_path, images=7, objects=4, seed=3)
    for n, ann in enumerate(data.annotations):
        ann["category_id"] = 1 + n * n % 3 % 2
        ann["iscrowd"] = int(n % 5 == 0)
    counted = counts_of(data.table())
    for category in data.categories:
        mine = [a for a in data.annotations if a["category_id"] == category["id"] and not a["iscrowd"]]
        images = len({a["image_id"] for a in mine})
        assert counted[category["name"]] == {"objects": len(mine), "images": images} and images
