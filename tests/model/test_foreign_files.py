"""Files of other programs and frameworks: named for what they are, or read where they hold a detector."""

from __future__ import annotations

import pickle
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file

from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.model.build import build_model, load_for_inference


@pytest.fixture(scope="module")
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model("maskrcnn_resnet18_fpn", 3, small=True, min_size=64, max_size=64).state_dict()


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s, lambda s: {"model": s}, lambda s: {"weights": s, "epoch": 3}, lambda s: {"net": s},
        lambda s: {"state_dict": {"model." + k: v for k, v in s.items()} | {"metric.total": torch.ones(1)}},
        lambda s: {"net.detector." + k: v for k, v in s.items()},
        lambda s: {"model_state_dict": {"module." + k: v for k, v in s.items()}, "optimizer_state_dict": {}},
        lambda s: {"_orig_mod." + k: v for k, v in s.items()},
    ],
)  # fmt: skip
def test_a_detector_is_found_wherever_a_framework_put_it(wrap: Any, state: Any, tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / "m.ckpt")
    model, _ = load_for_inference(tmp_path / "m.ckpt")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize(
    "wrap",
    [lambda s: {"net": s, "ema": s}, lambda s: {p + k: v for p in ("a.", "b.") for k, v in s.items()}],
)  # fmt: skip
def test_of_several_detectors_none_is_guessed(wrap: Any, state: Any, tmp_path: Path) -> None:
    torch.save(wrap(state), tmp_path / "m.pth")
    with pytest.raises(CheckpointError, match="several detectors"):
        load_for_inference(tmp_path / "m.pth")


def foreign(kind: str, path: Path, state: Any) -> Path:
    target = path / {"onnx": "m.onnx", "engine": "m.engine"}.get(kind, "m.pth")
    if kind == "script":
        torch.jit.script(torch.nn.Linear(2, 2)).save(str(target))
    elif kind == "pickle":
        target.write_bytes(pickle.dumps({"model": {}}, protocol=2))
    elif kind == "faster":
        torch.save({k: v for k, v in state.items() if "mask" not in k}, target)
    elif kind == "retina":
        head = torchvision.models.detection.retinanet.RetinaNetHead(8, 3, 2)
        torch.save(head.state_dict(), target)
    else:
        content = {"text": b"{}", "picture": b"\x89PNG\r\n", "empty": b"", "html": b"<!doctype html>"}
        target.write_bytes(content.get(kind, b"abc"))
    return target


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(
    ("kind", "said"),
    [("onnx", "exported"), ("script", "exported"), ("engine", "another library"), ("text", "starts with"),
     ("picture", "starts with"), ("html", "starts with"), ("empty", "empty"), ("faster", "without a mask head"),
     ("retina", "no Mask R-CNN"), ("pickle", "m.pth")],
)  # fmt: skip
def test_other_files_are_named_for_what_they_are(kind: str, said: str, state: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=said):
        load_for_inference(foreign(kind, tmp_path, state))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s, lambda s: {"state_dict": {"module." + k: v for k, v in s.items()}, "arch": "resnet18"},
        lambda s: {"model": s, "args": Namespace(lr=0.1), "epoch": 3},
        lambda s: {"backbone." + k: v for k, v in s.items()},
        lambda s: {"state_dict": {"module.encoder_q." + k: v for k, v in s.items() if not k.startswith("fc.")}
                   | {"module.queue": torch.ones(3)}},
        lambda s: {"model_state": {"net.body." + k: v for k, v in s.items()}},
    ],
)  # fmt: skip
def test_a_backbone_is_found_wherever_a_framework_put_it(wrap: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    plain = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(wrap(plain), tmp_path / "b.pth.tar")
    body = build_model(
        "maskrcnn_resnet18_fpn", 3, weights="none", backbone_weights=tmp_path / "b.pth.tar"
    ).backbone.body
    assert torch.equal(body.state_dict()["layer4.1.conv2.weight"], plain["layer4.1.conv2.weight"])
    assert torch.equal(body.state_dict()["conv1.weight"], plain["conv1.weight"])


def test_a_backbone_that_is_another_one_is_still_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": torchvision.models.resnet34(weights=None).state_dict()}, tmp_path / "b.pth")
    torch.save({"args": Namespace(lr=1)}, tmp_path / "none.pth")
    with pytest.raises(ConfigError, match="another backbone"):
        build_model("maskrcnn_resnet18_fpn", 3, weights="none", backbone_weights=tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="no tensors"):
        build_model("maskrcnn_resnet18_fpn", 3, weights="none", backbone_weights=tmp_path / "none.pth")


def test_a_checkpoint_of_torchvisions_own_scripts_is_read_with_its_arguments(state: Any, tmp_path: Path) -> None:
    torch.save(
        {"model": state, "optimizer": {}, "args": Namespace(lr=0.02, data_path="coco"), "epoch": 3}, tmp_path / "m.pth"
    )
    model, _ = load_for_inference(tmp_path / "m.pth")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_files_are_what_they_hold_and_not_what_they_are_called(state: Any, tmp_path: Path) -> None:
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "m.pth")
    torch.save(state, tmp_path / "m.safetensors")
    for name in ("m.pth", "m.safetensors"):
        model, _ = load_for_inference(tmp_path / name)
        assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("content", [b"", b"{}", b"\x08\0\0\0\0\0\0\0{}", b"\xff" * 40, b"PK\x03\x04" + b"0" * 50])
def test_a_file_of_safetensors_that_is_none_is_an_error_of_ours(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError) as error:
        load_for_inference(tmp_path / "m.safetensors")
    assert error.value.fix
