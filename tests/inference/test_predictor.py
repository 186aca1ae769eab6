"""`load` and `predict`: whatever a person hands over, lazily; weights that are torchvision's."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from colours import CLASSES, picture, predictor
from PIL import Image
from torch import nn
from torchvision.models.detection import MaskRCNN, maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2
from torchvision.models.detection.backbone_utils import BackboneWithFPN, resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d

from maskrcnn_coco import load
from maskrcnn_coco.errors import CheckpointError, ConfigError, DataError, MaskRCNNError
from maskrcnn_coco.model.architecture import group_norm
from maskrcnn_coco.model.build import build_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small model from random weights: it finds many things, surely."""
    torch.manual_seed(3)
    model = build_model("maskrcnn_resnet18_fpn", 4, small=True, min_size=64, max_size=96)
    path = tmp_path_factory.mktemp("model") / "best.pth"
    classes = ["background", "circle", "square", "triangle"]
    config = {"min_size": 64, "max_size": 96, "box_detections_per_image": 15}
    torch.save({"model": model.state_dict(), "classes": classes, "category_ids": [5, 9, 2], "config": config}, path)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five pictures, two of them in a folder below, and things that are none."""
    root = tmp_path / "images"
    (root / "more" / ".hidden").mkdir(parents=True)
    for n, name in enumerate(("a.png", "b.jpg", "c.tif", "more/a.png", "more/d.PNG")):
        Image.fromarray(picture(70, 80 + 10 * (n % 2), 3, n)).save(root / name)
    (root / "notes.txt").write_text("no picture")
    (root / ".a.png").write_bytes(b"what a Mac leaves behind")
    (root / "more" / ".hidden" / "x.png").write_bytes(b"no")
    return root


def test_three_lines(checkpoint: Path) -> None:
    model = load(checkpoint, device="cpu")
    assert model.classes == ["circle", "square", "triangle"]
    assert model.category_ids == [5, 9, 2]
    assert isinstance(model.model, nn.Module)
    (result,) = model.predict(picture(64, 80, 4, 0), score=0.0)
    count = len(result)
    assert 1 <= count <= 15
    assert result.boxes.shape == (count, 4)
    assert result.masks.shape == (count, 64, 80)
    assert result.masks.dtype == bool
    assert (np.diff(result.scores) <= 0).all()
    assert set(result.names) <= {"circle", "square", "triangle"}
    assert {e["category_id"] for e in result.to_coco()} <= {5, 9, 2}


def test_detections_are_those_of_the_plain_model(checkpoint: Path) -> None:
    image = picture(64, 80, 4, 1)
    plain = load(checkpoint, device="cpu", fast=False)
    assert type(plain.model) is MaskRCNN
    (result,) = load(checkpoint, device="cpu", precision="off").predict(image, score=0.0)
    with torch.no_grad():
        (wanted,) = plain.model([torch.from_numpy(image).permute(2, 0, 1) / 255.0])
    assert np.abs(result.boxes - wanted["boxes"].numpy()).max() < 0.01
    assert np.abs(result.scores - wanted["scores"].numpy()).max() < 1e-4
    masks = wanted["masks"][:, 0].numpy()
    assert (result.masks == (masks > 0.5))[np.abs(masks - 0.5) > 1e-4].all()


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2"])
def test_weights_trained_from_scratch_load_into_torchvision_strictly(name: str, tmp_path: Path) -> None:
    # Their norm layers are GroupNorm, which torchvision takes as an argument.
    ours = build_model(f"maskrcnn_{name}_fpn", 3, weights="none")
    torch.save({"model": ours.state_dict(), "classes": ["background", "a", "b"]}, tmp_path / "c.pth")
    make: Any = resnet_fpn_backbone if "resnet" in name else mobilenet_of_every_stage
    theirs = MaskRCNN(make(backbone_name=name, weights=None, norm_layer=group_norm), 3)
    theirs.load_state_dict(load(tmp_path / "c.pth", device="cpu").model.state_dict(), strict=True)


def mobilenet_of_every_stage(**kwargs: Any) -> nn.Module:
    """torchvision's MobileNet backbone with the stages that ours takes."""
    ours = build_model("maskrcnn_mobilenet_v2_fpn", 3, weights="none").backbone
    taps = [int(k) for k in ours.body.return_layers]
    body = torchvision.models.mobilenet_v2(weights=None, norm_layer=kwargs["norm_layer"]).features
    widths = [i[0].in_channels for i in ours.fpn.inner_blocks]
    return BackboneWithFPN(body, {str(t): str(n) for n, t in enumerate(taps)}, widths, 256)


