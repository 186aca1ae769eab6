"""Resizing and pasting of exported models: the numbers of torchvision's eager code, in every runtime."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from maskrcnn_coco.inference.export_sizes import resized
from maskrcnn_coco.inference.export_transform import ExportTransform, paste

SIZES = [(171, 88), (40, 60), (33, 200)]
"""Heights and widths of images, pixels."""


@pytest.mark.filterwarnings("ignore:.torch.jit.script:FutureWarning")
def test_images_are_resized_as_the_checkpoint_resizes_them() -> None:
    wanted = GeneralizedRCNNTransform(64, 96, [0.0] * 3, [1.0] * 3).eval()
    ours = ExportTransform(64, 96, [0.0] * 3, [1.0] * 3).eval()
    scripted = torch.jit.script(ours)
    for height in range(30, 200, 31):
        for width in range(30, 260, 5):
            image = torch.zeros(3, height, width)
            size = tuple(wanted.resize(image)[0].shape[1:])
            assert tuple(ours.resize(image)[0].shape[1:]) == size
            assert scripted([image])[0].image_sizes[0] == size


def sides() -> tuple[Tensor, Tensor]:
    """Heights and widths: squares, of usual shapes, and any."""
    one = torch.arange(20, 3000)
    any_ = torch.randint(20, 9000, (2, 5000), generator=torch.Generator().manual_seed(0))
    pairs = [(one, one), (one * 3, one * 4), (one[:2000] * 16, one[:2000] * 9), (one, one * 2), (any_[0], any_[1])]
    return torch.cat([h for h, _ in pairs]), torch.cat([w for _, w in pairs])


def in_float64(height: Tensor, width: Tensor, shortest: int, longest: int) -> list[tuple[int, int]]:
    """As torchvision's eager code computes."""
    out = []
    for h, w in zip(height.tolist(), width.tolist(), strict=True):
        scale = min(shortest / min(h, w), longest / max(h, w))
        out.append((math.floor(h * scale), math.floor(w * scale)))
    return out


LIMITS = [(256, 256), (800, 1333), (64, 96), (480, 640)]


@pytest.mark.parametrize("limits", LIMITS)
def test_sides_in_whole_numbers_are_those_of_float64(limits: tuple[int, int]) -> None:
    height, width = sides()
    got = torch.stack(resized(height, width, *limits), 1)
    assert list(map(tuple, got.tolist())) == in_float64(height, width, *limits)


class Resized(nn.Module):
    def __init__(self, limits: tuple[int, int]) -> None:
        super().__init__()
        self.limits = limits

    def forward(self, height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        return resized(height, width, *self.limits)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("limits", LIMITS)
def test_runtimes_resize_to_the_same_sides(limits: tuple[int, int], runtime: str, tmp_path: Path) -> None:
    """OpenVINO has no float64: at a limit of 256 it resized 427 pixels to 255."""
    pytest.importorskip("onnx")
    pytest.importorskip(runtime)
    path, (height, width), names = tmp_path / "sides.onnx", sides(), ["height", "width"]
    exported(
        Resized(limits), (height[:9], width[:9]), path, names, {n: {0: "n"} for n in [*names, "h", "w"]}, ["h", "w"]
    )
    run = (in_onnx_runtime if runtime == "onnxruntime" else in_openvino)(path, names)
    got = np.stack(run(height.numpy(), width.numpy()), 1)
    assert list(map(tuple, got.tolist())) == in_float64(height, width, *limits)


def boxes_of(height: int, width: int) -> Tensor:
    """Boxes anywhere, thin ones at each side of the image, and ones that leave it, xyxy."""
    corners = torch.rand(40, 2, 2, generator=torch.Generator().manual_seed(height)) * torch.tensor([width, height])
    h, w = float(height), float(width)
    odd = [
        [w - 0.46, 0.5, w, 22], [w - 0.05, 3, w, 9], [0, 0.5, 0.4, 22], [3, h - 0.46, 20, h], [3, 0, 20, 0.3],
        [0, 0, w, h], [w - 0.4, h - 0.4, w, h], [5, 5, 5.2, 30], [5, 5, 30, 5.2], [7, 7, 7, 7],
        [-9, -4, 12, 15], [w - 5, h - 6, w + 8, h + 3],
    ]  # fmt: skip
    return torch.cat([torch.cat([corners.amin(1), corners.amax(1)], 1), torch.tensor(odd)])


def masks_of(boxes: Tensor) -> Tensor:
    return torch.rand(len(boxes), 1, 28, 28, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_masks_are_pasted_as_the_checkpoint_pastes_them(height: int, width: int) -> None:
    boxes = boxes_of(height, width)
    wanted = paste_masks_in_image(masks_of(boxes), boxes, (height, width))
    got = paste(masks_of(boxes), boxes, height, width)
    assert got.shape == wanted.shape
    assert float((got - wanted).abs().max()) < 2e-5
    assert paste(masks_of(boxes)[:0], boxes[:0], height, width).shape == (0, 1, height, width)


class Paste(nn.Module):
    """What pastes, alone: the image gives the size."""

    def forward(self, image: Tensor, masks: Tensor, boxes: Tensor) -> Tensor:
        """``image`` (3, H, W); masks (N, 1, 28, 28); boxes (N, 4) → (N, 1, H, W)."""
        height, width = image.shape[-2:]
        return paste(masks, boxes, height, width)


def exported(module: nn.Module, given: tuple[Tensor, ...], path: Path, names: list[str], axes: Any, out: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as `export` does: the tracer warns of the masks' side, which is no variable
        torch.onnx.export(
            module, given, str(path), opset_version=17, dynamo=False, input_names=names, output_names=out,
            dynamic_axes=axes,
        )  # fmt: skip


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`Paste` in ONNX, of any size and number."""
    pytest.importorskip("onnx")
    path, boxes = tmp_path_factory.mktemp("graph") / "paste.onnx", boxes_of(50, 70)
    axes = {"image": {1: "h", 2: "w"}, "masks": {0: "n"}, "boxes": {0: "n"}, "out": {0: "n", 2: "h", 3: "w"}}
    exported(Paste(), (torch.zeros(3, 50, 70), masks_of(boxes), boxes), path, PASTED, axes, ["out"])
    return path


PASTED = ["image", "masks", "boxes"]


def in_onnx_runtime(path: Path, names: list[str]) -> Any:
    runtime = pytest.importorskip("onnxruntime")
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda *given: session.run(None, dict(zip(names, given, strict=True)))


def in_openvino(path: Path, names: list[str]) -> Any:
    openvino = pytest.importorskip("openvino")
    model = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *given: list(model(dict(zip(names, given, strict=True))).values())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("runtime", [in_onnx_runtime, in_openvino])
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_runtimes_paste_the_same(graph: Path, runtime: Any, height: int, width: int) -> None:
    """OpenVINO wrote pixels below boxes of which the image keeps one column, as torchvision's own graph pastes."""
    run, boxes = runtime(graph, PASTED), boxes_of(height, width)
    masks, image = masks_of(boxes), np.zeros((3, height, width), np.float32)
    (got,) = run(image, masks.numpy(), boxes.numpy())
    wanted = paste_masks_in_image(masks, boxes, (height, width)).numpy()
    assert got.shape == wanted.shape
    assert np.abs(got - wanted).max() < 2e-5
