"""The evaluation cannot reach 1: the truth itself, handed in as predictions, scores less.

What happens: AP stops at a level however good the detector is, and is compared with that of sets where it can be 1.
Why: COCO counts the 100 best detections of an image, and some images have more objects; the detector may give fewer
  than there are; annotations without a usable mask have no mask AP.
How it is proved: the annotations go through the run's own evaluation as predictions of score 1, before the first
  epoch, as the run counts and as COCO counts; what each reason costs is measured by taking it away.
What is done: `--eval-max-dets auto` and `--box-detections-per-image auto` follow the data, so that the run's own AP
  and its best checkpoint are not capped; COCO's figure at 100 stays beside it.
How to fix it: leave both at auto, or give numbers of at least the most objects in an image.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Ceiling, Facts
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding

CODE = "CEILING"
CUT = 0.3
"""A least score from which on recall, and with it AP, is cut visibly."""
WHOLE = 0.995
"""Above this it is rounding: areas at the border of a size, a mask of one pixel."""


def judge(facts: Facts) -> list[RunFinding]:
    return _judge(facts.ceiling) if facts.ceiling is not None else []


def _judge(c: Ceiling) -> list[RunFinding]:
    found = []
    low = {n: v for n, v in c.scores.items() if 0 <= v < WHOLE}
    coco = {n: v for n, v in c.coco.items() if 0 <= v < WHOLE}
    reasons = "; ".join(f"{r.what} costs {r.cost:.4f}" for r in c.costs)
    proof = [("the truth as predictions, as this run counts", _shown(c.scores))]
    proof += [("the truth as predictions, at COCO's 100", _shown(c.coco))] if c.cap != 100 else []
    proof += [("each reason taken away", reasons)] if reasons else []
    if low:
        message = f"this evaluation cannot reach 1: the truth itself scores {_shown(low)}" + (
            f": {reasons}" * bool(reasons)
        )
        fix = (
            f"--eval-max-dets {c.most}"
            if c.cap < c.most
            else "correct or remove the annotations named in the evaluation"
        )
        found.append(finding(CODE, "capped", "warning", message, fix, proof, scores=low, coco=c.coco, most=c.most))
    elif coco and c.cap > 100:
        message = (
            f"COCO's 100 detections an image would cap AP at {_shown(coco)}, as images have up to {c.most} objects; "
            f"this run counts {c.cap}, and says AP at 100 beside it"
        )
        fix = "nothing to do; --eval-max-dets 100 counts as COCO does"
        found.append(finding(CODE, "raised", "info", message, fix, proof, scores=c.scores, coco=coco, most=c.most))
    if c.threshold >= CUT:
        message = f"the model gives only detections that score {c.threshold:g} or more: AP leaves out all others"
        fix = "model.roi_heads.score_thresh = 0.05, torchvision's own; choose a threshold when predicting"
        seen = [("least score that the model gives", f"{c.threshold:g}")]
        found.append(finding(CODE, "threshold", "warning", message, fix, seen, threshold=c.threshold))
    if c.over and c.detections is not None:
        message = (
            f"{c.over} of {c.images} images have more objects (up to {c.most}) than the model gives: {c.detections}"
        )
        fix = f"--box-detections-per-image {c.most}"
        counts = [("objects an image against detections an image", f"{c.over} of {c.images} images have more")]
        found.append(finding(CODE, "detections", "warning", message, fix, counts, most=c.most))
    return found


def _shown(scores: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in scores.items())
