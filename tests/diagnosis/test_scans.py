"""Scans: every impossible value is found and named, and no possible one is called certain."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from nanbench.tiny import sample, tiny_detector, tiny_model
from nanbench.tiny_parts import CLASSES, SIZE
from tiny_run import TinyRun
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator

from maskrcnn_coco.components import component_of
from maskrcnn_coco.data.batch import Batch
from maskrcnn_coco.data.plan import SampleKey
from maskrcnn_coco.diagnosis.scan_batch import scan_anchors, scan_images, scan_targets
from maskrcnn_coco.diagnosis.scan_state import began_at_zero, scan_state
from maskrcnn_coco.replay.snapshot import take


def batch_of(*ids: int) -> Batch:
    pairs = [sample(i) for i in ids]
    return Batch([i for i, _ in pairs], [t for _, t in pairs], [SampleKey(0, i, i) for i in ids])


def state_of(run: TinyRun):
    names = {id(p): n for n, p in run.model.named_parameters()}
    order = [names[id(p)] for g in run.optimizer.param_groups for p in g["params"]]
    return scan_state(take(run.model, run.optimizer, run.scaler, step=0, epoch=0), run.model, order, component_of)


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_healthy_run_has_no_fault(kind: str):
    run = TinyRun(kind=kind, lr=dict.fromkeys(("backbone", "rpn", "box_head", "mask_head"), 1e-3))
    for step in range(3):
        run.step(step)
        assert state_of(run) == []
    assert scan_anchors(run.model) == []
    batch = run.batches(3)[0]
    assert scan_targets(batch, CLASSES) == [] and scan_images(batch, run.model.transform) == []


def test_decoys_are_no_faults():
    batch = batch_of(1, 2, 3)
    batch.targets[0]["boxes"] = batch.targets[0]["boxes"] + 500
    batch.targets[1]["boxes"] = torch.tensor([[5.0, 5.0, 5.0 + 1e-4, 5.001], [1, 1, 9, 9]])
    batch.images[2], batch.targets[2] = sample(3, objects=0)
    assert scan_targets(batch, CLASSES) == []


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ([math.nan, 0, 5, 5], "not finite"),
        ([0, 0, math.inf, 5], "not finite"),
        ([9, 9, 3, 12], "inverted"),
        ([3, 3, 3, 9], "empty"),
        ([0, 0, 1e9, 5], "outside any image"),
    ],
)
def test_boxes(box: list[float], word: str):
    batch = batch_of(4, 5)
    batch.targets[1]["boxes"][1] = torch.tensor(box)
    (fault,) = scan_targets(batch, CLASSES)
    assert (fault.code, fault.image_id, fault.annotation_id, fault.lethal) == ("DATA_BOX", 5, 51, True)
    assert word in fault.what


@pytest.mark.parametrize(("label", "lethal"), [(0, False), (-1, False), (CLASSES, True), (99, True)])
def test_labels(label: int, lethal: bool):
    batch = batch_of(4)
    batch.targets[0]["labels"][0] = label
    (fault,) = scan_targets(batch, CLASSES)
    assert (fault.code, fault.annotation_id, fault.lethal) == ("DATA_LABEL", 40, lethal)


def test_masks():
    batch = batch_of(4, 5, 6)
    batch.targets[0]["masks"] = batch.targets[0]["masks"] * 255
    batch.targets[1]["masks"][1] = 0
    batch.targets[2]["masks"] = torch.zeros(2, SIZE, SIZE // 2, dtype=torch.uint8)
    found = scan_targets(batch, CLASSES)
    assert [(f.image_id, f.annotation_id, f.repairable) for f in found] == [
        (4, 40, True),
        (4, 41, True),
        (5, 51, False),
        (6, None, False),
    ]
    assert not any(f.lethal for f in found)


def test_images_before_and_after_the_transform():
    model = tiny_model()
    batch = batch_of(4, 5, 6)
    batch.images[0][1, 2, 3] = math.inf
    batch.images[1] *= 255
    found = scan_images(batch, model.transform)
    assert [(f.image_id, f.when, f.lethal, f.scale) for f in found] == [
        (4, "before", True, None),
        (5, "before", False, 255.0),
    ]
    model.transform.image_std = [0.2, 0.2, 0.0]
    after = scan_images(batch_of(7), model.transform)
    assert after[0].when == "after" and "image_std" in after[0].what


def test_uint8_images_are_scaled_by_nature():
    batch = batch_of(4)
    batch.images[0] = torch.full((3, SIZE, SIZE), 255, dtype=torch.uint8)
    assert scan_images(batch, tiny_model().transform) == []


def test_anchors():
    assert len(scan_anchors(tiny_model(anchors=((1,), (32,))))) == 1
    assert scan_anchors(tiny_model(anchors=((2,), (32,)))) == []
    assert scan_anchors(nn.Linear(2, 2)) == []


@pytest.mark.parametrize(
    ("scales", "found"), [([0.25, 0.5, 0.75], 0), ([0.0, 0.0, 0.0], 2), ([0.25, 0.5, math.nan], 1)]
)
def test_default_boxes_of_an_ssd(scales: list[float], found: int):
    """They were in no scan, and a division by their sides was said to be the loss's own fault."""
    model = tiny_detector("ssd", 0, anchors=DefaultBoxGenerator([[2], [2]], scales=scales))
    faults = scan_anchors(model)
    assert len(faults) == found and {f.module for f in faults} <= {"anchor_generator"}


def test_norm_statistics_by_sign_and_eps():
    model = tiny_model()
    model.backbone.body["layer2"][1].running_var[3] = -2e-5
    (fault,) = state_of(TinyRun(model=model))
    assert (fault.where, fault.module, fault.component, fault.certain) == (
        "norm",
        "backbone.body.layer2.1",
        "backbone",
        True,
    )


def test_norm_buffers_that_a_nan_image_left_behind():
    model = tiny_model(norm=nn.BatchNorm2d)
    model.backbone.body["layer2"][1].running_mean[:] = math.nan
    (fault,) = state_of(TinyRun(model=model))
    assert fault.where == "norm" and fault.certain and "16 of 16" in fault.what


def test_a_zero_kernel_is_suspicious_and_not_certain():
    model = tiny_model()
    nn.init.zeros_(model.rpn.head.cls_logits.weight)
    (fault,) = state_of(TinyRun(model=model))
    assert (fault.component, fault.certain) == ("rpn", False)


def test_a_weight_that_began_at_zero_is_no_suspicion_where_nothing_was_loaded():
    run = TinyRun()
    sound = take(run.model, run.optimizer, run.scaler, step=0, epoch=0)
    weight = run.model.get_submodule("rpn").head.cls_logits.weight  # pyright: ignore
    nn.init.zeros_(weight)
    now = take(run.model, run.optimizer, run.scaler, step=1, epoch=0)
    case = SimpleNamespace(now=now, earlier=[now], settings={})
    assert began_at_zero(case) == ["rpn.head.cls_logits.weight"]
    case.settings = {"resume_path": "last.pth"}
    assert not began_at_zero(case)
    case.settings, case.earlier = {}, [now, sound]
    assert not began_at_zero(case)
