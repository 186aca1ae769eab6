"""A whole run, small enough for a test: the tiny shapes at 64 pixels, the small network, a dozen steps an epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torchvision.models.resnet import BasicBlock, ResNet

from maskrcnn_coco import Config, train
from maskrcnn_coco.model import build
from maskrcnn_coco.model.backbones import BODIES
from maskrcnn_coco.records import Result

NAME = "maskrcnn_resnet18_fpn"
NARROW = 8
"""Channels of the narrow network are this part of the usual ones."""
DETECTIONS = 10
"""Kept for an image in evaluation; no image has more objects. Nothing is asked of the hundred that an untrained network
fills, and their masks cost time."""


def loadable_model(seed: int = 0, classes: int = 4) -> torch.nn.Module:
    """The small network of the built-in shapes, from random weights: `load` builds it again from a checkpoint alone."""
    torch.manual_seed(seed)
    return build.build_model(NAME, classes, small=True, min_size=64, max_size=64, detections_per_image=DETECTIONS)


def tiny_model(seed: int = 0) -> torch.nn.Module:
    """The detector of the bench, with few detections: for whole runs, which evaluate it."""
    from nanbench import tiny  # not on the path of every process that uses this file

    model = tiny.tiny_model(seed)
    model.roi_heads.detections_per_img = DETECTIONS
    return model


class NarrowResNet(ResNet):
    """ResNet-18 by its names, with an eighth of its channels behind the stem."""

    def _make_layer(self, block: Any, planes: int, *args: Any, **kwargs: Any) -> torch.nn.Sequential:
        return super()._make_layer(block, planes // NARROW, *args, **kwargs)


@contextmanager
def narrow() -> Iterator[None]:
    """Within it the network of that name is narrow, 0.4 million weights for 14, for whoever builds it."""
    make = lambda weights, norm_layer: NarrowResNet(BasicBlock, [2, 2, 2, 2], norm_layer=norm_layer)  # noqa: E731
    body = replace(BODIES[NAME], make=make, widths=tuple(w // NARROW for w in BODIES[NAME].widths))
    size = replace(build.SMALL, channels=32, box_width=64, mask_layers=(32, 32), mask_width=32)
    with mock.patch.dict(BODIES, {NAME: body}), mock.patch.object(build, "SMALL", size):
        yield


def small_model(seed: int = 0, classes: int = 4) -> torch.nn.Module:
    """As `loadable_model`, and `narrow`. To `load` it is a caller's own model."""
    with narrow():
        return loadable_model(seed, classes)


class OwnData(torch.utils.data.Dataset):
    """A user's own data set: one bright square an image, ids from 100; ``bad`` images hold one NaN pixel."""

    def __init__(self, count: int = 12, bad: tuple[int, ...] = ()) -> None:
        self.count, self.bad = count, bad

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[torch.Tensor, dict[str, Any]]:
        image = torch.full((3, 64, 64), 0.2)
        x, y = 5 + 3 * (i % 8), 10 + 2 * (i % 10)
        image[:, y : y + 20, x : x + 24] = 0.9
        if i in self.bad:
            image[0, 3, 3] = math.nan
        mask = torch.zeros(1, 64, 64, dtype=torch.uint8)
        mask[0, y : y + 20, x : x + 24] = 1
        box = torch.tensor([[x, y, x + 24, y + 20]], dtype=torch.float32)
        return image, {"boxes": box, "labels": torch.tensor([1]), "masks": mask, "image_id": 100 + i}


def config(data: Path | None, out: Path, **changes: Any) -> Config:
    """Settings of a small run that writes below ``out``; without ``data`` of one on `OwnData`."""
    settings: dict[str, Any] = {
        "data": None if data is None else str(data),
        "num_classes": 2 if data is None else None,
        "model": "maskrcnn_resnet18_fpn",
        "weights": "none",
        "min_size": 64,
        "max_size": 64,
        "box_detections_per_image": DETECTIONS,
        "batch_size": 4,
        "epochs": 1,
        "lr": 2e-3,
        "head_lr_multiplier": 2.0,
        "warmup_steps": 2,
        "amp": "off",
        "workers": 0,
        "device": "cpu",
        "logdir": str(out / "run"),
        "checkpoint_dir": str(out / "checkpoints"),
    }
    return Config(**(settings | changes))


def run(data: Path, out: Path, *, model: torch.nn.Module | None = None, observers: Any = (), **changes: Any) -> Result:
    """Train a small run; see `config`."""
    return train(config(data, out, **changes), model=model or small_model(), observers=observers)


def lines(out: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The records of one kind in ``metrics.jsonl``."""
    text = (out / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    return [d for d in map(json.loads, text.splitlines()) if d["kind"] == kind]


def incidents(out: Path) -> list[dict[str, Any]]:
    """All incidents of a run, in order."""
    return [json.loads(p.read_text(encoding="utf-8")) for p in sorted((out / "run" / "incidents").glob("*.json"))]


def weights(path: Path) -> dict[str, torch.Tensor]:
    """The model weights of a checkpoint, as anybody would read them."""
    return torch.load(path, weights_only=True)["model"]
