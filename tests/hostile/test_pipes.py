"""A pipe in the place of a file that somebody else may have written: told or passed over, never waited for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.cli.diagnose import _was_a_checkpoint
from maskrcnn_coco.data.fingerprint import _of_file
from maskrcnn_coco.data.layouts import find_data
from maskrcnn_coco.data.splits import groups_of
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.inference.folder import LIST, _listed
from maskrcnn_coco.model.foreign_files import check_kind
from maskrcnn_coco.report.metrics_file import lines_from_end, read_metrics
from maskrcnn_coco.report.run_files import picture
from maskrcnn_coco.training.folders import logs_of, require_run

PIPES = [
    pytest.param("x.json", lambda p: find_data(p.parent), DataError, id="annotations"),
    pytest.param("x.csv", lambda p: groups_of(Names, str(p)), DataError, id="groups"),
    pytest.param("x.png", lambda p: _of_file(p, 1), None, id="image"),
    pytest.param("x.pth", check_kind, OSError, id="weights"),
    pytest.param("x.pth", _was_a_checkpoint, OSError, id="checkpoint"),
    pytest.param("metrics.jsonl", read_metrics, OSError, id="records"),
    pytest.param("metrics.jsonl", lambda p: list(lines_from_end(p)), OSError, id="records from the end"),
    pytest.param("config.yaml", lambda p: logs_of(p.parent, p.parent / "checkpoints"), None, id="settings"),
    pytest.param(LIST, lambda p: _listed(p.parent), None, id="list of predictions"),
    pytest.param("x.jpg", picture, None, id="picture of the report"),
]


class Names:
    """As much of a table as groups are read from."""

    names = type("Decoded", (), {"decoded": staticmethod(lambda: ["a.png"])})


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("name", "read", "error"), PIPES)
def test_a_pipe_is_never_waited_for(name: str, read: Callable[[Path], object], error: type | None, tmp_path: Path):
    os.mkfifo(tmp_path / name)
    if error is None:
        read(tmp_path / name)
        return
    with pytest.raises(error):
        read(tmp_path / name)


@pytest.mark.timeout(20)
def test_a_folder_whose_settings_are_a_pipe_is_no_run(tmp_path: Path):
    os.mkfifo(tmp_path / "config.yaml")
    with pytest.raises(Exception, match="was not left by a run"):
        require_run(tmp_path)


@pytest.mark.timeout(30)
def test_check_of_a_set_with_pipes_in_it_ends(tiny_shapes, tmp_path: Path, capfd):
    shutil.copytree(tiny_shapes.root, tmp_path / "set")
    os.mkfifo(tmp_path / "set" / "x.json")
    os.mkfifo(tmp_path / "set" / "train" / "x.json")
    assert main(["check", "--data", str(tmp_path / "set"), "--no-images"]) in (0, 3)


def test_links_in_a_circle_are_no_fault_of_ours(tmp_path: Path, capfd):
    os.symlink("loop", tmp_path / "loop")
    assert main(["doctor", "--checkpoint-dir", str(tmp_path / "loop")]) in (0, 2)
    assert "report the traceback" not in capfd.readouterr().err