@pytest.mark.parametrize("make", [maskrcnn_resnet50_fpn, maskrcnn_resnet50_fpn_v2])
def test_weights_fine_tuned_from_coco_load_into_torchvision_strictly(make: Any, tmp_path: Path) -> None:
    # Frozen norms keep BatchNorm's names: a stock torchvision model takes the weights as they are.
    none: dict[str, Any] = {"weights": None, "weights_backbone": None, "num_classes": 3}
    torch.save(make(**none).state_dict(), tmp_path / "coco.pth")
    predictor = load(tmp_path / "coco.pth", device="cpu")
    assert any(isinstance(m, FrozenBatchNorm2d) for m in predictor.model.modules())
    assert predictor.classes == ["class 1", "class 2"]
    make(**none).load_state_dict(predictor.model.state_dict(), strict=True)


@pytest.mark.parametrize("given", ["folder", "glob", "list", "generator", "strings"])
def test_paths_of_all_kinds(folder: Path, given: str) -> None:
    model = predictor()
    images: Any = {
        "folder": folder, "glob": str(folder / "**" / "*.*"), "list": [folder / "a.png", folder / "more"],
        "generator": (p for p in [folder / "a.png"]), "strings": [str(folder / "b.jpg"), str(folder / "c.tif")],
    }[given]  # fmt: skip
    results = model.predict(images)
    names = [r.name for r in results]
    assert names == {
        "folder": ["a.png", "b.jpg", "c.tif", "more/a.png", "more/d.PNG"],
        "glob": ["a.png", "b.jpg", "c.tif", "a.png", "d.PNG"],
        "list": ["a.png", "a.png", "d.PNG"], "generator": ["a.png"], "strings": ["b.jpg", "c.tif"],
    }[given]  # fmt: skip
    assert len(results) == len(names)
    assert names == [r.name for r in results], "a second pass is the same"


def encoded_png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    "make",
    [
        lambda a: a, lambda a: a[:, :, :1], lambda a: np.dstack([a, a[:, :, :1]]), lambda a: a / np.float32(255),
        lambda a: a.astype(np.uint16) * 257, torch.from_numpy, lambda a: torch.from_numpy(a).permute(2, 0, 1),
        Image.fromarray, lambda a: a[::1, ::-1][:, ::-1], lambda a: np.moveaxis(a, 2, 0), lambda a: a.astype(np.int64),
        lambda a: a.astype(">u2") * 257, lambda a: a[None], lambda a: torch.from_numpy(a)[None].permute(0, 3, 1, 2),
        lambda a: torch.from_numpy(a / np.float32(255)).bfloat16(), lambda a: (a / 255.0 * 1.0002).astype(np.float32),
        encoded_png, lambda a: io.BytesIO(encoded_png(a)),
    ],
)  # fmt: skip
def test_arrays_of_all_kinds(make: Any) -> None:
    image = picture(70, 90, 5, 0)
    (result,) = predictor().predict(make(image))
    assert result.name == "image 1"
    assert result.path is None
    assert (result.height, result.width) == (70, 90)
    if make(image).__class__ is not np.ndarray or make(image).shape[-1] != 1:
        assert np.abs(result.image.astype(int) - image).max() <= 1


