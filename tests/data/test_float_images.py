"""Images of a data set of one's own in another precision than float32: trained on and evaluated as they are meant."""

from __future__ import annotations

import pytest
import torch
from runs import OwnData, config, small_model

from maskrcnn_coco import train
from maskrcnn_coco.data.user_data import UserData
from maskrcnn_coco.errors import ConfigError


class Other(OwnData):
    """Images of ``dtype``."""

    def __init__(self, dtype: torch.dtype, count: int = 8) -> None:
        super().__init__(count)
        self.dtype = dtype

    def __getitem__(self, i):
        image, target = super().__getitem__(i)
        return image.to(self.dtype), target


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
def test_a_sample_is_float32_with_the_same_values(dtype):
    image, _ = UserData(Other(dtype)).sample(0, 3)
    expected = OwnData(8)[3][0].to(dtype).float()
    assert image.dtype == torch.float32 and torch.equal(image, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_a_run_trains_and_evaluates_on_them(dtype, tmp_path):
    settings, model = config(None, tmp_path), small_model(classes=2)
    result = train(settings, model=model, train_data=Other(dtype), val_data=Other(dtype, 3), quiet=True)
    assert (result.exit_code, result.incidents, result.findings) == (0, [], [])
    assert "segm/AP" in result.metrics


def test_whole_numbers_stay_what_they_are():
    assert UserData(Other(torch.uint8)).sample(0, 0)[0].dtype == torch.uint8


class Numbers(OwnData):
    """Boxes of ``dtype``, and images that ask for a gradient."""

    def __init__(self, dtype: torch.dtype, count: int = 8) -> None:
        super().__init__(count)
        self.dtype = dtype

    def __getitem__(self, i):
        image, target = super().__getitem__(i)
        return image.requires_grad_(), target | {"boxes": target["boxes"].round().to(self.dtype)}


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64, torch.float16])
def test_boxes_of_whole_numbers_and_images_with_a_gradient_are_trained_on(dtype, tmp_path):
    """COCO's boxes are often whole numbers: the run ended at its first step, with every batch to blame."""
    data = Numbers(dtype)
    image, target = UserData(data).sample(0, 3)
    assert target["boxes"].dtype == torch.float32 and torch.equal(target["boxes"], data[3][1]["boxes"].float())
    assert not image.requires_grad and image.is_leaf
    settings, model = config(None, tmp_path), small_model(classes=2)
    result = train(settings, model=model, train_data=data, val_data=Numbers(dtype, 3), quiet=True)
    assert (result.exit_code, result.incidents) == (0, [])


def test_a_loader_is_told_from_its_data_set(tmp_path):
    data = OwnData(8)
    loader = torch.utils.data.DataLoader(data, batch_size=2, collate_fn=list)
    for given in ({"train_data": loader}, {"train_data": data, "val_data": loader}):
        with pytest.raises(ConfigError, match="a loader of batches") as error:
            train(config(None, tmp_path), model=small_model(classes=2), quiet=True, **given)
        assert "loader.dataset" in str(error.value.fix)
