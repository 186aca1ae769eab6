"""A package that is not installed, or not of a version that fits, in a sentence: what it is for and how it comes."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys

from maskrcnn_coco.errors import ConfigError

CORE = (
    *("torch", "torchvision", "numpy", "PIL", "msgspec", "yaml", "hotcoco", "rich", "tensorboard", "jinja2"),
    *("safetensors", "filelock", "platformdirs"),
)
"""What ``pip install maskrcnn-coco`` brings."""
EXTRAS = {
    "onnx": "export",
    "onnxruntime": "export",
    "openvino": "export",
    "huggingface_hub": "hub",
    "mlflow": "mlflow",
    "wandb": "wandb",
    "trackio": "trackio",
    "lightning": "lightning",
    "pytorch_lightning": "lightning",
    "transformers": "transformers",
    "av": "video",
}
"""Top-level module → the extra that brings it."""
_FITS = "torch>=2.10 and torchvision>=0.25 of the same release (2.10 goes with 0.25, 2.11 with 0.26)"


def missing(error: ImportError) -> ConfigError | None:
    """What a failed import means for a user; None where it is a fault of ours."""
    name = (error.name or "").partition(".")[0]
    if not name or name == "maskrcnn_coco":
        return None
    if isinstance(error, ModuleNotFoundError) and not _installed(name):
        return _not_installed(name)
    if name not in (*CORE, *EXTRAS):
        return None
    return ConfigError(
        f"the {name} installed here does not fit this version of maskrcnn-coco: {error.msg}",
        got=f"{name} {_version(name)}" + (f", torch {_version('torch')}" if name == "torchvision" else ""),
        expected=_FITS if name in ("torch", "torchvision") else None,
        fix="pip install 'torch==2.11.*' 'torchvision==0.26.*'"
        if name in ("torch", "torchvision")
        else f"pip install --upgrade {name}",
    )


def _not_installed(name: str) -> ConfigError:
    if name in ("torch", "torchvision"):
        return ConfigError(
            f"this verb computes with {name}, which is not installed",
            expected=_FITS,
            fix="pip install torch torchvision (check, convert, explain, report and diagnose INCIDENT work without)",
        )
    extra = EXTRAS.get(name)
    if extra is not None:
        return ConfigError(f"{name} is not installed", fix=f"pip install 'maskrcnn-coco[{extra}]'")
    return ConfigError(
        f"the package {name} is not installed in {sys.prefix}",
        fix="pip install --upgrade maskrcnn-coco" if name in CORE else f"pip install {name}",
    )


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _version(name: str) -> str:
    try:
        return importlib.metadata.version({"PIL": "pillow", "yaml": "pyyaml"}.get(name, name))
    except importlib.metadata.PackageNotFoundError:
        return "of an unknown version"
