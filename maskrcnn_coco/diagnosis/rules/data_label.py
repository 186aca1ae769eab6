"""A class label outside 1..K-1, or a target that is no number.

What happens: the classifier's cross entropy is asked for a class that it does not have. On the CPU it raises
  "Target k is out of bounds"; on CUDA a device-side assert kills the process; a negative label or 0 is silently
  ignored or learned as background. A NaN or an infinity among the numbers to be predicted makes the loss NaN.
Why: COCO category ids are not contiguous (1..90 for 80 classes), ids start at 0, or num_classes was given
  without the background. An empty cell of a table, the logarithm of 0.
How it is proved: the labels of the batch are compared with the model's number of classes before the forward
  pass. Of numbers that are not finite every module is watched: the losses alone meet them; or replays name an image,
  and an entry of its target (a weight, a distance) is not finite there alone.
What the guard does: leaves the image out, and takes the step again with a substitute.
How to fix it: map category ids to 1..K-1 (this project does so for COCO files); num_classes counts the
  background.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import data_finding, healthy
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "DATA_LABEL"
FIX = "maskrcnn-coco check --data PATH"


def judge(facts: Facts) -> Finding | None:
    if facts.only_losses:
        return _no_number(facts)
    if facts.broken_entries and not facts.targets and not facts.inputs:
        return _entry(facts)
    return data_finding(facts, CODE, [t for t in facts.targets if t.code == CODE], "targets", FIX)


def _no_number(facts: Facts) -> Finding | None:
    found = data_finding(facts, CODE, facts.inputs, "inputs", FIX)
    if found is not None:
        what = "none of them takes a number that is not finite: it is among what the losses compare with"
        found.evidence.append(Evidence("locate: every module watched", what, CODE))
    return found


def _entry(facts: Facts) -> Finding | None:
    """Replays name images, and something in their targets that the loss may read is not finite there alone."""
    known, images = facts.outcomes.get(healthy(facts)), {e.image_id for e in facts.broken_entries}
    if known is None or known.finite or known.error or images != set(facts.guilty_images or []):
        return None
    evidence = [Evidence(f"scan: targets, image {e.image_id}", e.what, CODE) for e in facts.broken_entries[:8]]
    evidence += facts.says(CODE, f"!{healthy(facts)}", "other", "alone", "others")
    culprit = Culprit(image_ids=list(facts.guilty_images or []))
    detail = {"widespread": False, "proved_on_healthy_weights": True}
    return Finding(CODE, 0.94, culprit, evidence, facts.step, FIX, detail)
