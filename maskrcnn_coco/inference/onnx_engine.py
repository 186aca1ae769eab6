"""An exported ``.onnx`` model behind a `Predictor`: ONNX Runtime, NumPy and Pillow, no torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.inference.detections import Found, found_of, nothing, windows_of_full
from maskrcnn_coco.inference.metadata import KEY, card_of
from maskrcnn_coco.inference.predictor import Predictor
from maskrcnn_coco.wording import clean

INPUT = "image"
OUTPUTS = ("boxes", "labels", "scores", "masks")
"""Names in the graph. In: float32 (3, H, W) RGB in 0..1. Out: (N, 4) xyxy pixels, (N,), (N,), (N, 1, H, W) in 0..1."""


class OnnxEngine:
    """An ONNX Runtime session, image by image."""

    batch_size = 1

    def __init__(self, session: Any) -> None:
        self.model = session

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each."""
        return [found_in_arrays(self.model.run(list(OUTPUTS), {INPUT: as_array(i)})) for i in images]


def as_array(pixels: np.ndarray) -> np.ndarray:
    """float32 (3, H, W) in 0..1 of uint8 (H, W, 3): the numbers that torch gets."""
    return np.ascontiguousarray(np.moveaxis(pixels, 2, 0)).astype(np.float32) / np.float32(255.0)


def found_in_arrays(outputs: Sequence[np.ndarray]) -> Found:
    """The four outputs of an exported model as a `Found`."""
    boxes, labels, scores, masks = outputs
    return found_of(boxes, scores, labels, windows_of_full(masks)) if len(boxes) else nothing()


_PROVIDERS = {"cuda": "CUDAExecutionProvider", "mps": "CoreMLExecutionProvider"}


def devices() -> tuple[str, ...]:
    """What ``device`` may be for an exported model: whatever this ONNX Runtime was built for."""
    available = _runtime().get_available_providers()
    return ("auto", "cpu", *(name for name, provider in _PROVIDERS.items() if provider in available))


def _runtime() -> Any:
    try:
        import onnxruntime
    except ImportError as e:
        raise ConfigError("running .onnx needs ONNX Runtime", got=e, fix="pip install onnxruntime") from e
    return onnxruntime


def load_onnx(path: Path, device: str = "auto") -> Predictor:
    """A predictor of an exported ``.onnx`` file.

    Raises:
        ConfigError: no such file, or no ONNX Runtime. CheckpointError: not ONNX, or not exported by this project.
    """
    if not path.is_file():
        raise ConfigError(f"no model file {path}", expected="a .onnx file", fix="check the path")
    onnxruntime = _runtime()
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it would write to stderr comes as an exception, too
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=_providers(onnxruntime, device))
        names = [o.name for o in session.get_outputs()]
        text = session.get_modelmeta().custom_metadata_map.get(KEY, "null")
    except Exception as e:  # ONNX Runtime raises classes of its own that share no base but Exception
        raise CheckpointError(f"{path} cannot be read as ONNX", got=clean(str(e).splitlines()[0])) from e
    if names != list(OUTPUTS):
        raise CheckpointError(
            f"{path} is no detector of this project", got=f"outputs {clean(', '.join(names))}",
            expected=", ".join(OUTPUTS), fix="maskrcnn-coco export CHECKPOINT --format onnx",
        )  # fmt: skip
    return Predictor(OnnxEngine(session), card_of(_json(text)))


def _providers(runtime: Any, device: str) -> list[Any]:
    kind, _, number = device.partition(":")
    if kind == "auto":
        return runtime.get_available_providers()
    wanted: list[Any] = (
        [(_PROVIDERS[kind], {"device_id": number or "0"} if kind == "cuda" else {})] if kind in _PROVIDERS else []
    )
    return [*wanted, "CPUExecutionProvider"]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
