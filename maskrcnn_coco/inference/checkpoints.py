"""Predictors of torch: from a checkpoint of a run, a torchvision state dict, or TorchScript."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from maskrcnn_coco.data.bit_range import saved_range
from maskrcnn_coco.data.classes import named_classes
from maskrcnn_coco.distributed.device import resolve_device
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.inference.card import Card, card_of
from maskrcnn_coco.inference.predictor import Predictor
from maskrcnn_coco.inference.torch_engine import TorchEngine
from maskrcnn_coco.model.build import classes_in, load_for_inference
from maskrcnn_coco.system.precision import resolve_amp

CARD_FILE = "card.json"
"""The card's name within a TorchScript file."""


def load_checkpoint(path: Path, device: str = "auto", *, fast: bool = True, precision: str = "auto") -> Predictor:
    """See `predictor.load`."""
    where = resolve_device(device, Ranks.start(device))
    amp = resolve_amp(precision, where)
    model, contents = load_for_inference(path, fast=fast)
    return Predictor(TorchEngine(model, where, amp), checkpoint_card(model, contents))


def checkpoint_card(model: Any, contents: Mapping[str, Any]) -> Card:
    """What a checkpoint says of the model in it."""
    classes = named_classes(contents, classes_in(model))
    ids = tuple(classes.id_of(n) for n in range(1, len(classes.names) + 1))
    size = contents.get("image_size")
    known = isinstance(size, (list, tuple)) and len(size) == 2 and all(type(s) is int and s >= 32 for s in size)
    side = max(size) if known and size is not None else int(model.transform.min_size[-1])
    return Card(classes.names, ids, side, saved_range(contents))


class _Scripted(nn.Module):
    """A TorchScript detector as torchvision's eager one answers: detections only, without the empty losses."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        return self.inner(images)[1]


def load_torchscript(path: Path, device: str = "auto") -> Predictor:
    """A predictor of an exported ``.torchscript`` file.

    Raises:
        ConfigError: no such file. CheckpointError: not TorchScript, or not exported by this project.
    """
    if not path.is_file():
        raise ConfigError(f"no model file {path}", expected="a .torchscript file", fix="check the path")
    where = resolve_device(device, Ranks.start(device))
    extra = {CARD_FILE: ""}
    try:
        if not zipfile.is_zipfile(path):
            raise RuntimeError("not an archive")
        inner = torch.jit.load(path, map_location=where, _extra_files=extra)
        card = card_of(json.loads(extra[CARD_FILE]))
    except (RuntimeError, ValueError, OSError) as e:
        raise CheckpointError(
            f"{path} is no exported detector",
            got=str(e).splitlines()[0],
            fix="maskrcnn-coco export CHECKPOINT --format torchscript",
        ) from e
    engine = TorchEngine(_Scripted(inner), where)
    return Predictor(engine, card)
