"""No progress, and none of the other codes explains it.

What happens: after several epochs losses are where they began and AP is 0.
Why: not known. Labels that are wrong in content, images that do not show what was annotated, channels swapped in
  every image, or a model that does not fit the task cannot be told from the numbers.
How it is proved: one batch is trained again and again on a private copy, at the run's rates and at raised ones. If
  even that is not learned, the fault is in model, losses or rates; if it is, it is in what the images have in common.
What is done: it warns, with what was tried and what that showed.
How to fix it: look at twelve training samples as the model gets them, with boxes and masks drawn; then at the rates.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import BatchTrial, Facts
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding

CODE = "NOT_LEARNING"
FALLEN, AP, LEARNED = 0.9, 0.02, 0.5
"""The last epoch's loss above this share of the first's, with AP50 below that; a batch is learned at half its loss."""


def judge(facts: Facts) -> list[RunFinding]:
    return _judge(facts.batch_trial) if facts.batch_trial is not None else []


def _judge(b: BatchTrial) -> list[RunFinding]:
    if b.last_epoch < FALLEN * b.first_epoch or b.ap > AP or b.epochs < 2:
        return []
    learned = b.after <= LEARNED * b.before
    shown = f"{b.before:.3g} → {b.after:.3g} in {b.steps} steps at {b.factor:g} times the rates"
    message = (
        f"no progress in {b.epochs} epochs: loss {b.first_epoch:.3g} → {b.last_epoch:.3g}, AP50 {b.ap:.3f}. "
        f"One batch on a private copy is {'learned' if learned else 'not learned either'}: {shown}"
    )
    fix = (
        "images and annotations contradict each other, or do not go together: look at samples as the model gets them"
        if learned
        else "the model cannot learn even one batch: look at its losses, its frozen layers, and the learning rates"
    )
    proof = [("one batch on a private copy", shown), ("loss by epoch", f"{b.first_epoch:.3g} → {b.last_epoch:.3g}")]
    return [finding(CODE, "learned" if learned else "not learned", "warning", message, fix, proof)]
