"""What an evaluation meets at the end of an epoch never costs the epoch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from runs import OwnData, config, lines, run, small_model

from maskrcnn_coco import train


class Broken(OwnData):
    """Every item raises, or those in ``bad``."""

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, Any]]:
        if not self.bad or i in self.bad:
            raise ValueError("no such file")
        return super().__getitem__(i)


@pytest.mark.parametrize(("bad", "evaluations"), [((1, 3), 1), ((), 0)])
def test_a_validation_set_that_raises_is_named_and_the_run_ends_well(
    bad: tuple[int, ...], evaluations: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(
        config(None, tmp_path), model=small_model(classes=2), train_data=OwnData(), val_data=Broken(6, bad=bad)
    )
    assert (result.status, result.exit_code) == ("finished", 0)
    assert (tmp_path / "checkpoints" / "epoch_001.pth").is_file()
    assert len(lines(tmp_path, "eval")) == evaluations
    said = capsys.readouterr()
    assert f"item {bad[0] if bad else 0}: the data set raised ValueError: no such file" in said.out + said.err


def test_a_thin_image_in_the_validation_set_is_left_out(
    tiny_shapes: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_shapes.root, data)
    path = data / "valid" / "_annotations.coco.json"
    truth = json.loads(path.read_text())
    Image.new("RGB", (3000, 1)).save(path.parent / "thin.png")
    truth["images"].append({"id": 9999, "file_name": "thin.png", "height": 1, "width": 3000})
    path.write_text(json.dumps(truth))
    result = run(data, tmp_path)
    assert (result.status, result.exit_code) == ("finished", 0) and lines(tmp_path, "eval")
    said = capsys.readouterr()
    assert "thin.png" in said.out + said.err
