"""A bounding box that no detector can learn from.

What happens: a box with a NaN or infinite coordinate, of no width or height, or inverted reaches the loss.
  loss_rpn_box_reg and loss_box_reg become NaN or inf first, the classifier and objectness losses are still
  finite.
Why: the box regression targets hold log(width) and divisions by the width. Common origins: xywh read as xyxy, 0
  - 1 in an unsigned type (65535), a transform that moves a box off the image, a division by an image size of 0.
  A NaN coordinate passes torchvision's own check, because NaN <= x is false; an infinite one kills CPU
  roi_align without a traceback.
How it is proved: the annotations of the batch are scanned before the forward pass. The rest of the batch,
  without the named image, replays finite on the same weights at learning rate 0.
What the guard does: leaves the image (or the annotation) out, and takes the step again with a substitute.
How to fix it: `maskrcnn-coco check --data PATH` lists every such box with its file; correct or delete the
  annotations. Lowering the learning rate does not help.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import data_finding, replayed_data
from maskrcnn_coco.records import Finding

CODE = "DATA_BOX"
FIX = "maskrcnn-coco check --data PATH"


def judge(facts: Facts) -> Finding | None:
    hits = [t for t in facts.targets if t.code == CODE]
    terms = ("loss_box_reg", "loss_rpn_box_reg")
    return data_finding(facts, CODE, hits, "targets", FIX) or replayed_data(facts, CODE, terms, FIX)
