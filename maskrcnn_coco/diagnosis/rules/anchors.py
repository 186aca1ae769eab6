"""Anchors of no size, or anchors that do not fit the feature pyramid.

What happens: loss_rpn_box_reg is NaN at step 0 on every batch while the other losses are finite. With extreme
  aspect ratios it comes late and at random, when such an anchor is matched for the first time.
Why: AnchorGenerator rounds an anchor of one pixel to width 0; box targets divide by the anchor's width. A wrong
  number of sizes or strides fits no level.
How it is proved: the anchors are built and measured; the loss of the boxes' offsets from them (loss_rpn_box_reg, or
  bbox_regression of a detector of one stage) is non-finite on another batch too.
What the guard does: stops and names the size to use, because no batch can be trained on.
How to fix it: anchor sizes of 2 pixels or more after rounding, one tuple for each level of the pyramid.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "ANCHORS"
OFFSETS = {"loss_rpn_box_reg", "bbox_regression"}
"""Losses of offsets from anchors, which are divided by the sides of those."""


def judge(facts: Facts) -> Finding | None:
    if not facts.anchors:
        return None
    evidence = [Evidence("scan: anchors", a.what, CODE) for a in facts.anchors]
    evidence += facts.says(CODE, "same", "other")
    same = facts.outcomes.get("same")
    if same is None and facts.symptom == "crash":
        evidence.append(Evidence("guard: raised", str(facts.measured.get("error", ""))[:160], CODE))
    hit = same is not None and not same.finite and (same.error is not None or not OFFSETS.isdisjoint(same.bad_losses))
    module = facts.anchors[0].module
    culprit = Culprit(component=module.partition(".")[0], module=module)
    return Finding(CODE, 0.97 if hit else 0.4, culprit, evidence, facts.step, facts.anchors[0].fix)