@pytest.mark.parametrize(
    "given", [np.zeros((1, 3, 5, 7, 3)), np.full((9, 9, 3), 7.0), np.full((9, 9, 3), np.nan),
              np.full((9, 9, 3), 256, "<i8"), np.zeros((0, 9, 3), np.uint8), np.zeros((9, 9, 5), np.uint8)],
)  # fmt: skip
def test_arrays_that_are_no_pictures_are_named(given: np.ndarray) -> None:
    with pytest.warns(UserWarning, match="image 1"):
        assert list(predictor().predict(given)) == []
    with pytest.raises(DataError, match="image 1"):
        predictor().predict([given])[0]


@pytest.mark.parametrize("given", [None, 7, b"a.png", [None], {"a": 1}.values(), object()])
def test_what_is_no_image_is_refused_at_once(given: Any) -> None:
    with pytest.raises(DataError):
        predictor().predict(given)


def test_nothing_is_computed_before_it_is_asked_for(folder: Path) -> None:
    model = predictor()
    results = model.predict(folder)
    assert not model.engine.seen  # pyright: ignore[reportAttributeAccessIssue]
    first = next(iter(results))
    assert first.name == "a.png"
    assert len(model.engine.seen) <= 2  # pyright: ignore[reportAttributeAccessIssue]
    assert results[-1].name == "more/d.PNG"
    with pytest.raises(IndexError):
        results[5]


def test_a_bad_file_is_named_and_the_rest_goes_on(folder: Path) -> None:
    (folder / "b.jpg").write_bytes(b"\xff\xd8 cut short")
    told: list[str] = []
    results = predictor().predict(folder, on_unreadable=told.append)
    assert [r.name for r in results] == ["a.png", "c.tif", "more/a.png", "more/d.PNG"]
    assert len(results.failed) == 1
    assert "b.jpg" in told[0]
    assert [r.number for r in results] == [1, 3, 4, 5], "ids do not depend on what can be read"


@pytest.mark.parametrize("tile", [None, 64])
def test_an_image_the_model_cannot_take_costs_that_image_alone(checkpoint: Path, tile: int | None) -> None:
    good, thin = picture(64, 80, 2, 0), np.zeros((1, 900, 3), np.uint8)
    told: list[str] = []
    results = load(checkpoint, device="cpu").predict([good, thin, good], tile=tile, on_unreadable=told.append)
    names = [r.name for r in results]
    assert {"image 1", "image 3"} <= set(names)
    assert len(names) + len(told) == 3
    assert all("image 2" in t for t in told)


def test_running_out_of_memory_is_not_an_image_s_fault() -> None:
    model = predictor()
    for error in (MemoryError(), RuntimeError("CUDA out of memory")):
        model.engine.run = lambda images, error=error: (_ for _ in ()).throw(error)
        with pytest.raises(type(error)):
            list(model.predict(picture(40, 40, 1, 0)))


def test_links_are_followed(folder: Path, tmp_path: Path) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "z.png").symlink_to(folder / "a.png")
    assert [r.name for r in predictor().predict(links)] == ["z.png"]
    assert [r.name for r in predictor().predict(links / "z.png")] == ["z.png"]


