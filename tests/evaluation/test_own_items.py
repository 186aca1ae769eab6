"""A validation set of one's own: what is plainly meant is read, the rest is left out by name, nothing ends a run."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nanbench.tiny import tiny_model
from PIL import Image
from torch import nn

from maskrcnn_coco.errors import DataError
from maskrcnn_coco.evaluation.evaluate import evaluate_model
from maskrcnn_coco.evaluation.own_items import read_item

SIZE = (40, 60)
RED = torch.zeros(3, *SIZE)
RED[0] = 1.0
MASK = torch.zeros(1, *SIZE, dtype=torch.uint8)
MASK[0, 5:25, 10:40] = 1
TARGET: dict[str, Any] = {
    "boxes": torch.tensor([[10.0, 5, 40, 25]]),
    "labels": torch.tensor([1]),
    "masks": MASK,
    "image_id": 7,
}


class Sees(nn.Module):
    """Finds the one object of `TARGET`, and fails on images that are no float32 (3, H, W)."""

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        for image in images:
            if image.dtype != torch.float32 or image.ndim != 3 or image.shape[0] != 3:
                raise ValueError("not an image")
            if image.shape[-1] == 61:
                raise RuntimeError("no 61 columns, please")
        return [
            {"boxes": TARGET["boxes"], "labels": TARGET["labels"], "scores": torch.ones(1), "masks": MASK[None].float()}
            for _ in images
        ]


class Own:
    def __init__(self, *items: Any) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        if isinstance(self.items[row], Exception):
            raise self.items[row]
        return self.items[row]


def without(key: str) -> dict[str, Any]:
    return {k: v for k, v in TARGET.items() if k != key}


MEANT = {
    "as it should be": (RED, TARGET),
    "bytes": ((RED * 255).to(torch.uint8), TARGET),
    "float64": (RED.double(), TARGET),
    "half": (RED.half(), TARGET),
    "bytes that went through arithmetic": ((RED * 255).to(torch.int64), TARGET),
    "16 bits": (torch.from_numpy((RED.numpy() * 65535).astype(np.uint16)), TARGET),
    "RGBA": (torch.cat([RED, torch.full((1, *SIZE), 0.5)]), TARGET),
    "an array (H, W, 3)": ((RED.permute(1, 2, 0).numpy() * 255).astype(np.uint8), TARGET),
    "a PIL image": (Image.new("RGB", SIZE[::-1], (255, 0, 0)), TARGET),
    "no boxes": (RED, without("boxes")),
    "no image id": (RED, without("image_id")),
    "an image id in words": (RED, {**TARGET, "image_id": "scan_7"}),
    "lists": (RED, {"boxes": [[10, 5, 40, 25]], "labels": [1], "masks": [MASK[0]]}),
    "masks (N, 1, H, W) of floats": (RED, {**TARGET, "masks": MASK[None].float()}),
    "crowd flags of another length": (RED, {**TARGET, "iscrowd": [0, 0, 0]}),
}


@pytest.mark.parametrize("name", MEANT)
def test_what_is_plainly_meant_is_read(name: str) -> None:
    item = read_item(Own(MEANT[name]), 0)
    assert torch.allclose(item.image, RED) and item.image.dtype == torch.float32
    assert item.boxes.tolist() == [[10, 5, 40, 25]] and item.labels.tolist() == [1]
    assert item.masks is not None and (item.masks == MASK.numpy().astype(bool)).all()
    result = evaluate_model(Sees(), Own(MEANT[name]), device="cpu")
    assert [result.metrics[m] for m in ("bbox/AP", "segm/AP")] == pytest.approx([1, 1]) and result.left_out == []


@pytest.mark.parametrize("shape", [SIZE, (1, *SIZE)])
def test_grey_is_spread(shape: tuple[int, ...]) -> None:
    item = read_item(Own((torch.full(shape, 0.25), TARGET)), 0)
    assert item.image.shape == (3, *SIZE) and (item.image == 0.25).all() and "grey" in item.notes[0]


REFUSED = {
    "raises": (ValueError("disk on fire"), "disk on fire"),
    "no pair": (RED, "not an image and a target"),
    "no target": ((RED, None), "not an image and a target"),
    "no labels": ((RED, without("labels")), "no labels"),
    "neither boxes nor masks": ((RED, {"labels": [1]}), "neither boxes nor masks"),
    "other numbers": ((RED, {**TARGET, "labels": torch.tensor([1, 1])}), "another number of labels"),
    "fewer masks": ((RED, {**TARGET, "masks": MASK[:0].expand(0, *SIZE)}), "another number of masks"),
    "masks of another size": ((RED, {**TARGET, "masks": MASK[:, :20]}), "another size than its image"),
    "boxes of three numbers": ((RED, {**TARGET, "boxes": torch.ones(1, 3)}), "shape"),
    "labels in words": ((RED, {**TARGET, "labels": ["cat"]}), "cannot be read"),
    "no pixels": ((torch.zeros(3, 0, 5), TARGET), "no height"),
    "five dimensions": ((torch.zeros(1, 1, 3, 4, 5), TARGET), "no height"),
    "whole numbers that are no brightness": ((torch.full((3, *SIZE), 3000), TARGET), "no brightness"),
    "text": (("a.png", TARGET), "cannot be read"),
    "the model cannot take it": ((torch.zeros(3, 40, 61), {**TARGET, "masks": torch.zeros(1, 40, 61)}), "no 61"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_left_out_by_name_and_the_others_count(name: str) -> None:
    item, says = REFUSED[name]
    result = evaluate_model(Sees(), Own((RED, TARGET), item, (RED, TARGET)), device="cpu", batch_size=3)
    assert result.metrics["segm/AP"] == pytest.approx(1.0) and result.images == 2
    assert len(result.left_out) == 1 and says in result.left_out[0]
    assert "item 1" in result.left_out[0] or "image 7" in result.left_out[0]
    with pytest.raises(DataError, match="none of the 1 images"):
        evaluate_model(Sees(), Own(item), device="cpu")


def test_conversions_are_said_once_with_their_number() -> None:
    grey = (torch.zeros(1, *SIZE), TARGET)
    result = evaluate_model(Sees(), Own(grey, grey, (RED, TARGET)), device="cpu")
    assert result.notes == ["grey images are spread to three colours (2 of them)"]


def test_running_out_of_memory_is_not_the_fault_of_an_image() -> None:
    class Full(nn.Module):
        def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
            raise RuntimeError("CUDA out of memory: tried to allocate")

    with pytest.raises(RuntimeError, match="out of memory"):
        evaluate_model(Full(), Own((RED, TARGET)), device="cpu")


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 3000)])
def test_an_image_too_thin_to_resize_is_left_out_by_name(size: tuple[int, int]) -> None:
    model = tiny_model()
    result = evaluate_model(
        model, Own((RED, TARGET), (torch.rand(3, *size), without("masks")), (RED, TARGET)), device="cpu"
    )
    assert result.images == 2 and len(result.left_out) == 1
    assert f"{size[1]}×{size[0]}" in result.left_out[0] and "too thin" in result.left_out[0]
