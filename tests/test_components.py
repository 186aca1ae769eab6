"""Every trainable parameter belongs to exactly one component, whatever wraps the model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from maskrcnn_coco.components import component_of, components, plain_name
from maskrcnn_coco.records import COMPONENTS, RATE_SETTINGS
from maskrcnn_coco.wording import rate_flag


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("backbone.body.layer1.0.conv1.weight", "backbone"),
        ("rpn.head.cls_logits.bias", "rpn"),
        ("roi_heads.box_head.fc6.weight", "box_head"),
        ("roi_heads.box_predictor.bbox_pred.weight", "box_head"),
        ("roi_heads.mask_predictor.conv5_mask.weight", "mask_head"),
        ("roi_heads.keypoint_head.0.weight", "keypoint_head"),
        ("module.roi_heads.mask_head.0.0.weight", "mask_head"),
        ("_orig_mod.module.rpn.head.conv.weight", "rpn"),
        ("encoder.layer.0.weight", "encoder"),
    ],
)
def test_the_component_of_a_name(name: str, component: str) -> None:
    assert component_of(name) == component


def test_a_partition_in_torchvision_s_order_whatever_the_order_of_the_modules() -> None:
    model = nn.Module()
    model.rpn, model.extra, model.backbone = nn.Linear(1, 1), nn.Linear(1, 1), nn.Linear(2, 2)
    model.scale = nn.Parameter(torch.ones(1))
    model.extra.bias.requires_grad_(False)
    found = components(model)
    assert list(found) == ["backbone", "rpn", "model", "extra"] or list(found)[:2] == ["backbone", "rpn"]
    held = [id(p) for group in found.values() for p in group.values()]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_a_shared_weight_is_counted_once() -> None:
    model = nn.Module()
    model.a = nn.Linear(2, 2)
    model.b = nn.Linear(2, 2)
    model.b.weight = model.a.weight
    assert sum(len(group) for group in components(model).values()) == 3


def test_wrappers_leave_the_name() -> None:
    assert plain_name("module._orig_mod.backbone.weight") == "backbone.weight"


def test_each_component_has_the_flag_of_its_rate() -> None:
    assert tuple(RATE_SETTINGS) == COMPONENTS
    assert [rate_flag(c) for c in (*COMPONENTS, "encoder")] == [
        "--lr", "--rpn-lr-multiplier", "--head-lr-multiplier", "--head-lr-multiplier", "--lr"
    ]  # fmt: skip
