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


@pytest.mark.parametrize(("factor", "refused"), [(300.0, True), (4.0, False)])
def test_an_update_beside_the_plan_is_refused_before_it_throws_weights_away(
    tmp_path: Path, factor: float, refused: bool
) -> None:
    """No loss is extreme after it: with one picture a step the scores go back to their start, and stay there."""
    scene = clean_scene(Setup("adamw", model="retina", batch=1), 0)

    def faster(live: Live) -> None:
        for group in live.optimizer.param_groups:
            group["lr"] *= factor

    for step in range(16, STEPS):
        scene.at(step, faster)
    outcome = ours.run(scene, tmp_path)
    assert outcome.finished and outcome.finite
    seen = [(i["cause"], i["step"], i["lost_steps"], i["culprit"]["component"]) for i in outcome.incidents]
    assert seen == ([("LR_TOO_HIGH", 16, 0, None)] if refused else [])


def test_steps_that_were_taken_beside_the_plan_before_are_taken_back_too(tmp_path: Path) -> None:
    """The first of them is within what a loop of one's own may do."""
    scene = clean_scene(Setup("adamw", model="retina", batch=1), 0)
    for step in range(14, STEPS):

        def faster(live: Live, factor: float = 8.0 if step < 16 else 300.0) -> None:
            for group in live.optimizer.param_groups:
                group["lr"] *= factor

        scene.at(step, faster)
    outcome = ours.run(scene, tmp_path)
    (incident,) = outcome.incidents
    assert (incident["cause"], incident["step"]) == ("LR_TOO_HIGH", 16) and incident["lost_steps"] >= 2


def test_a_momentum_that_a_hook_sets_before_every_step_is_kept_low_within_each(tmp_path: Path) -> None:
    """A cycle of momentum with a slip of the decimal point: put right once, it is wrong again at the next step."""
    scene = clean_scene(Setup(), 0)
    scene.max_grad_norm = 0.0
    for step in range(8, STEPS):
        scene.at(step, lambda live: [g.update(momentum=9.5) for g in live.optimizer.param_groups] and None)
    outcome = ours.run(scene, tmp_path)
    assert outcome.finished and outcome.finite
    assert [(i["cause"], i["action"]) for i in outcome.incidents] == [("LR_TOO_HIGH", "lower_lr")]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [r["loss"] for r in records if r["kind"] == "step"]
    assert losses[-1] < losses[0]
    loop = torch.load(tmp_path / "checkpoints" / "last.pth", weights_only=True)["loop"]
    assert (loop["momentum"], loop["lr_factors"]) == (0.9, dict.fromkeys(loop["lr_factors"], 1.0))
