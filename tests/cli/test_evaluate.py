"""`evaluate` as a person runs it: the page opens offline, JSON holds the analysis, batches change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import picture
from PIL import Image

from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.model.build import build_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    model = build_model("maskrcnn_resnet18_fpn", 3, small=True, min_size=64, max_size=64)
    path = tmp_path_factory.mktemp("model") / "best.pth"
    config = {"min_size": 64, "max_size": 64, "box_detections_per_image": 6}
    torch.save({"model": model.state_dict(), "classes": ["background", "<b>disc", "bar"], "config": config}, path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    truth: dict[str, Any] = {
        "images": [], "annotations": [], "categories": [{"id": 4, "name": "<b>disc"}, {"id": 8, "name": "bar"}]
    }  # fmt: skip
    for n in range(3):
        Image.fromarray(picture(64, 64, 3, n)).save(tmp_path / f"{n}.png")
        truth["images"].append({"id": n, "file_name": f"{n}.png", "width": 64, "height": 64})
        ring = [5, 5, 30, 5, 30, 30, 5, 30]
        truth["annotations"].append({
            "id": n + 1, "image_id": n, "category_id": 4 + 4 * (n % 2), "bbox": [5, 5, 25, 25], "area": 625,
            "iscrowd": 0, "segmentation": [ring],
        })  # fmt: skip
    (tmp_path / "a.json").write_text(json.dumps(truth))
    return tmp_path / "a.json"


def test_json_page_and_batches(checkpoint: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    page = tmp_path / "page.html"
    argv = ["evaluate", str(checkpoint), "--data", str(data), "--images", str(tmp_path), "--device", "cpu", "--json"]
    assert main([*argv, "--html", str(page)]) == 0
    one = json.loads(capsys.readouterr().out)
    assert set(one["analysis"]["errors"]) == {"Loc", "Cls", "Both", "Dupe", "Bkg", "Miss"}
    assert one["analysis"]["confusion"]["classes"] == ["<b>disc", "bar", "(nothing)"]
    assert one["ceiling"]["segm/AP"] == pytest.approx(1.0, abs=0.01)
    text = page.read_text()
    assert "<b>disc" not in text
    assert "at most" in text, "what the truth itself scores, beside AP"
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "<script" not in text
    assert main([*argv, "--batch-size", "3"]) == 0
    three = json.loads(capsys.readouterr().out)
    assert three["metrics"] == pytest.approx(one["metrics"], abs=1e-3)


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["--batch-size", "0"], "1 or more"), (["--html", "."], "a folder"), (["--out", "."], "a folder"),
     (["--tta", "turn"], "flip, scale"), (["--tile", "7"], "32 to 8192"), (["--device", "gpu"], "no device")],
)  # fmt: skip
def test_bad_flags_are_said_before_the_work(
    flags: list[str], said: str, checkpoint: Path, data: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    argv = ["evaluate", str(checkpoint), "--data", str(data), "--images", str(tmp_path), "--device", "cpu"]
    assert main([*argv, *flags]) == 2
    caught = capsys.readouterr()
    assert said in caught.err
    assert "bbox/AP" not in caught.out


def test_images_that_cannot_be_read_change_the_exit_code(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "1.png").write_bytes(b"no image")
    argv = ["evaluate", str(checkpoint), "--data", str(data), "--images", str(tmp_path), "--device", "cpu", "--json"]
    assert main(argv) == 3
    said = json.loads(capsys.readouterr().out)
    assert said["images"] == 2
    assert "1.png" in said["left_out"][0]


@pytest.mark.parametrize("flags", [["--tile", "64"], ["--tile", "auto", "--overlap", "0.5"], ["--tta", "flip,scale"]])
def test_tiles_and_views(flags: list[str], checkpoint: Path, data: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["evaluate", str(checkpoint), "--data", str(data), "--images", str(tmp_path), "--device", "cpu", "--json"]
    assert main(argv) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*argv, *flags]) == 0
    other = json.loads(capsys.readouterr().out)
    assert other["images"] == 3
    if "--tile" in flags:  # images of one tile: the same numbers by another way
        assert other["metrics"] == pytest.approx(plain["metrics"], abs=0.02)
    else:
        assert other["how"] == "6 views of each image (flip, scale)"
