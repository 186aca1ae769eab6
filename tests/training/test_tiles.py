"""A run on tiles: said at the start, resumed in the same bits, evaluated on tiles, and known to `predict`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import config, lines, small_model, weights

from maskrcnn_coco import train
from maskrcnn_coco.data.builtin_shapes import write_shapes


def test_a_run_on_tiles_resumes_in_the_same_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shapes(tmp_path / "large", train=2, val=3, size=160)
    settings = {"tile": 64, "augment": "medium", "batch_size": 4}
    whole = config(tmp_path / "large", tmp_path / "whole", **settings)
    result = train(whole, model=small_model())
    said = "".join(capsys.readouterr())
    assert "2 of 2 images are cut into tiles of 64 pixels that overlap by a quarter: 18 samples an epoch" in said
    assert "AP is of tiles, too" in said
    assert result.exit_code == 0 and result.steps == 5
    (evaluation,) = lines(tmp_path / "whole", "eval")
    assert evaluation["losses"] and 0 <= evaluation["metrics"]["segm/AP"] <= 1
    saved = torch.load(tmp_path / "whole" / "checkpoints" / "last.pth", weights_only=True)
    assert saved["image_size"] == [64, 64]

    parts = config(tmp_path / "large", tmp_path / "parts", **settings, checkpoint_every="2")
    train(parts, model=small_model(), quiet=True, stop_after=2)
    again = config(tmp_path / "large", tmp_path / "parts", **settings, resume="auto")
    train(again, model=small_model(), quiet=True)
    one, two = (weights(tmp_path / name / "checkpoints" / "last.pth") for name in ("whole", "parts"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_where_nothing_is_cut_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shapes(tmp_path / "small", train=2, val=1, size=64)
    train(config(tmp_path / "small", tmp_path, tile=64), model=small_model(), dry_run=True)
    assert "--tile cuts nothing" in "".join(capsys.readouterr())
