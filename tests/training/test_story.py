"""The story that started it: heads at ten times the rate, no clipping, no warm-up; and the one that is never NaN."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
from nanbench.tiny import sample
from nanbench.tiny_parts import CLASSES
from runs import incidents, lines, tiny_model

from maskrcnn_coco import Config, train
from maskrcnn_coco.records import Result


def wild(out: Path, multiplier: float, **changes: Any) -> Result:
    """Twenty-four steps of the tiny detector at a brisk rate, its heads at ``multiplier`` times that, unclipped."""
    settings = Config(
        num_classes=CLASSES, epochs=4, batch_size=4, lr=0.03, head_lr_multiplier=multiplier, max_grad_norm=0.0,
        warmup_steps=0, amp="off", min_size=64, max_size=64, workers=0, device="cpu", logdir=str(out / "run"),
        checkpoint_dir=str(out / "checkpoints"), **changes,
    )  # fmt: skip
    return train(settings, model=tiny_model(), train_data=[sample(i) for i in range(24)])


@pytest.mark.parametrize("multiplier", [10.0, 5.0])
def test_a_run_with_wild_heads_finishes_finite_and_names_them(tmp_path, capfd, multiplier: float):
    result = wild(tmp_path, multiplier)
    told = capfd.readouterr()
    warned, after = " ".join((told.out + told.err).split()).split("incident 0001", 1)
    assert "each step moves its weights by" in warned and "lower --head-lr-multiplier" in warned, "before the alarm"
    assert "each step moves" not in after, "once a component"
    assert (result.status, result.finite, result.steps) == ("finished", True, 24)
    first, *more = incidents(tmp_path)
    assert (first["cause"], first["culprit"]["component"]) == ("LR_TOO_HIGH", "box_head")
    assert first["action"]["kind"] == "lower_lr" and {i["cause"] for i in more} <= {"LR_TOO_HIGH"}
    assert "--head-lr-multiplier" in first["fix"] and "--max-grad-norm" in first["fix"]
    losses = [s["loss"] for s in lines(tmp_path)]
    assert median(losses[-6:]) < losses[0] / 2

    wild(tmp_path / "off", multiplier, guard="off")
    unguarded = [float(s["loss"]) for s in lines(tmp_path / "off")]
    assert not unguarded[-1] < losses[0], "without the guard it is lost: NaN, or a loss that never comes back"
