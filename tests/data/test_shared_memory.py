"""What comes out of a parcel is what went in."""

from __future__ import annotations

import pickle

import pytest
import torch
from torchvision import tv_tensors

from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.data.shared_memory import Parcel, pack


def batch_of(**target) -> Batch:
    image = torch.arange(3 * 301 * 303, dtype=torch.uint8).reshape(3, 301, 303)
    return Batch([image], [target], [SampleKey(1, 2, 3)], resized=True)


@pytest.mark.parametrize("count", [0, 1, 3, 4])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool, torch.float32])
def test_masks_come_back(count: int, dtype: torch.dtype):
    masks = torch.zeros(count, 301, 303, dtype=dtype)
    for n in range(count - 1):  # the last one stays empty
        masks[n, 5 + n : 90, 300 - 7 * n : 303] = 1
    batch = batch_of(masks=masks)
    found = pack([batch]).open()[0].targets[0]["masks"]
    assert found.dtype == dtype and torch.equal(found, masks)


def test_only_windows_travel():
    masks = torch.zeros(20, 301, 303, dtype=torch.uint8)
    masks[:, 10:30, 40:60] = 1
    image = batch_of().images[0].numel()
    assert pack([batch_of(masks=masks)]).buffer.numel() < image + 20 * 64 * 20


def test_everything_else_comes_back_unchanged():
    odd = torch.arange(24.0, dtype=torch.float64).reshape(4, 6).T[::2]
    nan = torch.tensor([1.0, float("nan"), float("inf")])
    boxes = tv_tensors.BoundingBoxes(torch.ones(1, 4), format="XYXY", canvas_size=(9, 9))  # type: ignore[call-overload]
    given = {"odd": odd, "nan": nan, "empty": torch.zeros(0, 4), "scalar": torch.tensor(7), "id": 5, "boxes": boxes}
    batch = batch_of(**given, nested=[torch.ones(2)])
    parcel = pack([batch, batch])
    assert parcel.buffer.is_shared()
    back = parcel.open()[1]
    assert torch.equal(back.images[0], batch.images[0]) and back.keys == batch.keys and back.resized
    found = back.targets[0]
    for name in ("odd", "empty", "scalar"):
        assert found[name].dtype == given[name].dtype and torch.equal(found[name], given[name])
    assert torch.equal(found["nan"].nan_to_num(), nan.nan_to_num()) and found["nan"][1].isnan()
    assert found["id"] == 5 and isinstance(found["boxes"], tv_tensors.BoundingBoxes) and len(found["nested"]) == 1


def test_an_empty_parcel():
    parcel = pack([Batch([], [{}], [])])
    assert isinstance(parcel, Parcel) and parcel.open()[0].targets == [{}]
    assert pickle.dumps(parcel.batches)
