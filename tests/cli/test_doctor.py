"""The doctor: tells a healthy checkpoint from a poisoned or torn one, and prints without failing."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import torch

from maskrcnn_coco.checkpoint import store
from maskrcnn_coco.cli import doctor
from maskrcnn_coco.config.settings import MODELS
from maskrcnn_coco.model.build import build_model
from maskrcnn_coco.records import to_json
from maskrcnn_coco.report.console import Console


def test_plain_data_that_is_json() -> None:
    health = doctor.examine("nowhere/checkpoints")
    assert json.loads(to_json(health))["versions"]["torch"].startswith(torch.__version__.partition("+")[0])
    assert health["checkpoints"] == {"folder": "nowhere/checkpoints", "files": [], "resume": None}
    cpu = health["devices"][0]
    native = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    assert cpu["bf16"] == ("native" if native else "emulated")
    assert cpu["amp_auto"] == ("bf16" if native else "fp32")  # never one that is emulated
    assert health["memory"]["total"] > health["memory"]["available"] > 0


def test_a_torn_checkpoint_is_found_and_named(tmp_path: Path) -> None:
    (tmp_path / "last.pth").write_bytes(b"PK\x03\x04 half a file")
    health = doctor.examine(tmp_path)
    (entry,) = health["checkpoints"]["files"]
    assert entry["ok"] is False
    assert health["checkpoints"]["resume"] is None
    assert any("last.pth" in p for p in health["problems"])
    assert any("can be used" in p for p in health["problems"])
    file = io.StringIO()
    doctor.print_health(health, Console(file=file))
    assert "cannot be used" in file.getvalue()
    assert "warning: last.pth" in file.getvalue()


def test_a_good_checkpoint_is_the_one_to_resume_from(tmp_path: Path) -> None:
    state = {
        "model": {"w": torch.ones(3)}, "optimizer": {}, "scaler": None, "guard": {}, "loop": {"step": 7, "epoch": 1},
        "config": {}, "classes": ["background", "x"], "environment": {},
    }  # fmt: skip
    store.save(tmp_path / "epoch_001.pth", state, serial=1)
    (tmp_path / "last.pth").write_bytes((tmp_path / "epoch_001.pth").read_bytes()[:-100])
    found = doctor.scan(tmp_path)
    assert [(f["file"], f["ok"]) for f in found["files"]] == [("epoch_001.pth", True), ("last.pth", False)]
    assert found["resume"] == "epoch_001.pth"
    assert found["files"][0]["step"] == 7


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-package-of-ours"))
    assert "no-such-package-of-ours is not installed" in doctor.examine(tmp_path)["problems"]


@pytest.mark.parametrize("name", MODELS)
def test_snapshot_estimates_are_right(name: str) -> None:
    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_model(name, 91).parameters())
    (entry,) = [s for s in doctor._snapshots() if s["model"] == name]
    assert entry["sgd"] == pytest.approx(parameters * 8, rel=0.01)
