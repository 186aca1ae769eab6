"""What an optimizer is set to is this run's own settings, not those of the file it goes on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nanbench import ours
from nanbench.scene import Scene, Setup, clean_scene
from nanbench.tiny import sample
from runs import config, incidents, tiny_model

from maskrcnn_coco import train
from maskrcnn_coco.checkpoint.store import load


def pictures() -> list[Any]:
    return [sample(1000 + i) for i in range(12)]


@pytest.mark.parametrize("before", [0.9, 0.0])
def test_a_flag_given_at_a_resume_reaches_the_optimizer(tmp_path: Path, before: float) -> None:
    """Weight decay and momentum are in the file too: there they are those of before."""
    given = {"epochs": 2, "lr": 0.01, "num_classes": 4, "momentum": before}
    train(config(None, tmp_path, **given), model=tiny_model(), train_data=pictures(), stop_after=2, quiet=True)
    last = tmp_path / "checkpoints" / "last.pth"
    changed = {"momentum": 0.5, "weight_decay": 0.02, "resume": str(last)}
    train(config(None, tmp_path, **(given | changed)), model=tiny_model(), train_data=pictures(), quiet=True)
    held = load(last)["optimizer"]
    groups, states = held["param_groups"], held["state"].values()
    assert all(state["momentum_buffer"] is not None for state in states)
    assert {g["momentum"] for g in groups} == {0.5} and max(g["weight_decay"] for g in groups) == 0.02
    assert incidents(tmp_path) == [], "settings of a run before are no fault"


def resumed_with(folder: Path, optimizer: str, **settings: Any) -> tuple[Scene, Any]:
    scene = clean_scene(Setup(optimizer), 0)

    def change(state: dict[str, Any]) -> None:
        for group in state["optimizer"]["param_groups"]:
            group.update(settings)

    scene.on_resume, scene.backups_too = change, True
    return scene, ours.run(scene, folder)


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("sgd", {"momentum": 9.0}),
        ("sgd", {"weight_decay": 1e4}),
        ("adamw", {"betas": (0.9, 1.0)}),
        ("adamw", {"eps": -1.0}),
    ],
)
def test_a_setting_that_nothing_learns_with_is_the_file_s_fault_and_costs_nothing(
    tmp_path: Path, optimizer: str, settings: dict[str, Any]
) -> None:
    _, outcome = resumed_with(tmp_path, optimizer, **settings)
    assert outcome.finished and outcome.finite
    (incident,) = outcome.incidents
    assert (incident["cause"], incident["lost_steps"], incident["step"]) == ("POISONED_STATE", 0, 12)
    assert incident["culprit"]["checkpoint"] and next(iter(settings)) in incident["evidence"][0]


def test_an_optimizer_whose_memory_alone_is_bad_begins_anew_where_no_older_file_is(tmp_path: Path) -> None:
    """Its steps are counted from -1: the first update divides by nothing, with any weights."""
    scene = clean_scene(Setup("adamw", batch=2), 0)

    def change(state: dict[str, Any]) -> None:
        for entry in state["optimizer"]["state"].values():
            entry["step"] = torch.full_like(entry["step"], -1.0)

    scene.on_resume = change
    outcome = ours.run(scene, tmp_path)
    assert outcome.finished and outcome.finite
    (incident,) = outcome.incidents
    assert (incident["cause"], incident["lost_steps"]) == ("POISONED_STATE", 0) and incident["culprit"]["checkpoint"]
