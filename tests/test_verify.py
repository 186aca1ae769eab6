"""`verify` and `diagnose` on a run that diverged: the fix holds, no fix does not, the case replays from its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from runs import incidents, run, small_model

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.postmortem import diagnose_checkpoint, diagnose_path, replay_case
from maskrcnn_coco.verify import verify_run


@pytest.fixture(scope="module")
def diverged(tiny_shapes, tmp_path_factory) -> Path:
    """A run whose heads learn fifty times too fast, unclipped, and which the guard brought to its end."""
    out = tmp_path_factory.mktemp("diverged")
    result = run(tiny_shapes.root, out, epochs=2, lr=5e-3, head_lr_multiplier=20.0, max_grad_norm=0.0, warmup_steps=0)
    assert (result.status, result.finite) == ("finished", True)
    return out


@pytest.mark.slow
def test_the_run_names_its_learning_rate_and_a_head(diverged):
    first = incidents(diverged)[0]
    assert first["cause"] == "LR_TOO_HIGH"
    assert first["culprit"]["component"] in ("box_head", "mask_head")
    assert first["action"]["kind"] == "lower_lr"


@pytest.mark.slow
def test_the_case_replays_from_its_file_alone(diverged):
    findings = replay_case(diverged / "run" / "incidents" / "0001.pt")
    assert findings[0].cause == "LR_TOO_HIGH"
    # Both heads learn too fast here; which one is named first may turn on the last bit of another CPU.
    assert findings[0].culprit.component in ("box_head", "mask_head")


@pytest.mark.slow
def test_a_fix_that_cures_it_holds(diverged, capsys):
    changes = {"lr": 2e-3, "head_lr_multiplier": 1.0, "max_grad_norm": 10.0, "warmup_steps": 2}
    assert verify_run(diverged / "run", changes=changes, steps=12, json_mode=True, model=small_model) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["holds"] is True
    assert {c["name"] for c in out["checks"]} >= {"all values finite", "losses falling", "no spikes", "weights move"}


@pytest.mark.slow
def test_no_fix_does_not_hold(diverged, capsys):
    assert verify_run(diverged / "run", changes={}, steps=6, json_mode=True, model=small_model) == 4
    out = json.loads(capsys.readouterr().out)
    assert any(c["name"].startswith("incident 0001") and not c["ok"] for c in out["checks"])


@pytest.mark.slow
def test_a_learning_rate_so_low_that_nothing_moves_fails_by_name(diverged, capsys):
    changes = {"lr": 1e-12, "max_grad_norm": 10.0, "warmup_steps": 0}
    assert verify_run(diverged / "run", changes=changes, steps=10, json_mode=True, model=small_model) == 4
    failed = {c["name"] for c in json.loads(capsys.readouterr().out)["checks"] if not c["ok"]}
    assert "weights move" in failed


def test_verify_of_something_else_is_exit_3(tmp_path):
    with pytest.raises(DataError, match="not the folder of a run"):
        verify_run(tmp_path, changes={})


@pytest.mark.slow
def test_diagnose_prints_json_for_a_run_and_finds_a_healthy_checkpoint_healthy(diverged, capsys):
    assert diagnose_checkpoint(diverged / "checkpoints" / "last.pth") == []
    (diverged / "run" / "incidents" / "0001.pt").rename(diverged / "run" / "incidents" / "0001.kept")
    try:
        assert diagnose_path(diverged / "run" / "incidents" / "0001.json", json_mode=True) == 0
    finally:
        (diverged / "run" / "incidents" / "0001.kept").rename(diverged / "run" / "incidents" / "0001.pt")
    out = json.loads(capsys.readouterr().out)
    assert out["findings"][0]["cause"] == "LR_TOO_HIGH"
    assert out["replayed"] is False


def test_a_poisoned_checkpoint_is_named(tmp_path):
    import torch

    state = small_model().state_dict()
    state["roi_heads.box_predictor.bbox_pred.weight"][0, 0] = float("nan")
    torch.save(state, tmp_path / "poisoned.pth")
    (finding,) = diagnose_checkpoint(tmp_path / "poisoned.pth")[:1]
    assert finding.cause == "POISONED_STATE"
    assert "poisoned.pth" in (finding.culprit.checkpoint or "")
