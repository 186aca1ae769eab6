"""Files of other programs and frameworks: named for what they are, or read where they hold a detector."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from maskrcnn_coco.errors import CheckpointError
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
