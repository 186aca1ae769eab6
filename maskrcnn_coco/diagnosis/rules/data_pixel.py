"""Pixels that are not finite, not scaled, or not finite after normalisation.

What happens: a NaN or infinite pixel makes every loss NaN at once; 0..255 or 16-bit values where 0..1 is
  expected make the first loss a hundred to a hundred thousand times too large; a constant image divided by its
  own range, or an image_std of 0, is finite before the model's transform and NaN after it. An image of one
  colour has no contrast for a norm without an eps to divide by.
Why: a data set that forgets `/ 255`, a division by max - min of a black frame, a missing value in a float TIFF.
How it is proved: images are scanned before and after the transform. The rest of the batch, or the same batch
  with the pixels divided by their range, replays normal on the same weights.
What the guard does: leaves the image out; where every batch has the fault it stops and says so.
How to fix it: scale to 0..1 in the data set; correct or delete the files that `maskrcnn-coco check --data PATH`
  names.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import data_finding, healthy
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "DATA_PIXEL"


def judge(facts: Facts) -> Finding | None:
    if facts.only_losses:
        return None  # DATA_LABEL's: a target
    if facts.flat_images and not facts.inputs and not facts.targets:
        return _flat(facts)
    if not facts.suspects() and not facts.guilty_images and _in_one_piece(facts):
        what = str(facts.measured["problems"][0].get("message"))
        evidence = [Evidence("guard: inputs before the forward pass", what, CODE), *facts.says(CODE, "!same", "=other")]
        return Finding(CODE, 0.92, Culprit(), evidence, facts.step, "correct the batch's data", {"widespread": False})
    after = [i for i in facts.inputs if i.when == "after"]
    scaled = [i for i in facts.inputs if i.scale]
    fix = "maskrcnn-coco check --data PATH"
    if after and "image_std" in after[0].what:
        fix = "give the model's transform an image_std above 0"
    elif scaled:
        fix = f"divide the pixels by {scaled[0].scale:g} in the data set"
    found = data_finding(facts, CODE, facts.inputs, "images", fix)
    if found and after and len(after) == len(facts.image_ids):
        found.culprit.module = "transform"
        found.detail["widespread"] = True
    return found


def _in_one_piece(facts: Facts) -> bool:
    """Whether modules take numbers of the batch that are not finite, in a batch that cannot be cut into samples.

    The nodes of graphs that point at each other: another batch is normal on the same weights.
    """
    same, problems = facts.outcomes.get("same"), facts.measured.get("problems")
    failed = same is not None and not same.finite and not same.error
    met = facts.inside is not None and facts.taken is None
    return facts.symptom == "input_nonfinite" and bool(problems) and failed and met and facts.good("other")


def _flat(facts: Facts) -> Finding | None:
    """Replays name an image, and it is of one colour: what divides by its contrast divides by 0."""
    known = facts.outcomes.get(healthy(facts))
    if known is None or known.finite or known.error or facts.flat_images != facts.guilty_images:
        return None
    what = "every pixel has the same colour: its deviation is 0"
    evidence = [Evidence(f"scan: images, image {i}", what, CODE) for i in facts.flat_images]
    evidence += facts.says(CODE, f"!{healthy(facts)}", "other", "alone", "others")
    culprit = Culprit(image_ids=list(facts.flat_images))
    if facts.location is not None:
        culprit.module, culprit.component = facts.location.module, facts.location.component
    detail = {"widespread": False, "proved_on_healthy_weights": True}
    fix = "an eps in the norm that divides by it, or leave the image out"
    return Finding(CODE, 0.92, culprit, evidence, facts.step, fix, detail)
