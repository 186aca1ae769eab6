"""`load`: a model file of any kind, behind a `Predictor`. Each engine is imported when it is asked for. No torch."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from maskrcnn_coco.errors import ConfigError
from maskrcnn_coco.inference.predictor import Predictor
from maskrcnn_coco.wording import clean


def load(path: str | Path, device: Any = "auto", *, fast: bool = True, precision: str = "auto") -> Predictor:
    """A model ready to `predict`.

    Args:
        path: a checkpoint (.pth, .safetensors), an exported model (.onnx, .xml, .torchscript), or a folder that `push`
            wrote or that was downloaded from the hub.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", or a torch.device.
        fast: the same numbers in less time; False: torchvision's own classes throughout, for tracing and export.
        precision: "auto", "off" (float32), "bf16" or "fp16": of a checkpoint's model only.

    Raises:
        ConfigError: no such file or device, a package that is missing. CheckpointError: damaged, or of another model.
    """
    path = _model_file(path)
    kind = path.suffix.lower()
    if kind in (".onnx", ".xml"):
        _check_exported_device(str(device), kind)
    if kind == ".onnx":
        from maskrcnn_coco.inference.onnx_engine import load_onnx

        return load_onnx(path, str(device))
    if kind == ".xml":
        from maskrcnn_coco.inference.openvino_engine import load_openvino

        return load_openvino(path)
    from maskrcnn_coco.inference.checkpoints import load_checkpoint, load_torchscript

    if kind == ".torchscript":
        return load_torchscript(path, str(device))
    return load_checkpoint(path, str(device), fast=fast, precision=precision)


def _model_file(given: Any) -> Path:
    """The path of a model file; a folder is answered with the file in it that was probably meant."""
    if not isinstance(given, (str, PathLike)) or not str(given).strip():
        raise ConfigError("no model file is named", got=repr(given), expected="the path of a checkpoint")
    if str(given).startswith(("http:", "https:", "s3:", "gs:", "hf:")):
        raise ConfigError(f"{given} is an address, and nothing is downloaded", fix="download the file, name its path")
    path = Path(given).expanduser()
    if path.is_dir() and not (path / "model.safetensors").is_file():  # a folder in the hub's layout is a model
        inside = [p for n in ("best.pth", "last.pth", "model.onnx") if (p := path / n).is_file()]
        raise ConfigError(
            f"{clean(path)} is a folder, and no model file", expected="a .pth, .safetensors or exported model",
            fix=f"name the file: {inside[0]}" if inside else "name a checkpoint",
        )  # fmt: skip
    return path


def _check_exported_device(device: str, kind: str) -> None:
    """A device that the runtime cannot take is refused: it would compute on the CPU in silence."""
    if kind == ".onnx":
        from maskrcnn_coco.inference.onnx_engine import devices

        known = devices()
    else:
        known = ("auto", "cpu")
    if device.partition(":")[0] not in known:
        runtime = "the ONNX Runtime installed here" if kind == ".onnx" else "the OpenVINO runtime of this project"
        raise ConfigError(f"--device {device}: {runtime} has no such device", expected=", ".join(known))
