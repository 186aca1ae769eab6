"""Pictures that no scan can compute with: what cannot be looked at is noted, and the investigation goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from nanbench import ours
from nanbench.scene import Setup, clean_scene
from torch import Tensor


@pytest.mark.parametrize("change", [Tensor.to_sparse, lambda image: image.to("meta")], ids=["sparse", "meta"])
def test_a_picture_without_numbers_is_left_out_and_named(change: Callable[[Tensor], Tensor], tmp_path: Path) -> None:
    scene = clean_scene(Setup(), 0)
    image, target = scene.samples[7]
    scene.samples[7] = (change(image), target)
    scene.draw = lambda index: scene.samples[index]
    outcome = ours.run(scene, tmp_path)
    assert outcome.finished and outcome.finite
    assert [(i["cause"], i["action"]) for i in outcome.incidents] == [("DATA_PIXEL", "quarantine")]
    assert outcome.incidents[0]["culprit"]["image_ids"] == [scene.ids[7]]
