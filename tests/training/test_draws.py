"""Samples that are bad in some draws of their augmentation: drawn anew, and nothing is left out of the data set."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from nanbench import ours
from nanbench.scene import STEPS, Scene, Setup, clean_scene
from torch import Tensor

Item = tuple[Tensor, dict[str, Any]]


def drawn(change: Callable[[Item], Item], bad: Callable[[], bool] = lambda: float(torch.rand(())) < 1 / 12) -> Scene:
    """The clean scene, with ``change`` made to those draws that are ``bad``, by torch's own generator as a rule."""
    scene = clean_scene(Setup(batch=2), 0)

    def draw(index: int) -> Item:
        image, target = scene.samples[index]
        item = image.clone(), {k: v.clone() if isinstance(v, Tensor) else v for k, v in target.items()}
        return change(item) if bad() else item

    scene.draw = draw
    return scene


def no_colour(item: Item) -> Item:
    """What a power of a number below zero is."""
    return item[0] * float("nan"), item[1]


def no_box(item: Item) -> Item:
    """A crop beside the object: a box of no width."""
    item[1]["boxes"][0, 2] = item[1]["boxes"][0, 0]
    return item


def fails(item: Item) -> Item:
    """What libraries of augmentation do with a box that they cannot place."""
    raise ValueError("Expected x_max to be greater than x_min")


@pytest.mark.parametrize("change", [no_colour, no_box, fails])
def test_a_draw_that_is_bad_is_drawn_anew_and_no_image_is_left_out(change: Any, tmp_path: Path) -> None:
    outcome = ours.run(drawn(change), tmp_path)
    assert outcome.finished and outcome.finite, outcome.stopped
    assert outcome.incidents
    assert {i["cause"] for i in outcome.incidents} == {"DATA_BOX" if change is no_box else "DATA_PIXEL"}
    assert {i["action"] for i in outcome.incidents} == {"rollback"}
    assert sum(i["lost_steps"] for i in outcome.incidents) == 0
    assert not (tmp_path / "run" / "quarantine.json").exists()
    written = [json.loads(p.read_text()) for p in sorted((tmp_path / "run" / "incidents").glob("*.json"))]
    assert all("anew" in w["fix"] or "augment" in w["fix"] for w in written)
    assert all(any("drawn anew" in e["test"] for e in w["evidence"]) for w in written)


def test_a_data_set_with_a_generator_of_its_own_is_read_again(tmp_path: Path) -> None:
    own = torch.Generator().manual_seed(1)
    outcome = ours.run(drawn(no_colour, lambda: float(torch.rand((), generator=own)) < 1 / 24), tmp_path)
    assert outcome.finished and {i["action"] for i in outcome.incidents} == {"rollback"}


def test_an_image_that_is_bad_in_every_draw_is_left_out(tmp_path: Path) -> None:
    scene = clean_scene(Setup(batch=2), 0)

    def draw(index: int) -> Item:
        image, target = scene.samples[index]
        noise = 0.01 * torch.rand(image.shape)
        return (image * float("nan") if index == 3 else image + noise), dict(target)

    scene.draw = draw
    outcome = ours.run(scene, tmp_path)
    assert outcome.finished
    assert [(i["cause"], i["action"]) for i in outcome.incidents] == [("DATA_PIXEL", "quarantine")]


def test_an_image_that_is_bad_in_most_draws_is_left_out_in_the_end(tmp_path: Path) -> None:
    scene = clean_scene(Setup(batch=2), 0)

    def draw(index: int) -> Item:
        image, target = scene.samples[index]
        bad = index == 3 and float(torch.rand(())) < 0.6
        return (image * float("nan") if bad else image.clone()), dict(target)

    scene.draw = draw
    outcome = ours.run(scene, tmp_path)
    assert outcome.finished
    assert len(outcome.incidents) < STEPS // 4
    assert {i["cause"] for i in outcome.incidents} == {"DATA_PIXEL"}
    assert outcome.incidents[-1]["action"] == "quarantine"


def test_a_run_that_goes_on_from_a_file_draws_as_the_one_that_was_not_stopped(tmp_path: Path) -> None:
    whole = ours.run(drawn(no_colour), tmp_path)
    loop = torch.load(tmp_path / "checkpoints" / "last.pth", weights_only=True)["loop"]
    assert whole.finished and loop["redrawn"]
    assert all(len(entry) == 3 for entry in loop["redrawn"])
