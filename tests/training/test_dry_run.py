"""A dry run says that all is fine only where nothing was said above."""

from __future__ import annotations

import json
import shutil

import pytest
from runs import config, small_model

from maskrcnn_coco import train


def said(data, tmp_path, capsys: pytest.CaptureFixture[str]) -> str:
    train(config(data, tmp_path), model=small_model(), dry_run=True)
    return "".join(capsys.readouterr())


def test_nothing_found_is_fine(tiny_shapes, tmp_path, capsys):
    out = said(tiny_shapes.root, tmp_path, capsys)
    assert "warning" not in out and "data, model and folders are fine; nothing was trained" in out


def test_a_warning_of_the_audit_is_not_fine(tiny_shapes, tmp_path, capsys):
    root = tmp_path / "data"
    shutil.copytree(tiny_shapes.root, root)
    path = root / tiny_shapes.train.relative_to(tiny_shapes.root)
    coco = json.loads(path.read_text())
    coco["annotations"].append(coco["annotations"][0] | {"id": 10**6})  # the same object twice
    path.write_text(json.dumps(coco))
    out = said(root, tmp_path, capsys)
    assert "warning: " in out
    assert "dry run: 1 finding above: look at them first" in out and "are fine" not in out
