"""What torchvision does not promise and this project uses: there, and of the shape expected."""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path

import pytest
import torch
from torchvision.models.detection import _utils, roi_heads, rpn, transform
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign, poolers

PACKAGE = Path(__file__).resolve().parents[2] / "maskrcnn_coco"
SIGNATURES = {
    poolers._setup_scales: ["features", "image_shapes", "canonical_scale", "canonical_level"],
    _utils.encode_boxes: ["reference_boxes", "proposals", "weights"],
    _utils.BoxCoder.encode: ["self", "reference_boxes", "proposals"],
    _utils.BoxCoder.decode: ["self", "rel_codes", "boxes"],
    _utils.Matcher.__call__: ["self", "match_quality_matrix"],
    _utils.BalancedPositiveNegativeSampler.__call__: ["self", "matched_idxs"],
    rpn.RegionProposalNetwork.forward: ["self", "images", "features", "targets"],
    rpn.RegionProposalNetwork.filter_proposals: [
        *("self", "proposals", "objectness", "image_shapes", "num_anchors_per_level")
    ],
    rpn.RegionProposalNetwork.assign_targets_to_anchors: ["self", "anchors", "targets"],
    rpn.RegionProposalNetwork.compute_loss: [
        *("self", "objectness", "pred_bbox_deltas", "labels", "regression_targets")
    ],
    rpn.concat_box_prediction_layers: ["box_cls", "box_regression"],
    roi_heads.RoIHeads.forward: ["self", "features", "proposals", "image_shapes", "targets"],
    roi_heads.RoIHeads.select_training_samples: ["self", "proposals", "targets"],
    roi_heads.RoIHeads.postprocess_detections: [
        *("self", "class_logits", "box_regression", "proposals", "image_shapes")
    ],
    roi_heads.project_masks_on_boxes: ["gt_masks", "boxes", "matched_idxs", "M"],
    roi_heads.expand_boxes: ["boxes", "scale"],
    roi_heads.expand_masks: ["mask", "padding"],
    transform.GeneralizedRCNNTransform.forward: ["self", "images", "targets"],
    transform.GeneralizedRCNNTransform.resize: ["self", "image", "target"],
    transform.GeneralizedRCNNTransform.batch_images: ["self", "images", "size_divisible"],
    transform.resize_boxes: ["boxes", "original_size", "new_size"],
    MultiScaleRoIAlign.forward: ["self", "x", "boxes", "image_shapes"],
    FrozenBatchNorm2d.forward: ["self", "x"],
    AnchorGenerator.forward: ["self", "image_list", "feature_maps"],
}


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda f: f.__qualname__)
def test_a_function_takes_what_it_took(function: object):
    assert list(inspect.signature(function).parameters) == SIGNATURES[function]  # type: ignore[arg-type, index]


def test_every_name_that_is_imported_is_there():
    asked = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torchvision"):
                asked |= {(node.module, alias.name) for alias in node.names}
    assert len(asked) > 30
    missing = [f"{m}.{n}" for m, n in sorted(asked) if not hasattr(importlib.import_module(str(m)), n)]
    assert missing == [] or all(importlib.import_module(name) for name in missing)


def test_boxes_are_coded_as_torchvision_codes_them():
    coder = _utils.BoxCoder((10.0, 10.0, 5.0, 5.0))
    boxes = torch.tensor([[0.0, 0.0, 10.0, 20.0]])
    codes = coder.encode([boxes + 1], [boxes])
    assert [c.shape for c in codes] == [(1, 4)]
    assert torch.allclose(coder.decode(codes[0], [boxes])[:, 0], boxes + 1, atol=1e-4)
    assert coder.weights == (10.0, 10.0, 5.0, 5.0)
    assert 4.1 < coder.bbox_xform_clip < 4.2


def test_the_levels_of_a_pyramid_are_found_as_before():
    scales, mapper = poolers._setup_scales(
        [torch.zeros(1, 1, 64 >> i, 64 >> i) for i in range(4)], [(256, 256)], 224, 4
    )
    assert scales == [0.25, 0.125, 0.0625, 0.03125]
    assert mapper([torch.tensor([[0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 10.0, 10.0]])]).tolist() == [2, 0]
    assert (_utils.Matcher.BELOW_LOW_THRESHOLD, _utils.Matcher.BETWEEN_THRESHOLDS) == (-1, -2)
