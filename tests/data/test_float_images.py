"""Images of a data set of one's own in another precision than float32: trained on and evaluated as they are meant."""

from __future__ import annotations

import pytest
import torch
from runs import OwnData, config, small_model

from maskrcnn_coco import train
from maskrcnn_coco.data.user_data import UserData


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
