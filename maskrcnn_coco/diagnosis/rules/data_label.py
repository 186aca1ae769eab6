"""A class label outside 1..K-1.

What happens: the classifier's cross entropy is asked for a class that it does not have. On the CPU it raises
  "Target k is out of bounds"; on CUDA a device-side assert kills the process; a negative label or 0 is silently
  ignored or learned as background.
Why: COCO category ids are not contiguous (1..90 for 80 classes), ids start at 0, or num_classes was given
  without the background.
How it is proved: the labels of the batch are compared with the model's number of classes before the forward
  pass.
What the guard does: leaves the image out, and takes the step again with a substitute.
How to fix it: map category ids to 1..K-1 (this project does so for COCO files); num_classes counts the
  background.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import data_finding
from maskrcnn_coco.records import Finding

CODE = "DATA_LABEL"
FIX = "maskrcnn-coco check --data PATH"


def judge(facts: Facts) -> Finding | None:
    return data_finding(facts, CODE, [t for t in facts.targets if t.code == CODE], "targets", FIX)
