"""Loops of people's own from the bench's eighth round, each with the cause that was missed once."""

from __future__ import annotations

import pytest
from nanbench import ours
from nanbench.decoys_eighth_loop import only_padding
from nanbench.scenario import Outcome
from nanbench.scenarios import BY_ID
from nanbench.scene import Setup, clean_scene


def outcome(name: str, seed: int, folder) -> Outcome:
    scene = clean_scene(BY_ID[name].setup, seed)
    BY_ID[name].fault(scene)
    return ours.run(scene, folder)


@pytest.mark.parametrize(
    ("name", "seed", "cause"),
    [
        ("eighth-critic-rate", 0, "LR_TOO_HIGH"),  # a generator's loss leaves gradients in its critic
        ("eighth-critic-bit", 0, "TRANSIENT"),
        ("eighth-series", 0, "LR_TOO_HIGH"),  # too high by a million, and a weight decay that is none of its doing
        ("eighth-policy", 0, "LR_TOO_HIGH"),  # one healthy step with a loss next to nothing
        ("eighth-all-alike", 0, "LOSS_MATH"),  # other draws of the same batch are sound
        ("eighth-squashed", 0, "LOSS_MATH"),
        ("eighth-unused-codes", 0, "NORM_STATE"),
        ("eighth-norm-momentum", 0, "NORM_STATE"),
    ],
)
def test_every_incident_has_the_cause(name: str, seed: int, cause: str, tmp_path):
    found = outcome(name, seed, tmp_path).incidents
    assert found and {i["cause"] for i in found} == {cause}
    assert all(i["confidence"] >= 0.9 for i in found)


def test_a_chance_names_no_sample(tmp_path):
    found = outcome("eighth-squashed", 0, tmp_path).incidents
    assert not any(i["culprit"].get("image_ids") for i in found)


def test_what_a_script_keeps_beside_its_model_is_named_and_no_maths(tmp_path):
    found = outcome("eighth-carried-beside", 0, tmp_path).incidents
    assert [i["cause"] for i in found if i["confidence"] >= 0.9] == ["POISONED_STATE"] * (len(found) - 1)


def test_what_a_restored_optimizer_makes_of_itself_is_no_sure_poison(tmp_path):
    found = outcome("seventh-rprop-steps", 0, tmp_path).incidents
    assert found and not any(i["cause"] == "POISONED_STATE" and i["confidence"] >= 0.9 for i in found)


def test_an_investigation_leaves_buffers_that_a_loss_holds_on_to(tmp_path):
    found = outcome("eighth-first-spread", 0, tmp_path).incidents
    assert found and {i["cause"] for i in found} == {"LOSS_MATH"}


@pytest.mark.parametrize("name", ["only-padding", "rivals", "hinge", "late-reward", "outliers"])
def test_nothing_is_done_about_an_honest_loop(name: str, tmp_path):
    done = outcome(f"decoy-eighth-{name}", 1, tmp_path)
    assert done.finished and not done.incidents


@pytest.mark.parametrize("way", ["see", "attach", "guard"])
def test_a_micro_batch_of_nothing_is_no_fault(way: str, tmp_path):
    scene = clean_scene(Setup("adam", accumulate=4, model="language", way=way), 3)
    only_padding(scene)
    done = ours.run(scene, tmp_path)
    assert done.finished and not done.incidents


def test_a_rate_that_is_set_after_a_rivals_pass_is_the_steps_own(tmp_path):
    """The generator's loss goes through the critic before the schedule sets the critic's next rate."""
    scene = clean_scene(Setup("adam", model="rivals", way="pair"), 0)
    scene.multipliers["critic"], scene.max_grad_norm = 1e3, 0.0
    found = ours.run(scene, tmp_path).incidents
    # The generator's loss is as loud on its older weights: the critic's doing, and no incident of its own.
    assert [(i["cause"], i["culprit"]["component"]) for i in found] == [("LR_TOO_HIGH", "critic")]
