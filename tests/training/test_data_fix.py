"""The fix of an incident fits the way in which the data came, and the finding that named the whole set goes first."""

from __future__ import annotations

import pytest
import torch
from runs import OwnData, config, incidents, small_model

from maskrcnn_coco import train
from maskrcnn_coco.training.data_fix import data_fix

CHECK = "maskrcnn-coco check --data PATH"
NAMED = {"code": "GEOMETRY", "severity": "warning", "fix": "boxes[:, 2:] += boxes[:, :2]"}


@pytest.mark.parametrize(
    ("cause", "fix", "images", "way", "flags", "findings", "said"),
    [
        ("DATA_BOX", CHECK, [7], "command", "--data 'a b' --images 'p q'", [], "--data 'a b' --images 'p q'"),
        ("DATA_BOX", CHECK, [7], "command", "--data set", [], "check --data set"),
        ("DATA_BOX", CHECK, [7], "command", "", [], CHECK),
        ("DATA_BOX", CHECK, [7], "own", "", [], "correct image 7 in the data set, or leave it out of it"),
        ("DATA_MASK", CHECK, [7, 9], "own", "", [], "images 7, 9 in the data set, or leave them out"),
        ("DATA_BOX", CHECK, [7], "own", "", [NAMED], NAMED["fix"]),
        ("DATA_LABEL", CHECK, [], "own", "", [NAMED], "correct the data"),
        ("DATA_BOX", CHECK, [7], "own", "", [NAMED | {"severity": "info"}], "correct image 7"),
        ("DATA_PIXEL", "divide the pixels by 255", [7], "own", "", [NAMED], "divide the pixels by 255"),
        ("LR_TOO_HIGH", "--lr 0.001", [], "own", "", [NAMED], "--lr 0.001"),
    ],
)  # fmt: skip
def test_what_to_do_is_something_the_caller_can_do(cause, fix, images, way, flags, findings, said):
    assert said in data_fix(cause, fix, images, way=way, flags=flags, findings=findings)


class Whole(OwnData):
    """Every box is x, y, width, height."""

    def __getitem__(self, i):
        image, target = super().__getitem__(i)
        target["boxes"][:, 2:] -= target["boxes"][:, :2]
        return image, target


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        (Whole(12), "boxes[:, 2:] += boxes[:, :2]"),
        (OwnData(12, bad=(5,)), "correct image 105 in the data set, or leave it out of it"),
    ],
)
def test_a_run_on_data_of_one_s_own_names_no_command_that_cannot_be_given(data, fix, tmp_path):
    torch.manual_seed(0)
    train(config(None, tmp_path), model=small_model(classes=2), train_data=data, quiet=True)
    found = incidents(tmp_path)
    assert found and {i["fix"] for i in found} == {fix}
