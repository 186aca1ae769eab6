"""Fine-tune Mask R-CNN on COCO-format data; no run is lost, not to NaN and not in silence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskrcnn_coco.anywhere.attach import attach as attach
    from maskrcnn_coco.anywhere.guard import Guard as Guard
    from maskrcnn_coco.config.settings import Config as Config
    from maskrcnn_coco.errors import FindingWarning as FindingWarning
    from maskrcnn_coco.guard.train_one_epoch import train_one_epoch as train_one_epoch
    from maskrcnn_coco.inference.load import load as load
    from maskrcnn_coco.training.loop import train as train

__version__ = "0.1.0"
__all__ = ["Config", "FindingWarning", "Guard", "attach", "load", "train", "train_one_epoch"]

_HOMES = {
    "Config": "config.settings",
    "FindingWarning": "errors",
    "Guard": "anywhere.guard",
    "attach": "anywhere.attach",
    "load": "inference.load",
    "train": "training.loop",
    "train_one_epoch": "guard.train_one_epoch",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that importing the package (for --help, check, explain) does not import torch.
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(f"maskrcnn_coco.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'maskrcnn_coco' has no attribute {name!r}")
