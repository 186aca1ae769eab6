"""`predict` as a person runs it: what it says, what it writes, how it exits; exported models without torch."""

from __future__ import annotations

import errno
import json
import os
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
    state = {"model": model.state_dict(), "classes": ["background", "disc", "bar"], "category_ids": [4, 8]}
    torch.save({**state, "config": config}, path)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for n in range(3):
        Image.fromarray(picture(64, 64, 3, n)).save(folder / f"{n}.png")
    return folder


def test_all_is_well(checkpoint: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    code = main(["predict", str(checkpoint), str(images), "--out", str(out), "--score", "0.1", "--device", "cpu"])
    said = capsys.readouterr().out
    assert code == 0
    assert "of score 0.1 or more on 3 of 3 images" in said
    assert {p.name for p in out.iterdir()} >= {"0.png", "1.png", "2.png", "results.json"}


def test_a_bad_image_is_named_the_rest_goes_on_and_the_exit_code_tells(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    (images / "1.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    argv = ["predict", str(checkpoint), str(images), "--out", str(out), "--json", "--device", "cpu"]
    assert main([*argv, "--format", "png,labels", "--tile", "auto"]) == 3
    said = capsys.readouterr()
    summary = json.loads(said.out)
    assert "1.png" in summary["failed"][0]
    assert "1.png" in said.err
    assert [Path(p).name for p in summary["images"]] == ["0.png", "2.png"]
    assert (out / "labels/2.png").exists()
    assert summary["results"] is None


def test_when_all_are_bad_nothing_is_written(checkpoint: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    for path in images.iterdir():
        path.write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(["predict", str(checkpoint), str(images), "--out", str(out), "--device", "cpu"]) == 3
    assert "0.png" in capsys.readouterr().err
    assert not out.exists()


def test_when_nothing_passes_the_best_is_said(checkpoint: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    argv = ["predict", str(checkpoint), str(images), "--out", str(tmp_path / "o"), "--score", "1", "--device", "cpu"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    assert "no object has a score of 1 or more; the best is 0." in said
    lower = said.split("--score ")[1].split()[0]
    assert main([*argv[:-3], lower, *argv[-2:]]) == 0
    assert "of score" in capsys.readouterr().out


def test_ids_are_the_data_s(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    data = {
        "images": [{"id": 70 + n, "file_name": f"{n}.png", "width": 64, "height": 64} for n in range(3)],
        "categories": [{"id": 31, "name": "bar"}, {"id": 30, "name": "disc"}], "annotations": [],
    }  # fmt: skip
    (images / "a.json").write_text(json.dumps(data))
    argv = ["predict", str(checkpoint), str(images / "2.png"), "--out", str(tmp_path / "o"), "--device", "cpu"]
    assert main([*argv, "--coco", str(images / "a.json")]) == 0
    results = json.loads((tmp_path / "o/results.json").read_text())
    assert {r["image_id"] for r in results} == {72}
    assert {(r["category_id"], r["category_name"]) for r in results} <= {(31, "bar"), (30, "disc")}
    assert main(argv) == 0
    results = json.loads((tmp_path / "o/results.json").read_text())
    assert {(r["category_id"], r["category_name"]) for r in results} <= {(8, "bar"), (4, "disc")}


@pytest.mark.parametrize(
    ("flags", "code", "word"),
    [(["--format", "bmp"], 2, "--format"), (["--score", "7"], 2, "--score"), (["--tile", "x"], 2, "--tile"),
     (["--overlap", "1"], 2, "--overlap"), (["--coco", "nowhere.json"], 3, "nowhere.json")],
)  # fmt: skip
def test_bad_flags(
    flags: list[str], code: int, word: str, checkpoint: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "o"
    assert main(["predict", str(checkpoint), str(images), "--out", str(out), "--device", "cpu", *flags]) == code
    assert word in capsys.readouterr().err
    assert not out.exists()


def test_other_files_and_no_files(checkpoint: Path, images: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["predict", str(images / "0.png"), str(images)]) == 5
    assert main(["predict", str(tmp_path / "none.pth"), str(images)]) == 2
    assert main(["predict", str(checkpoint), str(tmp_path / "none"), "--device", "cpu"]) == 3
    assert main(["predict", str(checkpoint)]) == 2
    assert "none" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"), [(["--overlap", "0.4"], True), (["--overlap", "0.4", "--tile", "64"], False)]
)
def test_an_overlap_of_nothing_is_said(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: Any, flags, said
) -> None:
    argv = ["predict", str(checkpoint), str(images), "--out", str(tmp_path / "out"), "--device", "cpu", *flags]
    assert main(argv) == 0
    assert ("--overlap 0.4 does nothing: without --tile no image is cut" in "".join(capsys.readouterr())) is said


def test_a_picture_given_as_the_model_is_told_without_its_bytes(images: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["predict", str(images / "0.png"), str(images), "--out", str(tmp_path / "out")]) == 5
    said = capsys.readouterr().err
    assert "0.png is no model file" in said and "starts with 'PNG" in said and "checkpoints/best.pth" in said
    assert "\\x" not in said and "\N{REPLACEMENT CHARACTER}" not in said


def test_a_full_disk_is_told_with_the_folder_that_is_written_to(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Libraries that write pictures name no file: "a file: No space left on device" told nobody where."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("maskrcnn_coco.cli.predict._write", full)
    out = tmp_path / "found"
    assert main(["predict", str(checkpoint), str(images), "--out", str(out), "--device", "cpu"]) == 2
    assert f"{out}: No space left on device" in capsys.readouterr().err
