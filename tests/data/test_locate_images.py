"""File names as tools write them find their file where exactly one answers, and are never guessed where two do."""

from __future__ import annotations

import json
import shlex
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.config.settings import Config, validate
from maskrcnn_coco.data.audit.checks import audit
from maskrcnn_coco.data.file_names import plain_name
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.errors import ConfigError, DataError
from tests.helpers.odd_sets import OddSet


def write(folder: Path, names: list[str | None], files: list[str], images: str = "images", **urls: str) -> Path:
    """``names`` in the json, ``files`` below ``images``."""
    for n, file in enumerate(files):
        path = folder / images / file
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 24), (n, 9, 0)).save(path, format="PNG")
    folder.mkdir(parents=True, exist_ok=True)
    entries = [
        {"id": n + 1, "height": 24, "width": 32} | ({} if f is None else {"file_name": f}) for n, f in enumerate(names)
    ]
    for n, entry in enumerate(entries):
        entry |= {k: v.format(n) for k, v in urls.items()}
    ann = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [4, 4, 10, 10], "area": 50, "iscrowd": 0,
           "segmentation": [[4, 4, 14, 4, 14, 14]]}  # fmt: skip
    doc = {"images": entries, "annotations": [ann], "categories": [{"id": 1, "name": "a"}]}
    path = folder / "labels.json"
    path.write_text(json.dumps(doc))
    return path


UMLAUT = "Prüfung é.png"
CASES = {
    "the query of an address": ("a.PNG?raw=true", "a.PNG", "images"),
    "blanks around it": (" ./images/ a.png ", "a.png", "images"),
    "backslashes": ("images\\a.png", "a.png", "images"),
    "backslashes and sub folders": ("x\\b\\a.png", "b/a.png", "images"),
    "a Windows path": ("C:\\Users\\me\\data\\a.png", "a.png", "images"),
    "up and down": ("..\\images\\a.png", "a.png", "images"),
    "an address": ("https://host.example/bucket/train/a.png?sig=1%2F2", "a.png", "images"),
    "label studio": ("/data/local-files/?d=project%5Cimages%5Ca.png", "a.png", "images"),
    "label studio upload": ("/data/upload/3/a.png", "a.png", "images"),
    "sub folder": ("a.png", "deep/er/a.png", "images"),
    "an absolute path": ("/home/me/set/images/a.png", "a.png", "images"),
    "decomposed": (unicodedata.normalize("NFD", UMLAUT), unicodedata.normalize("NFC", UMLAUT), "images"),
    "composed": (unicodedata.normalize("NFC", UMLAUT), unicodedata.normalize("NFD", UMLAUT), "images"),
    "percent signs": ("my%20photo.png", "my photo.png", "images"),
    "case of the suffix": ("a.PNG", "a.png", "images"),
    "case of the name": ("IMG_1.png", "img_1.png", "images"),
    "another suffix": ("a.jpg", "a.png", "images"),
    "no suffix": ("frame.0012", "frame.0012.png", "images"),
    "label studio's mark": ("images/1f2e3d4c-a.png", "a.png", "images"),
    "label studio's upload": ("/data/upload/1/1f2e3d4c-My_photo_1.png", "my photo (1).png", "images"),
    "label studio's mark on the file": ("a.png", "1f2e3d4c-a.png", "images"),
    "label studio's long mark": ("1f2e3d4c-0a1b-4c2d-8e3f-0123456789ab-a.png", "deep/a.png", "images"),
    "label studio's local files": ("1f2e3d4c__set%5Ca.png", "a.png", "images"),
    "roboflow's mark": (f"a_jpg.rf.{'9e107d9d' * 4}.jpg", "a.jpg", "images"),
    "roboflow's mark and signs": (f"my-photo-1-_png.rf.{'9e107d9d' * 4}.jpg", "My photo (1).png", "images"),
    "roboflow's mark on the file": ("a.png", f"x/a_png.rf.{'9e107d9d' * 4}.jpg", "images"),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("given", [False, True])
def test_one_file_answers(name: str, given: bool, tmp_path: Path) -> None:
    wrote, file, images = CASES[name]
    path = write(tmp_path, [wrote, "plain.png"], [file, "plain.png", "other.png"], images)
    found = find_data(path, images=tmp_path / images if given else None)
    table = found.train
    assert (table.image_root / table.file_name(0)).resolve() == (tmp_path / images / file).resolve()
    assert [f.code for f in audit(table) if f.severity == "error"] == []
    if name != "backslashes" or given:
        assert any("is read as" in n for n in found.notes)
    (tmp_path / images / "plain.png").unlink()  # all of them written in that way
    path = write(tmp_path / "all", [wrote], [file, "other.png"], images)
    table = find_data(path, images=tmp_path / "all" / images if given else None).train
    assert [f.code for f in audit(table) if f.severity == "error"] == []


@pytest.mark.parametrize("name", ["coco_url", "filename"])
def test_without_a_file_name_the_address_names_it(name: str, tmp_path: Path) -> None:
    files = ["000.png", "001.png"]
    path = write(tmp_path, [None, None], files, **{name: "http://images.cocodataset.org/train2017/00{}.png"})
    table = find_data(path).train
    assert [Path(table.file_name(r)).name for r in range(2)] == files
    assert [f.code for f in audit(table) if f.severity == "error"] == []


def test_two_files_answer_none_is_taken_and_both_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, ["plain.png", "a.png"], ["plain.png", "x/a.png", "y/a.png"])
    table = find_data(path).train
    missing = [f for f in audit(table) if f.code == "IMAGE_MISSING"]
    assert len(missing) == 1 and "x/a.png" in missing[0].message and "y/a.png" in missing[0].message


