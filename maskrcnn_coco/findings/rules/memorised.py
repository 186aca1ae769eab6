"""Training images score, validation images do not.

What happens: the training loss is very low and AP on the validation data is near 0.
Why: too few images for so many epochs, or validation data of another kind: another camera, another resolution,
  other annotation rules.
How it is proved: AP on as many training images as there are validation images, with the same weights and the same
  evaluation. Classes, masks and boxes of the validation data are looked at first. A harder validation set, whose AP
  is lower, is no fault: it is said only where next to nothing is left.
What is done: it warns at the end of the run.
How to fix it: more images or stronger augmentation, fewer epochs; or a validation set of the same kind.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Facts, Memory
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding

CODE = "MEMORISED"
SCORES, LEFT, OBJECTS = 0.5, 0.1, 20
"""AP50 on training images from here on, at most this share of it on validation images, with so many objects there."""


def judge(facts: Facts) -> list[RunFinding]:
    return _judge(facts.memory) if facts.memory is not None else []


def _judge(m: Memory) -> list[RunFinding]:
    if m.same:
        message = "the validation data are the training data: their AP says how well the images are known by heart"
        proof = [("both data sets compared", "one and the same object")]
        fix = "hold images back: torch.utils.data.random_split(data, [0.85, 0.15])"
        return [finding(CODE, "same data", "warning", message, fix, proof)]
    if m.train < SCORES or m.val > LEFT * m.train or m.objects < OBJECTS:
        return []
    message = (
        f"training images score and validation images do not: AP50 {m.train:.3f} on {m.images} training images, "
        f"{m.val:.3f} on the validation images; the {m.train_images} training images are learned by heart, or the "
        "validation images are of another kind"
    )
    proof = [("AP50, same weights, same evaluation", f"training images {m.train:.4f}, validation images {m.val:.4f}")]
    proof += [("images in both parts", str(m.leaks))]
    fix = (
        "look at the validation predictions in the report: more images, stronger augmentation, or a like validation set"
    )
    return [finding(CODE, "memorised", "warning", message, fix, proof)]
