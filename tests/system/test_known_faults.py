"""Versions that are known to be wrong on a device are named, with the version to take."""

from __future__ import annotations

import importlib.metadata
import json
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.ops import RoIAlign

from maskrcnn_coco import Guard, attach
from maskrcnn_coco.cli import doctor
from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules import backend
from maskrcnn_coco.errors import GuardWarning
from maskrcnn_coco.replay.outcome import Outcome
from maskrcnn_coco.system import backends, known_faults
from maskrcnn_coco.system.known_faults import FAULTS, KnownFault


@pytest.fixture
def torchvision(monkeypatch: pytest.MonkeyPatch):
    """Pretends that another version of torchvision is installed."""

    def pretend(version: str) -> None:
        monkeypatch.setattr(importlib.metadata, "version", {"torchvision": version}.__getitem__)

    return pretend


@pytest.fixture
def wrong_here(monkeypatch: pytest.MonkeyPatch):
    """A fault as that of Apple GPUs, on the device at hand."""
    monkeypatch.setattr(known_faults, "FAULTS", (KnownFault("cpu", "torchvision", (999,), "RoIAlign is wrong", "x#1"),))


@pytest.mark.parametrize("version", ["0.25.0", "0.26.0+cpu", "0.28.1", "0.28.0a0+gitabc", "0.9"])
def test_an_old_torchvision_is_named_for_apple_gpus(version: str, torchvision):
    torchvision(version)
    (said,) = known_faults.known_faults("mps")
    assert f"torchvision {version} is wrong on mps" in said
    assert "0.29 or newer" in said
    assert known_faults.known_faults("cpu") == known_faults.known_faults("cuda") == []


@pytest.mark.parametrize("version", ["0.29.0", "0.29.0.dev20260721", "0.30", "1.0.0", "unknown"])
def test_a_mended_or_unreadable_version_is_not(version: str, torchvision):
    torchvision(version)
    assert known_faults.known_faults("mps") == []


def test_a_package_that_is_not_there_is_not(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(known_faults, "FAULTS", (KnownFault("mps", "no-such-package-here", (1,), "x", "y"),))
    assert known_faults.known_faults("mps") == []


@pytest.mark.parametrize(("version", "known"), [("0.26.0", True), ("0.29.1", False)])
def test_auto_says_that_it_passes_over_an_apple_gpu(
    version: str, known: bool, torchvision, monkeypatch: pytest.MonkeyPatch
):
    torchvision(version)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backends.passed_over("auto") is None
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    said = backends.passed_over("auto")
    assert said is not None
    assert "takes the CPU" in said
    assert "--device mps uses it" in said
    assert ("0.29 or newer" in said) == known
    assert backends.passed_over("cpu") is backends.passed_over("mps") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backends.passed_over("auto") is None


def test_doctor_lists_it_among_its_problems(wrong_here, tmp_path: Path):
    assert any("RoIAlign is wrong (x#1)" in p for p in doctor.examine(tmp_path)["problems"])


class Detects(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.pool = nn.Conv2d(3, 4, 1), RoIAlign(2, 1.0, 2)


@pytest.mark.parametrize("guard", [attach, Guard])
def test_a_guard_says_it_of_a_detector(guard, wrong_here):
    model = Detects()
    with pytest.warns(GuardWarning, match="is wrong on cpu"):
        guard(model, torch.optim.SGD(model.parameters(), 0.1))


@pytest.mark.parametrize("guard", [attach, Guard])
def test_a_guard_says_nothing_of_other_models_or_machines(guard, wrong_here, monkeypatch: pytest.MonkeyPatch):
    plain, model = nn.Linear(2, 2), Detects()
    with warnings.catch_warnings():
        warnings.simplefilter("error", GuardWarning)
        guard(plain, torch.optim.SGD(plain.parameters(), 0.1))
        monkeypatch.setattr(known_faults, "FAULTS", FAULTS)
        guard(model, torch.optim.SGD(model.parameters(), 0.1))


def test_a_proved_fault_of_the_backend_names_it():
    path = Path(__file__).parents[1] / "rules_cases" / "BACKEND" / "facts.json"
    import msgspec

    facts = msgspec.convert(json.loads(path.read_text(encoding="utf-8")), type=Facts, strict=False)
    assert facts.outcomes
    assert all(isinstance(o, Outcome) for o in facts.outcomes.values())
    facts.known_faults = ["torchvision 0.26.0 is wrong on mps"]
    finding = backend.judge(facts)
    assert finding is not None
    assert any(e.outcome == "torchvision 0.26.0 is wrong on mps" and e.supports == "BACKEND" for e in finding.evidence)


def test_an_epoch_of_ones_own_script_says_it_once(wrong_here, capsys: pytest.CaptureFixture[str]):
    from maskrcnn_coco.guard.train_one_epoch import _guard_of

    model = Detects()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        _guard_of(model, optimizer, None, 10.0)
    assert capsys.readouterr().err.count("RoIAlign is wrong") == 1


def test_a_run_says_both_before_its_first_step(
    wrong_here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from maskrcnn_coco.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert main(["train", "--demo", "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "RoIAlign is wrong (x#1)" in said
    assert "passes over this machine's GPU (mps)" in said
