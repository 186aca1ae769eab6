"""Run folders: a new run never overwrites an old one; unusable folders are named."""

import os

import pytest

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.training.folders import fresh_folder, keep_folder


def test_an_older_run_is_renamed_with_its_start_time(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("lr: 1")
    os.utime(folder / "config.yaml", (1_700_000_000, 1_700_000_000))
    moved = fresh_folder(folder)
    assert moved is not None
    assert moved.name.startswith("run_2023-11-1")
    assert (moved / "config.yaml").read_text() == "lr: 1"
    assert list(folder.iterdir()) == []


def test_two_old_runs_of_the_same_second_both_stay(tmp_path):
    folder = tmp_path / "run"
    names = []
    for text in ("a", "b"):
        folder.mkdir(exist_ok=True)
        (folder / "config.yaml").write_text(text)
        os.utime(folder / "config.yaml", (1_700_000_000, 1_700_000_000))
        names.append(fresh_folder(folder))
    assert [(n / "config.yaml").read_text() for n in names] == ["a", "b"]


def test_an_empty_folder_is_used_as_it_is(tmp_path):
    assert fresh_folder(tmp_path) is None


def test_a_file_in_the_way_is_an_error_with_the_flags_to_change(tmp_path):
    path = tmp_path / "run"
    path.write_text("x")
    with pytest.raises(ConfigError, match="--logdir"):
        keep_folder(path)
    assert path.read_text() == "x"


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("maskrcnn_coco.training.folders._probe", full)
    with pytest.raises(ConfigError, match="the disk is full"):
        fresh_folder(tmp_path / "run")