def test_progress_is_told() -> None:
    told: list[tuple[int, int | None]] = []
    list(predictor().predict([picture(40, 40, 1, n) for n in range(3)], progress=lambda *a: told.append(a)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("flag", "value"),
    [("score", 1.5), ("score", -1), ("score", True), ("score", "0.5"), ("score", None), ("overlap", 0.9),
     ("overlap", "x"), ("batch_size", 0), ("batch_size", 2.5), ("tile", 31), ("tile", "64x64")],
)  # fmt: skip
def test_values_out_of_range_are_named(flag: str, value: Any) -> None:
    with pytest.raises(ConfigError):
        predictor().predict(picture(40, 40, 1, 0), **{flag: value})


@pytest.mark.parametrize("value", [np.float32(0.5), 0.5, 0, 1, np.float64(0.3)])
def test_a_score_is_a_number_of_any_library(value: Any) -> None:
    assert len(list(predictor().predict(picture(40, 40, 1, 0), score=value))) == 1


@pytest.mark.parametrize("device", ["gpu", "x", "cuda:x", "mps:9:9"])
def test_a_device_that_is_none_is_named(device: str, checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="device"):
        load(checkpoint, device=device)


@pytest.mark.parametrize("given", [None, "", 7, "https://example.org/best.pth"])
def test_what_is_no_model_file_is_named(given: Any) -> None:
    with pytest.raises(ConfigError):
        load(given)


def test_a_folder_of_checkpoints_is_answered_with_its_best(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match=r"best\.pth"):
        load(checkpoint.parent)


def damaged(path: Path, kind: str, checkpoint: Path) -> Path:
    target = path / ("model" + (".onnx" if kind == "onnx" else ".torchscript" if kind == "script" else ".pth"))
    if kind == "image":
        Image.fromarray(picture(9, 9, 1, 0)).save(target, "PNG")
    elif kind == "folder":
        target.mkdir()
    elif kind == "half":
        target.write_bytes(checkpoint.read_bytes()[:5000])
    elif kind == "classifier":
        torch.save(torchvision.models.resnet18(weights=None).state_dict(), target)
    elif kind == "faster":
        stock = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3)
        torch.save(stock.state_dict(), target)
    elif kind == "nan":
        contents = torch.load(checkpoint, weights_only=True)
        next(iter(contents["model"].values())).fill_(float("nan"))
        torch.save(contents, target)
    elif kind == "pickle":
        torch.save({"model": partial(print, "run")}, target)
    elif kind in ("onnx", "script"):
        target.write_bytes(b"neither")
    return target


@pytest.mark.parametrize(
    "kind", ["missing", "image", "folder", "half", "classifier", "faster", "nan", "pickle", "onnx", "script"]
)
def test_other_files_are_refused_with_a_sentence(kind: str, checkpoint: Path, tmp_path: Path) -> None:
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
    with pytest.raises(MaskRCNNError) as e:
        load(damaged(tmp_path, kind, checkpoint), device="cpu")
    assert isinstance(e.value, (CheckpointError, ConfigError))
    assert "model" in e.value.what


def test_importing_load_does_not_import_torch() -> None:
    code = "import sys; from maskrcnn_coco import load; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_video_frame_by_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for n in range(3):
            for packet in stream.encode(av.VideoFrame.from_ndarray(picture(64, 96, 2, n), format="rgb24")):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    results = predictor().predict(path)
    assert [r.name for r in results] == [f"film_{n:06d}.png" for n in (1, 2, 3)]
    with pytest.raises(TypeError):
        len(results)


def test_a_video_without_its_reader_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    shutil.copy(__file__, tmp_path / "film.mp4")
    with pytest.raises(ConfigError, match="PyAV"):
        list(predictor().predict(tmp_path / "film.mp4"))


def test_result_answers_in_many_ways() -> None:
    image = picture(90, 120, 6, 5)
    (r,) = predictor().predict(image)
    assert r.areas().tolist() == [int(m.sum()) for m in r.masks]
    labels = r.label_image()
    assert labels.dtype == np.uint16
    assert all((labels == n + 1).sum() == a for n, a in enumerate(r.areas()))  # these do not overlap
    assert len(r.polygons()) == len(r)
    assert {e["category_id"] for e in r.to_coco()} <= {7, 3}
    assert set(r.names) <= set(CLASSES)
    assert len(r.at_least(float(r.scores[0]))) == 1
    assert r.draw().size[0] >= 120
    assert "6 objects" in repr(r) or f"{len(r)} objects" in repr(r)


@pytest.mark.parametrize(("package", "method"), [("pandas", "to_pandas"), ("supervision", "to_supervision")])
def test_other_libraries(package: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (r,) = predictor().predict(picture(90, 120, 6, 5))
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=package):
        getattr(r, method)()
    monkeypatch.undo()
    pytest.importorskip(package)
    assert len(getattr(r, method)()) == len(r)