def test_a_file_that_another_entry_names_is_not_taken(tmp_path: Path) -> None:
    path = write(tmp_path, ["a.png", "a.jpg"], ["a.png"])
    codes = [f.code for f in audit(find_data(path).train)]
    assert codes.count("IMAGE_MISSING") == 1
    path = write(tmp_path / "two", ["plain.png", "a.jpg", "a.bmp"], ["plain.png", "a.png"])
    assert [f.code for f in audit(find_data(path).train)].count("IMAGE_MISSING") == 2


@pytest.mark.parametrize(
    ("wrote", "files", "near"),
    [
        (["1f2e3d4c-a.png", "aaaaaaaa-a.png"], ["a.png"], "a.png"),  # one file for two entries
        ([f"a_jpg.rf.{'0' * 32}.jpg"], [f"a_jpg.rf.{'1' * 32}.jpg"], "a_jpg"),  # another export: other pixels, perhaps
        (["1f2e3d4c-a.png"], ["a.png", "A.jpg"], "a.png"),
        (["20210304-cats.png"], ["20210305-cats.png"], "20210305-cats.png"),
        (["20210304-cats.png"], ["cats.png"], "cats.png"),  # a date
    ],
)
def test_marks_of_tools_are_no_guess(wrote: list[str], files: list[str], near: str, tmp_path: Path) -> None:
    table = find_data(write(tmp_path, ["plain.png", *wrote], ["plain.png", *files])).train
    missing = [f for f in audit(table) if f.code == "IMAGE_MISSING"]
    assert len(missing) == len(wrote) and all(near in f.message for f in missing)


def test_a_near_name_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, ["plain.png", "img_00012.png"], ["plain.png", "img_0012.png"])
    (missing,) = [f for f in audit(find_data(path).train) if f.code == "IMAGE_MISSING"]
    assert "img_0012.png" in missing.message
    path = write(tmp_path / "none", ["scan_00012.png"], ["scan_0012.png"])
    with pytest.raises(DataError, match="none of the images") as caught:
        find_data(path)
    assert "scan_0012.png" in (caught.value.got or "")


