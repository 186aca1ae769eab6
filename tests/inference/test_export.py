"""Exports: the file finds what the checkpoint finds, with no, one and many objects, or is not there."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from maskrcnn_coco import load
from maskrcnn_coco.cli.command_line import main
from maskrcnn_coco.errors import ConfigError, ExportError
from maskrcnn_coco.inference import export as exporting
from maskrcnn_coco.inference.detections import Found, Window, found_of, nothing
from maskrcnn_coco.inference.export import Exported, export
from maskrcnn_coco.inference.export_heads import NeverEmpty
from maskrcnn_coco.inference.parity import Answer, Case, Gap, compare, pictures, unsettled
from maskrcnn_coco.inference.proof import Checkpoint, prove
from maskrcnn_coco.model.build import build_model

PACKAGES = {"onnx": ["onnx", "onnxruntime"], "openvino": ["onnx", "openvino"]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model from random weights, of which the box head's scores are spread out."""
    torch.manual_seed(3)
    model: Any = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=64, max_size=96)
    with torch.no_grad():
        model.roi_heads.box_predictor.cls_score.weight.mul_(5)
    path = tmp_path_factory.mktemp("model") / "best.pth"
    state = {"model": model.state_dict(), "classes": ["background", "circle", "square", "triangle"]}
    config = {"min_size": 64, "max_size": 96, "box_detections_per_image": 20}
    torch.save({**state, "category_ids": [5, 9, 2], "config": config, "image_size": [64, 80]}, path)
    return path


@pytest.mark.parametrize("format", ["torchscript", "openvino", "safetensors"])
def test_the_file_finds_what_the_checkpoint_finds(format: str, checkpoint: Path, tmp_path: Path) -> None:
    for package in PACKAGES.get(format, []):
        pytest.importorskip(package)
    done = export(checkpoint, tmp_path / "out", format)
    assert len({(c.width, c.height) for c in done.cases}) >= 3
    if format != "safetensors":
        assert {min(c.objects, 2) for c in done.cases} == {0, 1, 2}
    assert done.gap.box <= 0.01
    assert done.gap.score <= 1e-4
    assert done.gap.iou >= 0.999
    assert {p.name for p in (tmp_path / "out").iterdir()} == {p.name for p in done.files}
    again = load(done.files[0], device="cpu")
    assert again.classes == ["circle", "square", "triangle"]
    assert again.category_ids == [5, 9, 2]


