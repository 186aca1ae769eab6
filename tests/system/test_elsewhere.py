"""What other systems lack, taken away here: no ``fcntl``, no ``resource``, no POSIX flags, no folders that open."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import warnings
from pathlib import Path

import pytest

from maskrcnn_coco.checkpoint.lock import move_lock, require_free, run_lock
from maskrcnn_coco.errors import CheckpointError
from maskrcnn_coco.system import file_locks, files
from maskrcnn_coco.system.processes import alive

ELSEWHERE = """
import os, signal, sys
for name in ("fcntl", "resource", "pwd", "grp", "termios", "msvcrt"):
    sys.modules[name] = None
for name in ("O_CLOEXEC", "O_NONBLOCK", "O_DIRECTORY", "O_NOFOLLOW", "pread", "pwrite", "sysconf", "getuid", "geteuid",
             "getloadavg", "posix_fadvise", "sched_getaffinity", "fork", "register_at_fork"):
    if hasattr(os, name):
        delattr(os, name)
os.O_BINARY = 0
for name in ("SIGHUP", "SIGCHLD", "SIGBUS", "SIGUSR1"):
    delattr(signal, name)
"""
"""As far as Linux can play it. torch and numpy are imported before: they bring files of their own for each system."""


def elsewhere(code: str, folder: Path) -> str:
    """What ``code`` prints in a process that has imported torch and then lost what Windows lacks."""
    text = (
        "import multiprocessing, tempfile, torch, torchvision, numpy, PIL.Image\n" + ELSEWHERE + textwrap.dedent(code)
    )
    env = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=folder, env=env, capture_output=True, text=True, encoding="utf-8", timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_short_run_and_a_prediction_need_nothing_of_posix(tmp_path: Path):
    said = elsewhere(
        """
        from maskrcnn_coco.cli import main
        run = "train --demo --max-steps 1 --workers 0 --json --checkpoint-every 1 --box-detections-per-image 5"
        assert main(run.split()) == 0
        from maskrcnn_coco.checkpoint.store import load
        assert load("checkpoints/last.pth")["loop"]["step"] == 1
        PIL.Image.new("RGB", (96, 96), "red").save("photo.png")
        assert main(["predict", "checkpoints/last.pth", "photo.png"]) == 0
        assert main(["doctor"]) == 0
        """,
        tmp_path,
    )
    assert json.loads(said.splitlines()[0])["steps"] == 1
    assert (tmp_path / "predictions" / "photo.png").is_file()


@pytest.fixture(params=["record locks", "filelock"])
def system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if request.param == "filelock":
        monkeypatch.setattr(file_locks, "fcntl", None)
    elif file_locks.fcntl is None:
        pytest.skip("no record locks here")
    return request.param


HOLD = """
import sys
from maskrcnn_coco.system import file_locks
if sys.argv[2] == "filelock":
    file_locks.fcntl = None
from maskrcnn_coco.checkpoint.lock import run_lock
with run_lock(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_named_and_its_death_frees_the_folder(system: str, tmp_path: Path):
    folder = tmp_path / "run"
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), system], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdin is not None
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another run is writing") as e, run_lock(folder):
            pass
        assert f"process {other.pid} on " in str(e.value.got)
        with pytest.raises(CheckpointError):
            require_free(folder)
        with pytest.raises(CheckpointError), move_lock(folder):
            pass
    finally:
        other.kill()
        other.wait()
        other.stdin.close()
        other.stdout.close()
    with run_lock(folder):
        assert json.loads((folder / ".lock").read_text())["pid"] == os.getpid()
    assert json.loads((folder / ".lock").read_text()) == {}
    require_free(folder)


def test_a_folder_is_renamed_under_its_lock(system: str, tmp_path: Path):
    folder = tmp_path / "run"
    with run_lock(folder):
        pass
    with move_lock(folder):
        folder.rename(tmp_path / "older")
    with run_lock(folder), pytest.raises(CheckpointError), run_lock(folder):
        pass


def test_no_folder_is_synced_where_folders_do_not_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delattr(os, "O_DIRECTORY", raising=False)
    files.write_bytes(tmp_path / "f", b"x\r\n\x1a")
    assert (tmp_path / "f").read_bytes() == b"x\r\n\x1a"


def test_a_file_that_a_scanner_holds_is_replaced_when_it_lets_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    replace, refused = os.replace, [PermissionError(13, "used by another process")] * 3

    def busy(source: object, target: object) -> None:
        if refused:
            raise refused.pop()
        replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(files.os, "replace", busy)
    with pytest.raises(PermissionError):
        files.write_bytes(tmp_path / "f", b"1")  # elsewhere a refusal is one
    monkeypatch.setattr(files, "_SCANNED", True)
    files.write_bytes(tmp_path / "f", b"2")
    assert (tmp_path / "f").read_bytes() == b"2"
    refused[:] = [PermissionError(13, "used by another process")] * 1000
    monkeypatch.setattr(files, "PATIENCE", 0.1)
    with pytest.raises(PermissionError):
        files.write_bytes(tmp_path / "f", b"3")
    assert os.listdir(tmp_path) == ["f"]


def test_the_cache_is_where_the_system_has_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(sys, "platform", "linux")
    assert files.cache_folder("x") == tmp_path / ".cache" / "maskrcnn_coco" / "x"
    import platformdirs

    monkeypatch.setattr(platformdirs, "user_cache_path", lambda: tmp_path / "Library" / "Caches")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert files.cache_folder("x") == tmp_path / "Library" / "Caches" / "maskrcnn_coco" / "x"


def test_a_home_that_only_root_may_write_to_is_no_place_for_a_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not" / "there"))
    assert files.cache_folder("x") == tmp_path / "not" / "there" / "maskrcnn_coco" / "x"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "not" not in files.cache_folder("x").parts


def test_processes_that_live_and_that_ended():
    assert alive(os.getpid())
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    assert not alive(ended.pid)


def test_ctrl_break_is_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from maskrcnn_coco.training import signals

    monkeypatch.setattr(signals, "BREAK", 21)
    with signals.Interrupts() as interrupts:
        interrupts._handle(21, None)
        assert interrupts.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            interrupts._handle(21, None)
    assert "Ctrl-C" in capsys.readouterr().err


def test_filelock_says_nothing_on_its_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_locks, "fcntl", None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with run_lock(tmp_path / "run"):
            pass
