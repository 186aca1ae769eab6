"""`evaluate` as a person runs it: the page opens offline, JSON holds the analysis, batches change nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import picture
from PIL import Image
from silent.scenarios import each
from silent.scene import Scene, write_coco

from maskrcnn_coco.cli import evaluate
from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.data.masks import decode_mask, encode_rle
from maskrcnn_coco.evaluation.ceiling import as_predictions, truth_of
from maskrcnn_coco.evaluation.evaluate import EvalResult
from maskrcnn_coco.evaluation.metrics import coco_metrics
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


def found_as_annotated(change: Any) -> Any:
    """In the place of `evaluate_model`: the truth of a table as predictions, each changed by ``change``."""

    def evaluate(model: Any, source: Any, **_: Any) -> EvalResult:
        truth = truth_of(source)
        assert truth is not None
        found = [change(dict(r)) for r in as_predictions(truth)]
        metrics = {}
        for kind in ("bbox", "segm"):
            given = found if kind == "bbox" else [{k: v for k, v in r.items() if k != "bbox"} for r in found]
            metrics[f"{kind}/AP50"] = coco_metrics(truth, given, kind).metrics["AP50"]
        return EvalResult(metrics, {}, [], truth, found, images=len(truth.images))

    return evaluate


def mirrored(result: dict[str, Any]) -> dict[str, Any]:
    solid = decode_mask(result["segmentation"], *result["segmentation"]["size"])
    return result | {"segmentation": encode_rle(np.ascontiguousarray(solid[:, ::-1]))}


def other_class(result: dict[str, Any]) -> dict[str, Any]:
    return result | {"category_id": 3 - result["category_id"]}


def corners(annotation: dict[str, Any], *_: Any) -> None:
    x, y, w, h = annotation["bbox"]
    annotation["bbox"] = [x, y, x + w, y + h]


@pytest.mark.parametrize(
    ("change", "spoil", "code", "words"),
    [(mirrored, None, "MASKS_ELSEWHERE", "mirrored left to right"), (other_class, None, "CLASSES", "permuted"),
     (dict, each(corners), "GEOMETRY", "[x1, y1, x2, y2]"), (dict, None, None, "")],
)  # fmt: skip
def test_why_figures_say_little_of_the_model(
    change: Any, spoil: Any, code: str | None, words: str, checkpoint: Path, tmp_path: Path, capsys: Any,
    monkeypatch: Any,
) -> None:  # fmt: skip
    def named(coco: dict[str, Any]) -> None:
        coco["categories"] = [{"id": 1, "name": "<b>disc"}, {"id": 2, "name": "bar"}]
        if spoil is not None:
            spoil(coco)

    monkeypatch.setattr(evaluate, "evaluate_model", found_as_annotated(change))
    path = write_coco(tmp_path / "test set", Scene(8, 4), named)
    argv = ["evaluate", str(checkpoint), "--data", str(path), "--images", str(path.parent), "--device", "cpu"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["findings"]
    assert [f["code"] for f in found] == ([code] if code else [])
    assert main(argv) == 0
    out = capsys.readouterr().out
    assert ("what to do: " in out) == (code is not None) and words in out and "--data PATH" not in out
    if code in ("MASKS_ELSEWHERE", "GEOMETRY"):
        assert f"maskrcnn-coco check --data '{path}' --images '{path.parent}'" in out


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
