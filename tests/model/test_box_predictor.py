"""Boxes keep their exactness under autocast: torchvision's own arithmetic rounds them to the dtype of the deltas."""

from __future__ import annotations

import torch

from maskrcnn_coco.model.build import build_model


def detector() -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model("maskrcnn_resnet18_fpn", 3, small=True, min_size=320, max_size=320)


def small_object_far_from_the_origin() -> tuple[list[torch.Tensor], list[dict[str, torch.Tensor]]]:
    """A box of 0.8 pixels at 300: bfloat16 has no two different numbers for its sides."""
    mask = torch.zeros(2, 320, 320, dtype=torch.uint8)
    mask[0, 300, 300] = 1
    mask[1, 20:80, 30:90] = 1
    boxes = torch.tensor([[300.1, 300.1, 300.9, 300.9], [30.0, 20.0, 90.0, 80.0]])
    assert (boxes[0, 2:].bfloat16() <= boxes[0, :2].bfloat16()).all()
    return [torch.rand(3, 320, 320)], [{"boxes": boxes, "labels": torch.tensor([1, 2]), "masks": mask}]


def test_a_small_object_far_from_the_origin_has_a_finite_loss_in_bf16():
    model = detector().train()
    images, targets = small_object_far_from_the_origin()
    for seed in range(3):
        torch.manual_seed(seed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = model(images, targets)
        assert all(torch.isfinite(v) for v in losses.values()), losses


def test_proposals_are_float32_under_autocast():
    model = detector().train()
    seen: list[torch.dtype] = []
    model.rpn.register_forward_hook(lambda _m, _i, out: seen.append(out[0][0].dtype))
    images, targets = small_object_far_from_the_origin()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(images, targets)
    assert seen == [torch.float32]


def test_detections_are_not_rounded_to_bf16():
    model = detector().eval()
    model.roi_heads.score_thresh = 0.0
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        boxes = model([torch.rand(3, 320, 320)])[0]["boxes"]
    assert len(boxes)
    assert not torch.equal(boxes, boxes.bfloat16().float())
