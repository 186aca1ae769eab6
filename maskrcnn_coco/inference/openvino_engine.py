"""An exported OpenVINO model (``.xml`` beside ``.bin``) behind a `Predictor`. No torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.inference.detections import Found
from maskrcnn_coco.inference.metadata import KEY, card_of
from maskrcnn_coco.inference.onnx_engine import OUTPUTS, as_array, found_in_arrays
from maskrcnn_coco.inference.predictor import Predictor
from maskrcnn_coco.wording import clean


class OpenVinoEngine:
    """A model compiled for the CPU, image by image."""

    batch_size = 1

    def __init__(self, model: Any) -> None:
        self.model = model

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each."""
        found = []
        for image in images:
            out = self.model([as_array(image)])
            one = found_in_arrays([out[name] for name in OUTPUTS])
            # Where there is no object, the graph answers with a stand-in of score -1: see export_heads.
            found.append(one.at(np.flatnonzero(one.scores > 0)))
        return found


def load_openvino(path: Path) -> Predictor:
    """A predictor of an exported ``.xml`` file with its ``.bin`` beside it.

    Raises:
        ConfigError: no such file, or no OpenVINO. CheckpointError: not of OpenVINO, or not exported by this project.
    """
    if not path.is_file():
        raise ConfigError(f"no model file {path}", expected="a .xml file", fix="check the path")
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as e:
        raise ConfigError("running OpenVINO models needs openvino", got=e, fix="pip install openvino") from e
    core = openvino.Core()
    try:
        model = core.read_model(path)
        text = model.get_rt_info([KEY]).astype(str) if model.has_rt_info([KEY]) else "null"
        # Float32 throughout: on CPUs with bfloat16 units OpenVINO would round more than the checkpoint does.
        compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as e:
        raise CheckpointError(f"{path} cannot be read by OpenVINO", got=clean(str(e).splitlines()[0])) from e
    try:
        card = card_of(json.loads(text))
    except ValueError as e:
        raise CheckpointError(f"{path} does not say its classes", fix="maskrcnn-coco export CHECKPOINT") from e
    return Predictor(OpenVinoEngine(compiled), card)
