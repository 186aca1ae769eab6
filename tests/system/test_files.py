"""Atomic files and the run lock."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn_coco.checkpoint.lock import require_free, run_lock
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import files
from maskrcnn_coco.system.files import Sink, link_atomically, remove_leftovers, write_atomically


def put(data: bytes):
    return lambda sink: sink.write(data)


def test_a_file_is_replaced_whole(tmp_path: Path):
    path = tmp_path / "new" / "f"
    write_atomically(path, put(b"one"))
    write_atomically(path, put(b"two"))
    assert path.read_bytes() == b"two"
    assert os.listdir(path.parent) == ["f"]


def test_large_and_small_writes_keep_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(files, "_BUFFER", 100)
    parts = [os.urandom(n) for n in (1, 99, 100, 3, 250, 0, 7)]

    def write(sink: Sink) -> None:
        for part in parts:
            assert sink.write(part) == len(part)

    write_atomically(tmp_path / "f", write)
    assert (tmp_path / "f").read_bytes() == b"".join(parts)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "f"
    path.write_bytes(b"old")
    calls = []

    def fails(*arguments: object) -> int:
        calls.append(arguments)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fails)
        with pytest.raises(OSError, match="Input/output"):
            write_atomically(path, put(b"new"))
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]
    assert len(calls) == 1, "a failed fsync must not be tried again"


def test_what_does_not_verify_takes_no_place(tmp_path: Path):
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def verify(temporary: Path) -> None:
        assert temporary.read_bytes() == b"new"
        raise OSError("not what was written")

    with pytest.raises(OSError, match="not what was written"):
        write_atomically(path, put(b"new"), verify=verify)
    assert path.read_bytes() == b"old"


def test_the_replaced_file_can_keep_a_name(tmp_path: Path):
    path, kept = tmp_path / "f", tmp_path / "g"
    for data in (b"1", b"2", b"3"):
        write_atomically(path, put(data), keep_old_as=kept)
    assert (path.read_bytes(), kept.read_bytes()) == (b"3", b"2")


def test_a_second_name_is_a_hard_link_and_replaces(tmp_path: Path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"new")
    b.write_bytes(b"old")
    link_atomically(a, b)
    link_atomically(a, b)
    assert b.samefile(a)
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EXDEV, errno.EMLINK])
def test_without_hard_links_it_is_a_copy(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def no_links(*arguments: object) -> None:
        raise OSError(number, "no links")

    monkeypatch.setattr(os, "link", no_links)
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"new")
    link_atomically(a, b)
    assert b.read_bytes() == b"new"
    assert not b.samefile(a)


def test_only_our_leftovers_are_removed(tmp_path: Path):
    for name in (".last.pth.12.3.tmp", "notes.tmp", ".hidden.tmp", "last.pth"):
        (tmp_path / name).write_bytes(b"x")
    assert remove_leftovers(tmp_path) == [".last.pth.12.3.tmp"]
    assert sorted(os.listdir(tmp_path)) == [".hidden.tmp", "last.pth", "notes.tmp"]


HOLD = (
    "import sys, time; from maskrcnn_coco.checkpoint.lock import run_lock\n"
    "with run_lock(sys.argv[1]):\n    print('held', flush=True); time.sleep(60)"
)


def test_a_second_run_is_refused_and_a_killed_one_gives_way(tmp_path: Path):
    root = str(Path(__file__).resolve().parents[2])
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        env={**os.environ, "PYTHONPATH": root},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(CheckpointError, match=f"process {process.pid}"), run_lock(tmp_path):
        pass
    with pytest.raises(CheckpointError, match="another run"):
        require_free(tmp_path)
    process.kill()
    process.communicate()
    (tmp_path / ".last.pth.1.1.tmp").write_bytes(b"half")
    with run_lock(tmp_path):
        assert os.listdir(tmp_path) == [".lock"]
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    require_free(tmp_path)


def test_one_process_cannot_hold_a_folder_twice(tmp_path: Path):
    with run_lock(tmp_path / "a"):
        with pytest.raises(CheckpointError), run_lock(tmp_path / "a"):
            pass
        with pytest.raises(CheckpointError):
            require_free(tmp_path / "a")
        with run_lock(tmp_path / "b"):
            pass
    with run_lock(tmp_path / "a"):
        pass


def test_a_free_folder_needs_no_lock_file(tmp_path: Path):
    require_free(tmp_path / "absent")
    assert not (tmp_path / "absent").exists()


FULL = 51
"""macOS's number of F_FULLFSYNC."""


class AppleFcntl:
    """fcntl as macOS has it: notes what it is asked, or refuses."""

    F_FULLFSYNC = FULL

    def __init__(self, refuses: int | None = None) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.refuses = refuses

    def fcntl(self, fd: int, what: int) -> int:
        self.asked.append((what, os.path.isdir(f"/proc/self/fd/{fd}")))
        if self.refuses is not None:
            raise OSError(self.refuses, os.strerror(self.refuses))
        return 0


def test_macos_is_asked_to_empty_the_drives_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    apple, plain = AppleFcntl(), []
    monkeypatch.setattr(files, "fcntl", apple)
    monkeypatch.setattr(os, "fsync", plain.append)
    write_atomically(tmp_path / "f", put(b"new"))
    assert apple.asked == [(FULL, False), (FULL, True)], "the file before it gets its name, then the folder"
    assert plain == []


@pytest.mark.parametrize("code", [errno.ENOTSUP, errno.ENOTTY, errno.EINVAL])
def test_a_share_that_knows_no_full_sync_gets_a_plain_one(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    plain: list[int] = []
    monkeypatch.setattr(files, "fcntl", AppleFcntl(code))
    monkeypatch.setattr(os, "fsync", plain.append)
    write_atomically(tmp_path / "f", put(b"new"))
    assert len(plain) == 2


def test_a_full_sync_that_fails_is_a_failing_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "f").write_bytes(b"old")
    apple, plain = AppleFcntl(errno.EIO), []
    monkeypatch.setattr(files, "fcntl", apple)
    monkeypatch.setattr(os, "fsync", plain.append)
    with pytest.raises(OSError, match="Input/output"):
        write_atomically(tmp_path / "f", put(b"new"))
    assert (tmp_path / "f").read_bytes() == b"old"
    assert len(apple.asked) == 1
    assert plain == [], "after a failed sync a plain one could report success"


def test_the_lines_of_a_run_are_synced_so_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from maskrcnn_coco.report.metrics_file import truncate

    apple = AppleFcntl()
    monkeypatch.setattr(files, "fcntl", apple)
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind":"step","step":1,"loss":1.0}\n{"kind":"step","step":2,"loss":1.0}\n')
    truncate(path, 2, None)
    assert apple.asked == [(FULL, False)]
    assert path.read_text().count("\n") == 1