def test_onnx_runs_without_torch(checkpoint: Path, tmp_path: Path, capsys: Any) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    assert main(["export", str(checkpoint), "--format", "onnx", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "finds what the checkpoint finds" in said
    assert "with 0, 1, " in said
    check_onnx(tmp_path, load(checkpoint, device="cpu", precision="off"))
    Image.fromarray(pictures(80)[0]).save(tmp_path / "a.png")
    argv = ["predict", str(tmp_path / "model.onnx"), str(tmp_path / "a.png"), "--out", str(tmp_path / "o"), "--json"]
    argv += ["--score", "0.1", "--format", "coco,csv,polygons,labels,png"]
    code = "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
    code += "from maskrcnn_coco.cli.command_line import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    wanted = load(checkpoint, device="cpu", precision="off").predict(tmp_path / "a.png", score=0.1)[0]
    assert found["objects"] == len(wanted) > 0
    assert found["classes"] == {n: wanted.names.count(n) for n in found["classes"]}


def check_onnx(folder: Path, first: Any) -> None:
    """Pictures that the gate has not seen."""
    again = load(folder / "model.onnx")
    assert again.classes == ["circle", "square", "triangle"]
    assert again.category_ids == [5, 9, 2]
    for size in ((70, 101), (200, 64)):
        image = np.random.default_rng(size[0]).integers(0, 255, (*size, 3)).astype(np.uint8)
        a, b = first.predict(image, score=0.1)[0], again.predict(image, score=0.1)[0]
        assert len(a) == len(b)
        assert np.abs(np.sort(a.scores) - np.sort(b.scores)).max(initial=0) < 1e-3


def test_what_finds_something_else_is_not_left_behind(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    write = exporting._torchscript

    def spoiled(model: Any, card: Any, path: Path) -> None:
        bias = model.roi_heads.box_predictor.bbox_pred.bias
        kept = bias.detach().clone()
        with torch.no_grad():
            bias += 0.05
        write(model, card, path)
        with torch.no_grad():
            bias.copy_(kept)

    monkeypatch.setattr(exporting, "_torchscript", spoiled)
    out = tmp_path / "out"
    assert main(["export", str(checkpoint), "--format", "torchscript", "--out", str(out)]) == 4
    said = capsys.readouterr().err
    assert "parts from the checkpoint at" in said
    assert "px" in said
    assert list(out.iterdir()) == []


def test_what_cannot_be_exported_says_so(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("\n\n  aten::sort has no such thing\nmore")

    monkeypatch.setattr(exporting, "_torchscript", fails)
    with pytest.raises(ExportError, match=r"cannot be exported to torchscript\n  got: aten::sort has no such thing"):
        export(checkpoint, tmp_path, "torchscript")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder of one picture, one damaged file, one thread of a picture, and one of a kind that is not read."""
    folder = tmp_path / "own"
    folder.mkdir()
    Image.fromarray(pictures(80)[0]).save(folder / "good.png")
    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    Image.fromarray(np.zeros((900, 2, 3), np.uint8)).save(folder / "thread.png")
    (folder / "other.heic").write_bytes(b"?")
    return folder


def test_own_pictures_that_cannot_be_read_are_named_and_the_rest_goes_on(
    checkpoint: Path, own: Path, tmp_path: Path, capsys: Any
) -> None:
    argv = ["export", str(checkpoint), "--out", str(tmp_path / "o"), "--json", "--format", "safetensors"]
    assert main([*argv, "--images", str(own)]) == 3
    said = capsys.readouterr()
    assert said.err.count("damaged.png") == 1
    assert said.err.count("thread.png") == 1
    assert "1 .heic" in said.err
    answer = json.loads(said.out)
    assert [Path(f).name for f in answer["exported"][0]["files"] if Path(f).is_file()] == ["model.safetensors"]
    assert [c["name"] for c in answer["exported"][0]["cases"] if c["name"]] == ["good.png"]
    assert len(answer["failed"]) == 2
    assert main([*argv, "--images", str(own / "good.png")]) == 0


def test_a_picture_that_cannot_be_read_is_named_once_for_all_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def exported(checkpoint: Path, out: Path, format: str, images: Any) -> Exported:
        return Exported(format, [checkpoint], [Case(9, 9, 1)], Gap(), ["a.png is damaged"])

    monkeypatch.setattr("maskrcnn_coco.cli.export.export", exported)
    file = tmp_path / "best.pth"
    file.write_bytes(b"")
    assert main(["export", str(file), "--format", "safetensors,torchscript", "--images", "a.png"]) == 3
    assert capsys.readouterr().out.count("a.png is damaged") == 1


def test_own_pictures_of_which_none_can_be_read_leave_nothing(
    checkpoint: Path, own: Path, tmp_path: Path, capsys: Any
) -> None:
    (own / "good.png").unlink()
    argv = ["export", str(checkpoint), "--format", "safetensors", "--out", str(tmp_path / "o"), "--images", str(own)]
    assert main(argv) == 3
    assert "none of the 2 images can be looked at; the first: " in capsys.readouterr().err
    assert list((tmp_path / "o").iterdir()) == []


class Lost:
    """A runtime that finds nothing."""

    def run(self, images: Any) -> list[Found]:
        return [nothing() for _ in images]


def test_where_a_picture_of_one_s_own_parts_it_is_named(
    checkpoint: Path, own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "prove", lambda model, usual, *rest: prove(model, Lost(), *rest))
    with pytest.raises(ExportError, match=r"parts from the checkpoint at 80 × 80 pixels \(good.png\)"):
        export(checkpoint, tmp_path / "o", "safetensors", [str(own)])


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_missing_package_is_named(
    format: str, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ConfigError, match=r"maskrcnn-coco\[export\]"):
        export(checkpoint, tmp_path / "o", format)
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("argv", [["--format", "coreml"], ["--format", ""], ["--images", "nowhere/"]])
def test_bad_flags(argv: list[str], checkpoint: Path, tmp_path: Path) -> None:
    assert main(["export", str(checkpoint), "--out", str(tmp_path / "o"), "--format", "safetensors", *argv]) in (2, 3)


def found(*rows: tuple[float, float, int]) -> Found:
    """(x, score, label) of 40 × 40 squares."""
    windows = [Window(int(x), 0, np.ones((40, 40), bool)) for x, _, _ in rows]
    return found_of([[x, 0, x + 40, 40] for x, _, _ in rows], [s for _, s, _ in rows], [n for *_, n in rows], windows)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (found((0, 0.9, 1), (60, 0.5, 2)), None),
        (found((0.009, 0.90005, 1), (60, 0.5, 2)), None),
        (found((0, 0.9, 1), (60, 0.5, 2), (99, 0.05004, 1)), None),  # at the threshold
        (found((0.02, 0.9, 1), (60, 0.5, 2)), "box by"),
        (found((0, 0.9002, 1), (60, 0.5, 2)), "score by"),
        (found((0, 0.9, 1)), "does not find object 2"),
        (found((0, 0.9, 1), (60, 0.5, 1)), "does not find object 2"),
        (found((0, 0.9, 1), (60, 0.5, 2), (99, 0.2, 1)), "that the checkpoint does not find"),
    ],
)
def test_where_two_part(other: Found, says: str | None) -> None:
    wanted = found((0, 0.9, 1), (60, 0.5, 2))
    check = lambda: compare(sure(wanted), other, ("a", "b"), Case(9, 9, 2), 0.05, 100, "onnx")  # noqa: E731
    if says is None:
        check()
        return
    with pytest.raises(ExportError, match=says):
        check()


def test_masks_that_part_are_seen() -> None:
    wanted, other = found((0, 0.9, 1)), found((0, 0.9, 1))
    other.windows[0].mask[0, :2] = False
    with pytest.raises(ExportError, match="masks overlap"):
        compare(sure(wanted), other, ("a",), Case(9, 9, 1), 0.05, 100, "onnx")
    # Pixels that stand at one half are of either.
    compare(Answer(wanted, wanted.windows, other.windows), other, ("a",), Case(9, 9, 1), 0.05, 100, "onnx")
    compare(Answer(other, wanted.windows, other.windows), wanted, ("a",), Case(9, 9, 1), 0.05, 100, "onnx")
    other.windows[0].mask[0, 1] = True  # one pixel may be anything
    compare(sure(wanted), other, ("a",), Case(9, 9, 1), 0.05, 100, "onnx")


def test_equal_scores_may_come_in_any_order() -> None:
    a, b = found((0, 0.5, 1), (100, 0.5, 1)), found((100, 0.5, 1), (0, 0.5, 1))
    assert compare(sure(a), b, ("a",), Case(9, 9, 2), 0.05, 100, "onnx").box == 0


def test_what_rounding_decides_is_held_against_nobody() -> None:
    """Two boxes overlap by a half: either may suppress the other. A third object has nothing to do with it."""
    ours, theirs = found((0, 0.9, 1), (60, 0.5, 1)), found((14, 0.9, 1), (60, 0.5, 1))
    case = (("a",), Case(9, 9, 2), 0.05, 100, "onnx")
    with pytest.raises(ExportError, match="does not find object 1"):
        compare(sure(ours), theirs, *case)
    assert unsettled(sure(ours), [ours, ours]) is None
    loose = unsettled(sure(ours), [ours, theirs])
    assert loose is not None
    assert loose.objects == {0}
    compare(sure(ours), theirs, *case, loose)
    compare(sure(ours), found((15, 0.9, 1), (60, 0.5, 1)), *case, loose)  # where it stood
    for wrong in (
        found((14, 0.9, 1), (60, 0.6, 1)),
        found((14, 0.9, 1)),
        found((14, 0.9, 1), (60, 0.5, 1), (200, 0.4, 1)),
    ):
        with pytest.raises(ExportError):
            compare(sure(ours), wrong, *case, loose)


def sure(found: Found) -> Answer:
    """An answer without a pixel that stands at one half."""
    return Answer(found, found.windows, found.windows)


@pytest.fixture(scope="module")
def untrained() -> Any:
    """Random weights: masks stand at one half, scores at chance, and objects lie in each other's way."""
    torch.manual_seed(4)
    return build_model("maskrcnn_resnet18_fpn", 3, small=True, min_size=64, max_size=64, fast=False).eval()


def test_an_untrained_model_is_not_refused_for_its_rounding(untrained: Any) -> None:
    """A runtime that adds in another order; without pixels at one half counted out, masks would overlap by 0."""

    class Other(Checkpoint):
        def run(self, images: Any) -> list[Found]:
            return [self.answer(i, shake=99).found for i in images]

    cases, gap = prove(untrained, Other(untrained), None, pictures(64)[:2], ("a", "b"), "other")
    assert all(c.objects > 10 for c in cases)
    assert 0 < gap.score < 1e-4


@pytest.mark.parametrize("fault", ["bias", "mask", "lost", "eps"])
def test_an_untrained_model_hides_no_fault(fault: str, untrained: Any) -> None:
    spoiled = copy.deepcopy(untrained)
    heads = spoiled.roi_heads
    with torch.no_grad():
        if fault == "bias":
            heads.box_predictor.bbox_pred.bias += 0.05
        elif fault == "mask":
            heads.mask_predictor.mask_fcn_logits.bias += 0.3
        elif fault == "lost":
            heads.nms_thresh = 0.6
        else:
            spoiled.rpn.nms_thresh = 0.6
    with pytest.raises(ExportError, match="parts from the checkpoint"):
        prove(untrained, Checkpoint(spoiled), None, pictures(64)[:2], ("a", "b"), "spoiled")


def test_a_graph_that_is_never_empty_finds_the_same(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For OpenVINO, which keeps no empty tensor: a stand-in of score -1 where nothing is found."""
    model: Any = load(checkpoint, device="cpu", precision="off", fast=False).model
    image = [torch.from_numpy(pictures(80)[0]).permute(2, 0, 1).float() / 255]
    for threshold in (0.05, 0.3, 1.01):
        model.roi_heads.score_thresh = threshold
        with torch.no_grad():
            (wanted,) = model(image)
            with monkeypatch.context() as m:
                m.setattr(model.roi_heads, "__class__", NeverEmpty)
                (got,) = model(image)
        real = got["scores"] > 0
        assert int((~real).sum()) == (1 if len(wanted["scores"]) == 0 else 0)
        for key in ("boxes", "labels", "scores", "masks"):
            assert torch.equal(got[key][real], wanted[key])
