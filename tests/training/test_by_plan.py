"""Rates that somebody sets before every step, for ever: going back alone would meet the next of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nanbench import ours
from nanbench.scene import STEPS, Live, Setup, clean_scene


def absurd(live: Live) -> None:
    """What a hook makes of the learning rates."""
    for group in live.optimizer.param_groups:
        group["lr"] = 30.0


def test_rates_of_a_hook_are_overruled_by_the_plan_s_from_the_first_incident_on(tmp_path: Path) -> None:
    scene = clean_scene(Setup(), 0)
    for step in range(8, STEPS):
        scene.at(step, absurd)
    outcome = ours.run(scene, tmp_path)
    assert outcome.finished and outcome.finite
    (incident,) = outcome.incidents
    assert (incident["cause"], incident["action"]) == ("LR_TOO_HIGH", "rollback")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    steps = [r for r in records if r["kind"] == "step"]
    assert [s["step"] for s in steps] == list(range(STEPS))
    for s in steps:
        assert s["lr"] == pytest.approx(scene.rates(s["step"])), "those of the steps that were taken back are gone"
    assert steps[-1]["loss"] < steps[0]["loss"]
    assert torch.load(tmp_path / "checkpoints" / "last.pth", weights_only=True)["loop"]["by_plan"] is True
