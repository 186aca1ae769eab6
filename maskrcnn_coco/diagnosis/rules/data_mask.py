"""A mask that is not 0/1, has the wrong size, is empty, or does not match its box.

What happens: loss_mask becomes huge or negative while everything else is normal, and the training runs away
  within a few steps. A negative loss_mask is certain proof by itself: binary cross entropy with targets of 0
  and 1 is never below zero.
Why: masks stored as 0/255, or resized with interpolation; crowd regions (RLE) read as all-zero masks; height
  and width swapped. Nothing in torchvision checks it.
How it is proved: the masks of the batch are scanned; the same batch with binary masks, or without the named
  images, replays normal on healthy weights.
What the guard does: leaves the image out; where every batch has the fault it stops and says so.
How to fix it: `(mask > 0)` in the data set; `maskrcnn-coco check --data PATH` lists masks of the wrong size and
  empty ones.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import data_finding, replayed_data
from maskrcnn_coco.records import Finding

CODE = "DATA_MASK"


def judge(facts: Facts) -> Finding | None:
    hits = [t for t in facts.targets if t.code == CODE]
    fix = "binarise the masks in the data set: (mask > 0)" if any(t.repairable for t in hits) else ""
    fix = fix or "maskrcnn-coco check --data PATH"
    return data_finding(facts, CODE, hits, "targets", fix) or replayed_data(facts, CODE, ("loss_mask",), fix)
