"""Predictors of torch: from a checkpoint of a run, a torchvision state dict, or TorchScript."""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn_coco.data.bit_range import saved_range
from maskrcnn_coco.data.classes import named_classes
from maskrcnn_coco.data.orientation import saved_orientation
from maskrcnn_coco.distributed.device import resolve_device
from maskrcnn_coco.distributed.ranks import Ranks
from maskrcnn_coco.errors import CheckpointError, ConfigError
from maskrcnn_coco.inference.detections import Found
from maskrcnn_coco.inference.metadata import Card, card_of
from maskrcnn_coco.inference.predictor import Predictor
from maskrcnn_coco.inference.torch_engine import TorchEngine, as_tensor, found_in
from maskrcnn_coco.model.build import classes_in, load_for_inference
from maskrcnn_coco.system.precision import resolve_amp

CARD_FILE = "card.json"
"""The card's name within a TorchScript file."""


def load_checkpoint(path: Path, device: str = "auto", *, fast: bool = True, precision: str = "auto") -> Predictor:
    """See `predictor.load`."""
    ranks = Ranks.start(device)
    where = resolve_device(device, ranks.world, ranks.local_rank)
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
    return Card(classes.names, ids, side, saved_range(contents), as_stored=bool(saved_orientation(contents)))


class ScriptEngine:
    """A TorchScript detector, image by image; ``model`` answers (empty losses, detections)."""

    batch_size = 1

    def __init__(self, model: Any, device: torch.device) -> None:
        self.model, self.device = model, device

    def run(self, images: Sequence[np.ndarray]) -> list[Found]:
        """What is found on images, uint8 (H, W, 3) each."""
        found = []
        for image in images:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says at each first call that it answers losses, too
                (output,) = self.model([as_tensor(image).to(self.device)])[1]
            found.append(found_in(output, *image.shape[:2]))
        return found


def load_torchscript(path: Path, device: str = "auto") -> Predictor:
    """A predictor of an exported ``.torchscript`` file.

    Raises:
        ConfigError: no such file. CheckpointError: not TorchScript, or not exported by this project.
    """
    if not path.is_file():
        raise ConfigError(f"no model file {path}", expected="a .torchscript file", fix="check the path")
    ranks = Ranks.start(device)
    where = resolve_device(device, ranks.world, ranks.local_rank)
    extra = {CARD_FILE: ""}
    try:
        if not zipfile.is_zipfile(path):
            raise RuntimeError("not an archive")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch would rather have torch.export, which cannot do this
            inner = torch.jit.load(path, map_location=where, _extra_files=extra)
        card = card_of(json.loads(extra[CARD_FILE]))
    except (RuntimeError, ValueError, OSError) as e:
        raise CheckpointError(
            f"{path} is no exported detector",
            got=str(e).splitlines()[0],
            fix="maskrcnn-coco export CHECKPOINT --format torchscript",
        ) from e
    return Predictor(ScriptEngine(inner.eval(), where), card)
