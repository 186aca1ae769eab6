"""Run folders: a new run never overwrites an old one; unusable folders are named."""

import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.evaluation.training_sheet import SHEET
from maskrcnn_coco.training.folders import claim, fresh_folder, keep_folder, require_run


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


def test_what_a_dry_run_leaves_is_in_nobodys_way(tmp_path):
    (tmp_path / SHEET).write_bytes(b"a picture")

    require_run(tmp_path)

    assert fresh_folder(tmp_path) is None
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not left by a run"):
        require_run(tmp_path)


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


def test_a_folder_that_is_no_run_s_is_never_moved(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "annotations.json").write_text("{}")
    (data / "config.yaml").write_text("my: own")
    with ExitStack() as lock, pytest.raises(ConfigError, match="was not left by a run"):
        claim(tmp_path / "checkpoints", data, lock, resuming=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
    (tmp_path / "git").mkdir()
    (tmp_path / "git" / ".gitignore").write_text("*")
    with ExitStack() as lock:
        assert claim(tmp_path / "checkpoints", tmp_path / "git", lock, resuming=False) == []


def test_two_runs_never_share_one_of_their_folders(tmp_path):
    with ExitStack() as first, ExitStack() as second:
        claim(tmp_path / "a", tmp_path / "logs", first, resuming=False)
        (tmp_path / "logs" / "config.yaml").write_text(f"checkpoint_dir: {tmp_path / 'a'}\n")
        for resuming in (False, True):
            with pytest.raises(CheckpointError, match="another run"):
                claim(tmp_path / "b", tmp_path / "logs", second, resuming=resuming)
        assert (tmp_path / "logs" / "config.yaml").exists()


def test_logs_of_a_run_with_other_checkpoints_are_not_mixed_into(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "config.yaml").write_text(f"checkpoint_dir: {tmp_path / 'a'}\n")
    with ExitStack() as lock:
        ((old, new),) = claim(tmp_path / "b", tmp_path / "logs", lock, resuming=True)
        assert old == tmp_path / "logs" and (new / "config.yaml").exists()


def test_a_kill_between_the_two_renames_leaves_no_checkpoint_of_the_older_run(tmp_path, monkeypatch):
    for name in ("checkpoints", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / ".lock").write_text("{}")
    (tmp_path / "checkpoints" / "last.pth").write_text("old")
    (tmp_path / "run" / "metrics.jsonl").write_text("old")
    real = Path.rename
    moves = []

    def once(self, target):
        if moves:
            raise KeyboardInterrupt
        moves.append(self)
        return real(self, target)

    with monkeypatch.context() as patch, ExitStack() as lock, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", once)
        claim(tmp_path / "checkpoints", tmp_path / "run", lock, resuming=False)
    assert not (tmp_path / "checkpoints" / "last.pth").exists()
    with ExitStack() as lock:
        claim(tmp_path / "checkpoints", tmp_path / "run", lock, resuming=False)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert len(list(tmp_path.glob("*_20*"))) == 2


CLAIM = (
    "import sys, time, pathlib\nfrom contextlib import ExitStack\nfrom maskrcnn_coco.errors import MaskRCNNError\n"
    "from maskrcnn_coco.training.folders import claim\nroot = pathlib.Path(sys.argv[1])\n"
    "(root / f'ready{sys.argv[2]}').touch()\n"
    "while not (root / 'go').exists(): time.sleep(0.001)\n"
    "with ExitStack() as lock:\n try:\n  claim(root / 'checkpoints', root / 'run', lock, resuming=False)\n"
    " except MaskRCNNError as e:\n  sys.exit(e.exit_code)\n print('held', flush=True)\n"
    " while not (root / 'end').exists(): time.sleep(0.001)\n"
)


def wait_until(true, seconds=60.0):
    """Until ``true()``, or the time is up: what is asserted after it says what is missing."""
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.005)


def test_of_many_starts_at_once_one_holds_the_folders(tmp_path):
    for number in range(4):
        root = tmp_path / str(number)
        for name in ("checkpoints", "run"):
            (root / name).mkdir(parents=True)
            (root / name / ".lock").write_text("{}")
            (root / name / "metrics.jsonl").write_text("old")
        starts = [
            subprocess.Popen(
                [sys.executable, "-c", CLAIM, root, str(n)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            for n in range(4)
        ]
        # Who comes after the holder's end may hold, rightly: the end waits until the others have been turned away.
        wait_until(lambda root=root: len(list(root.glob("ready*"))) == 4)
        (root / "go").touch()
        wait_until(lambda starts=starts: sum(p.poll() is not None for p in starts) >= 3, 20)
        (root / "end").touch()
        told = [p.communicate(timeout=60) for p in starts]
        assert sum(out == b"held\n" for out, _ in told) <= 1, told
        assert {p.returncode for p in starts} <= {0, 2, 5}, told


def test_a_folder_that_another_start_renames_under_the_probe_is_made_again(tmp_path, monkeypatch):
    real, moves = Path.write_bytes, []

    def renamed_before(self, data):
        if self.name.startswith(".probe-") and not moves:
            moves.append(self.parent.rename(self.parent.with_name("older")))
        return real(self, data)

    monkeypatch.setattr(Path, "write_bytes", renamed_before)
    with ExitStack() as lock:
        claim(tmp_path / "checkpoints", tmp_path / "run", lock, resuming=False)
    assert moves and (tmp_path / "checkpoints").is_dir()
