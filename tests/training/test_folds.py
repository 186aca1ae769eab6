"""The loop over folds that the documentation shows: it runs as it stands, and every image is validated on once."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import maskrcnn_coco
from maskrcnn_coco.config.settings import Config
from maskrcnn_coco.data.prepare import open_data
from maskrcnn_coco.training.loop import train
from tests.helpers.odd_sets import OddSet
from tests.helpers.runs import small_model

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how_to" / "small_sets.md"
SHORT: dict[str, Any] = {
    "model": "maskrcnn_resnet18_fpn",
    "weights": "none",
    "min_size": 64,
    "max_size": 64,
    "epochs": 1,
    "max_steps": 1,
    "batch_size": 1,
    "workers": 0,
    "device": "cpu",
    "amp": "off",
}


def test_the_loop_over_folds_trains_each_and_averages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    OddSet(tmp_path / "my_set", images=6, objects=2).write()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(maskrcnn_coco, "Config", lambda **given: Config(**SHORT, **given))
    small = partial(train, model=small_model(classes=3))
    monkeypatch.setattr(maskrcnn_coco, "train", small)
    names: dict[str, Any] = {}
    exec(block.replace("FOLDS = 5", "FOLDS = 2"), names)
    found = [run.metrics["segm/AP"] for run in names["runs"]]
    assert len(found) == 2 and f"segm/AP {sum(found) / 2:.3f} ±" in capsys.readouterr().out
    assert [(tmp_path / "runs" / f"fold{n}" / "result.json").is_file() for n in (1, 2)] == [True, True]


def test_every_image_is_in_one_fold(tmp_path: Path):
    data = OddSet(tmp_path / "my_set", images=11)
    data.write()
    seen: list[int] = []
    for n in range(1, 5):
        opened = open_data(Config(data=str(data.folder), fold=f"{n}/4"))
        assert opened.train is not None and opened.val is not None
        assert len(opened.train) + len(opened.val) == 11
        seen += opened.val.image_ids.tolist()
    assert sorted(seen) == list(range(1, 12))
