"""COCO's run-length masks in native code: the one door to hotcoco, or where it is absent to pycocotools or
faster-coco-eval, whose numbers are the same. No torch.

Masks are dicts ``{"size": [height, width], "counts": bytes}``; ``iou`` and ``bbox_iou`` answer float64 (found, truth).
"""

from __future__ import annotations

from typing import Any

import numpy as np

try:
    from hotcoco.mask import (  # pyright: ignore[reportMissingModuleSource]
        area,
        bbox_iou,
        decode,
        encode,
        fr_py_objects,
        iou,  # pyright: ignore[reportAssignmentType]
        merge,
        to_bbox,
    )  # fmt: skip

    ENGINE = "hotcoco"
except ImportError as absent:
    try:
        import pycocotools.mask as second

        ENGINE = "pycocotools"
    except ImportError:
        try:
            import faster_coco_eval.core.mask as second  # pyright: ignore[reportMissingImports]

            ENGINE = "faster-coco-eval"
        except ImportError:
            raise absent from None

    area, decode, encode, merge = second.area, second.decode, second.encode, second.merge
    fr_py_objects, to_bbox = second.frPyObjects, second.toBbox

    def iou(found: list[Any], truth: list[Any], crowd: list[Any]) -> np.ndarray:
        """IoU of masks, or of boxes (xywh); of a crowd, the share of what was found that lies in it."""
        if not found or not truth:
            return np.zeros((len(found), len(truth)))
        return np.asarray(second.iou(found, truth, [bool(c) for c in crowd]), np.float64)

    bbox_iou = iou

__all__ = ["ENGINE", "area", "bbox_iou", "decode", "encode", "fr_py_objects", "iou", "merge", "to_bbox"]