def test_a_given_folder_is_never_left(tmp_path: Path) -> None:
    """The folder above has all of the names; the one that was given has one."""
    path = write(tmp_path, ["a.png", "b.png", "c.png"], ["a.png", "b.png", "c.png"], images="data")
    Image.new("RGB", (32, 24)).save(tmp_path / "data/a.png")
    (tmp_path / "data/new").mkdir()
    Image.new("RGB", (32, 24), "red").save(tmp_path / "data/new/b.png")
    table = find_data(path, images=tmp_path / "data/new").train
    assert table.image_root == tmp_path / "data/new"
    assert {f.file_name for f in audit(table) if f.code == "IMAGE_MISSING"} == {"a.png", "c.png"}
    (tmp_path / "data/empty").mkdir()
    with pytest.raises(DataError, match="none of the images"):
        find_data(path, images=tmp_path / "data/empty")


def test_names_that_repeat_the_folder_are_said(tmp_path: Path) -> None:
    path = write(tmp_path, ["train/a.png"], ["train/a.png"], images=".")
    found = find_data(path, images=tmp_path / "train")
    assert found.train.image_root == tmp_path and any("begin with train/" in n for n in found.notes)


def test_images_without_data_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("images", "val", "val_images"):
        with pytest.raises(ConfigError, match=f"--{flag.replace('_', '-')}"):
            validate(Config(demo=True, **{flag: "x"}))
    assert main(["train", "--demo", "--images", "x"]) == 2
    assert "--images" in capsys.readouterr().err


def test_suggested_commands_exist_and_are_quoted(tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    for part in ("parts", "damage"):
        path = write(folder / "annotations", ["a.png"], [])
        path.rename(folder / f"annotations/{part}_train.json")
    with pytest.raises(DataError) as caught:
        find_data(folder)
    words = shlex.split((caught.value.fix or "").partition(": ")[2])
    assert words[0] == "--data" and Path(words[1]).is_file() and len(words) == 2
    (folder / "train").mkdir()
    with pytest.raises(DataError) as caught:
        find_data(folder)
    words = shlex.split((caught.value.fix or "").partition(": ")[2])
    assert words[2] == "--images" and Path(words[3]).is_dir()
    outer = tmp_path / "outer"
    write(outer / "a b" / "export", ["a.png"], ["a.png"])
    with pytest.raises(DataError, match="no training annotations") as caught:
        find_data(outer)
    words = shlex.split((caught.value.fix or "").partition(": ")[2])
    assert words[0] == "--data" and Path(words[1]).is_file()


def test_the_validation_file_beside_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("train", "valid"):
        path = write(tmp_path / part, [f"{part}.png"], [f"{part}.png"], images=".")
        path.rename(path.with_name("_annotations.coco.json"))
    monkeypatch.chdir(tmp_path / "train")
    for data in (".", "_annotations.coco.json"):
        found = find_data(data)
        assert found.val is not None and found.val.file_name(0) == "valid.png"


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        ("a/b.png", "a/b.png"),
        (".\\a\\b.png", "a/b.png"),
        ("s3://bucket/a%20b.png", "bucket/a%20b.png"),
        ("http://h/x/a%20b.png?y=1", "x/a b.png"),
        ("what?.png", "what?.png"),
        ("D:/x/y.png", "x/y.png"),
        ("", ""),
    ],
)
def test_plain_names(name: str, plain: str) -> None:
    assert plain_name(name).endswith(plain.rpartition("/")[2]) or name.startswith("s3")


def test_images_that_are_nowhere_but_on_the_net_are_to_be_downloaded(tmp_path: Path):
    data = OddSet(tmp_path / "set", images=2)
    for image in data.images:
        (data.folder / image["file_name"]).unlink()
        image["file_name"] = f"https://bucket.example/{image['file_name']}"
    with pytest.raises(DataError, match="none of the images") as caught:
        find_data(data.write())
    assert "download" in str(caught.value.fix)


def test_where_file_names_are_no_utf8_the_way_to_read_them_so_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path, ["\u00dcbung.png"], ["other.png"])
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(DataError, match="none of the images") as error:
        find_data(tmp_path)
    assert "PYTHONUTF8=1" in str(error.value.fix)
