"""Nothing, or much less than was annotated, reaches the losses.

What happens: losses of boxes and masks are 0.0000 from the first step, or fall to nothing; AP stays 0 and nothing
  is ever refused. Where half of the objects are lost, the detector learns that they are background.
Why: a tool writes iscrowd 1 for every brush mask, and crowd regions are no targets; masks come out empty after a
  resize or a wrong conversion; boxes are given as shares of the image, so that they are smaller than a pixel; a
  filter by class name keeps nothing.
How it is proved: objects are counted at each stage on the way from the annotation to the losses, and the stage that
  loses them is named. Images without objects prove nothing: what counts is the objects that were annotated.
What is done: with no object left the run stops with exit code 3 before its first step; else it warns.
How to fix it: set `iscrowd` to 0 for single objects; write masks at the size of the image, 0 and 1; give boxes in
  pixels.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from maskrcnn_coco.findings.facts import Facts, Stage, Still, Targets, Way
from maskrcnn_coco.findings.rules.common import audited, finding, some
from maskrcnn_coco.findings.rules.geometry import reading_of
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.wording import listed

CODE = "NO_TARGETS"
MUCH, EMPTY = 0.4, 0.05
"""Shares of the objects, lost at one stage, that are said. An empty mask is never honest, a crowd or a speck may be."""
SMALL = ("large enough", "usable")
FIXES: dict[str, dict[Way, str]] = {
    "no crowd": {
        "command": "write iscrowd 0 for single objects: maskrcnn-coco check --data PATH --fix OUT.json",
        "own": 'give single objects iscrowd 0: target["iscrowd"] = torch.zeros(len(boxes), dtype=torch.int64)',
        "loop": 'give single objects iscrowd 0: target["iscrowd"] = torch.zeros(len(boxes), dtype=torch.int64)',
    },
    "mask not empty": {
        "command": "draw these masks again, or leave them out: maskrcnn-coco check --data PATH --fix OUT.json",
        "own": "look at dataset[i][1]['masks'].sum((1, 2)): resize masks with nearest neighbours, as uint8 0 and 1",
        "loop": "look at target['masks'].sum((1, 2)): resize masks with nearest neighbours, as uint8 0 and 1",
    },
    "large enough": {
        "command": "raise --min-size and --max-size, or cut the images into tiles",
        "own": "give boxes as x1, y1, x2, y2 in pixels, or larger images",
        "loop": "give boxes as x1, y1, x2, y2 in pixels, or larger images",
    },
}
FIXES["of an image in `images`"] = dict.fromkeys(
    ("command", "own", "loop"), "give `image_id` of each annotation the `id` of its image, to the letter"
)
OTHER: dict[Way, str] = {
    "command": "maskrcnn-coco check --data PATH lists what is wrong with them",
    "own": "look at dataset[i][1]: boxes (N, 4), labels (N,) and masks (N, H, W) of the objects in the image",
    "loop": "look at a batch's targets: boxes (N, 4), labels (N,) and masks (N, H, W) of the objects in the image",
}


def judge(facts: Facts) -> list[RunFinding]:
    found = [f for t in facts.targets for f in _lost(t, facts.way) if f.detail["what"] not in _explained(t, facts)]
    found += audited(CODE, facts)
    return found + (_zero(facts.still, facts.way) if facts.still is not None else [])


def _explained(targets: Targets, facts: Facts) -> set[str]:
    """Stages whose losses follow from a fault that has a finding of its own: one fault, not two."""
    found: set[str] = set()
    # Boxes that are read another way than they are written are small for that reason, or empty.
    if any(reading_of(g) is not None for g in facts.geometry):
        found |= {*SMALL}
    if any(c.readings and c.of == targets.of for c in facts.contents):
        found |= {*SMALL, "mask not empty"}
    labels = facts.labels
    lost = {b.name: a.count - b.count for a, b in pairwise(targets.stages)}
    if labels is not None and labels.shift and lost.get("usable", 0) <= labels.unknown:
        found.add("usable")
    return found


def _lost(targets: Targets, way: Way) -> list[RunFinding]:
    stages = targets.stages
    first, last = stages[0].count, stages[-1].count
    trail = " → ".join(f"{s.count} {s.name}" for s in stages)
    proof = [(f"objects of {targets.images} images at each stage", trail)]
    if targets.form and targets.unread >= targets.images:
        message = f"no sample of the {targets.of} can be trained on: {targets.form}"
        proof = [("form of the samples", f"so in all {targets.images} samples looked at")]
        return [finding(CODE, "form", "error", message, targets.form_fix or OTHER[way], proof)]
    if targets.unread:
        return [_unread(targets, way), *_lost(replace(targets, unread=0, form=""), way)]
    if first == 0:
        if not targets.whole or not targets.images:
            return []
        if targets.of != "training data":
            message = f"no image of the {targets.of} has an object: there is nothing to measure, AP stays empty"
            fix = "name the annotated json with --val" if way == "command" else "give a validation set with objects"
            return [finding(CODE, f"none annotated {targets.of}", "warning", message, fix, proof)]
        message = f"no image of the {targets.of} has an object: there is nothing to learn"
        fix = "name the annotated json with --data" if way == "command" else OTHER[way]
        return [finding(CODE, "none annotated", "error", message, fix, proof)]
    # Real crowds are no targets on purpose: those that are none are found by what they look like, not by their share.
    pairs = [(a, b) for a, b in pairwise(stages) if b.name != "no crowd" or last == 0]
    before, after = max(pairs, key=lambda pair: pair[0].count - pair[1].count)
    lost = before.count - after.count
    bound = EMPTY if after.name == "mask not empty" else MUCH
    if lost < 2 or lost < bound * first:
        return []
    none = last == 0 and targets.whole
    # Of a validation set nothing is learned: it costs its figures, not the run.
    severity = "error" if none and targets.of == "training data" else "warning"
    share = "all" if lost == before.count else f"{lost} of"
    message = (
        f"{share} {before.count} objects of the {targets.of} never reach the losses: they are not “{after.name}”"
        f"{some(after.image_ids)}"
    )
    fix = after.fix or FIXES.get(after.name, OTHER)[way]
    return [
        finding(
            CODE,
            after.name,
            severity,
            message,
            fix,
            proof,
            images=after.image_ids,
            of=targets.of,
            counts=_counts(stages),
        )
    ]


def _unread(targets: Targets, way: Way) -> RunFinding:
    """Some samples are of another form: the run goes on without them."""
    message = (
        f"{targets.unread} of {targets.images} samples of the {targets.of} cannot be trained on: "
        f"{targets.form}{some(targets.unread_ids)}"
    )
    proof = [("form of the samples", f"{targets.unread} of {targets.images} samples looked at are of another form")]
    fix = targets.form_fix or OTHER[way]
    return finding(CODE, "some forms", "warning", message, fix, proof, images=targets.unread_ids, of=targets.of)


def _counts(stages: list[Stage]) -> dict[str, int]:
    return {s.name: s.count for s in stages}


def _zero(still: Still, way: Way) -> list[RunFinding]:
    if not still.zero_losses:
        return []
    names = listed(still.zero_losses, 4)
    message = f"{names}: exactly 0 in all of {still.steps} steps, though their images have objects"
    proof = [("losses of the first steps with objects", f"{names} 0 in {still.steps} of {still.steps}")]
    return [finding(CODE, "zero losses", "warning", message, OTHER[way], proof)]
