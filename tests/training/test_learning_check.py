"""Runs that take their steps and learn nothing: said when the first epoch ends, with the trial that proves it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from runs import DETECTIONS, config, narrow
from silent.scene import Scene, small_model

from maskrcnn_coco import train
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.records import Result


def run(out: Any, scene: Any, val: Any = None, **changes: Any) -> Result:
    settings = {"num_classes": 3, "min_size": 64, "max_size": 96, "batch_size": 2} | changes
    with narrow():
        model = small_model(detections_per_image=DETECTIONS)
    return train(config(None, out, **settings), model=model, train_data=scene, val_data=val, quiet=True)


def codes(result: Result) -> list[tuple[str, str]]:
    return [(f.code, f.moment) for f in result.findings]


def test_rates_that_move_nothing_are_proved_too_low(tmp_path):
    result = run(tmp_path, Scene(24), lr=1e-7, head_lr_multiplier=1.0)
    assert codes(result) == [("LR_TOO_LOW", "epoch")]
    assert result.findings[0].detail["factor"] in (1000.0, 10000.0)
    assert "×1: " in result.findings[0].evidence[0].outcome


def test_an_honest_run_is_not_accused(tmp_path):
    result = run(tmp_path, Scene(24), Scene(6, seed=1))
    assert result.findings == []


def test_every_label_out_of_range_ends_the_run_before_any_folder_is_touched(tmp_path):
    scene = Scene(12, classes=1, change=lambda i, t: (i, t | {"labels": t["labels"] - 1}))
    with pytest.raises(DataError, match="labels start at 0"):
        run(tmp_path, scene)
    assert not (tmp_path / "run").exists()


def test_strict_makes_a_finding_an_error(tmp_path):
    scene = Scene(12, change=lambda i, t: (i, t | {"masks": t["masks"].flip(1)}))
    with pytest.raises(DataError, match=r"GEOMETRY.*--strict"):
        run(tmp_path, scene, strict=True)


def test_findings_are_written_and_survive_in_the_result(tmp_path):
    import json

    scene = Scene(12, change=lambda i, t: (i, t | {"masks": t["masks"].flip(1)}))
    seen: list[Any] = []
    result = train(
        config(None, tmp_path, num_classes=3, min_size=64, max_size=96),
        model=small_model(),
        train_data=scene,
        observers=[seen.append],
        stop_after=1,
    )
    assert codes(result) == [("GEOMETRY", "before")]
    written = json.loads((tmp_path / "run" / "result.json").read_text())["findings"]
    assert written[0]["code"] == "GEOMETRY" and written[0]["evidence"] and written[0]["fix"]
    assert any(getattr(r, "code", "") == "GEOMETRY" for r in seen)


def test_norms_that_were_handed_over_in_eval_mode_stay_so_and_it_is_said(tmp_path):
    model = small_model()
    norm = torch.nn.BatchNorm2d(64)
    model.roi_heads.mask_head.append(norm)
    norm.eval()
    result = train(
        config(None, tmp_path, num_classes=3, min_size=64, max_size=96), model=model, train_data=Scene(8), stop_after=2
    )
    assert not norm.training and float(norm.running_mean.abs().sum()) == 0
    assert [f.detail["what"] for f in result.findings] == ["norms kept"]
