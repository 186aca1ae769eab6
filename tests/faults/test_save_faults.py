"""Kills, full and failing disks at every I/O call of a save, and power loss: a slice; the whole is ``make faults``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from maskrcnn_coco.system import files

HERE = Path(__file__).resolve().parent


def test_a_slice_of_all_faults_is_survived(shim: Path, fast_folder: Path, child_environment: dict[str, str]):
    done = subprocess.run(
        [sys.executable, HERE / "saving.py", fast_folder, "--every", "47"],
        env={**child_environment, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["points"] >= 60
    assert all(counts for counts in report["counts"].values()), "a scenario was not tried"
    assert report["failures"] == []


def test_no_state_after_a_power_loss_is_without_a_checkpoint(fast_folder: Path, monkeypatch: pytest.MonkeyPatch):
    import power

    monkeypatch.setattr(files, "_BUFFER", 4096)
    counts, failures = power.sweep(fast_folder)
    assert sum(counts.values()) >= 100
    assert failures == []


@pytest.mark.parametrize("broken", ["file", "folder"])
def test_the_power_sweep_notices_a_missing_fsync(broken: str, fast_folder: Path, monkeypatch: pytest.MonkeyPatch):
    import power

    if broken == "file":
        monkeypatch.setattr(files.Sink, "sync", files.Sink.flush)
    else:
        monkeypatch.setattr(files, "sync_folder", lambda folder: None)
    _, failures = power.sweep(fast_folder, ["last over last"])
    assert failures


def test_the_fault_sweep_notices_a_save_in_place(shim: Path, fast_folder: Path, child_environment: dict[str, str]):
    broken = (
        "import sys, runpy; from maskrcnn_coco.system import files\n"
        "def in_place(path, write, **rest):\n"
        "    path.unlink(missing_ok=True)\n"
        "    files._write_new(path, write)\n"
        "files.write_atomically = in_place\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", broken, HERE / "saving.py", fast_folder, "--every", "101"],
        env={**child_environment, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["failures"]


def test_the_shim_counts_calls(shim: Path, tmp_path: Path, child_environment: dict[str, str]):
    code = (
        "import ctypes, os, sys; s = ctypes.CDLL(os.environ['LD_PRELOAD']); s.shim_kinds.restype = ctypes.c_char_p\n"
        "s.shim_arm(sys.argv[1].encode(), 0, 0, 0, 0)\n"
        "fd = os.open(sys.argv[1] + '/f', os.O_CREAT | os.O_WRONLY); os.write(fd, b'x'); os.fsync(fd); os.close(fd)\n"
        "os.replace(sys.argv[1] + '/f', sys.argv[1] + '/g'); os.link(sys.argv[1] + '/g', sys.argv[1] + '/h')\n"
        "os.unlink(sys.argv[1] + '/h'); print(s.shim_kinds()[:s.shim_calls()].decode())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**child_environment, "LD_PRELOAD": str(shim)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "owscRlu"
    assert os.listdir(tmp_path) == ["g"]
