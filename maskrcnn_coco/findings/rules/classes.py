"""Labels, head and categories do not belong together.

What happens: boxes are well placed and AP is near 0; or nothing is ever predicted; or each image that has the first
  class is refused.
Why: labels start at 0, which is the background; the head counts one class too few; validation data number their
  classes in another order; two categories have one name.
How it is proved: the labels that were seen stand beside what the head tells apart; at an evaluation AP with classes
  left aside is far above AP, and one renaming of classes restores it.
What is done: where every label is out of range, or the head is smaller than the labels, the run stops with exit code
  3 before its first step; else it warns.
How to fix it: labels are 1..K, `num_classes` is K + 1, the background being 0; give training and validation data the
  same categories.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Facts, Labels, Matching, Way
from maskrcnn_coco.findings.rules.common import finding, some
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.wording import listed

CODE = "CLASSES"
MAY_BE_LEFT_OUT = 0.2
"""The share of images that the quarantine takes before the run stops."""
GAIN, FACTOR, NEAR = 0.1, 3.0, 0.6
"""A renaming must add so much AP50, multiply it so often, and come so near to AP50 without classes."""


def judge(facts: Facts) -> list[RunFinding]:
    found = _labels(facts.labels, facts.way) if facts.labels is not None else []
    return found + (_renamed(facts.matching, facts.way) if facts.matching is not None else [])


def _labels(labels: Labels, way: Way) -> list[RunFinding]:
    found = []
    known = labels.head or labels.num_classes
    if labels.head is not None and labels.num_classes is not None and labels.head != labels.num_classes:
        message = f"the model's head tells {labels.head} classes apart, num_classes is {labels.num_classes}"
        fix = f"give both the same number, background included: num_classes={max(labels.counts, default=0) + 1}"
        proof = [("head against num_classes", f"{labels.head} outputs, {labels.num_classes} classes with background")]
        found.append(finding(CODE, "head", "warning", message, fix, proof))
    if labels.twice:
        message = (
            f"several categories are called {listed([repr(n) for n in labels.twice], 4)}: each is a class of its own"
        )
        proof = [("names of categories", f"twice: {listed(labels.twice, 4)}")]
        found.append(finding(CODE, "twice", "warning", message, "merge them in the json, or rename one", proof))
    if labels.shift:
        way_off = "low" if labels.shift > 0 else "high"
        message = (
            f"category ids of the annotations are one too {way_off}: {labels.unknown} objects have an id that is "
            "not in `categories` and are left out, and all others have the name of their neighbour"
        )
        command = "maskrcnn-coco check --data PATH --fix OUT.json"
        fix = f"category_id {labels.shift:+d} in every annotation: {command} writes a copy with that"
        proof = [("ids of annotations against `categories`", f"all are known after {labels.shift:+d}, not before")]
        found.append(finding(CODE, "shifted", "warning", message, fix, proof, shift=labels.shift))
    if labels.untaught:
        found.append(_untaught(labels.untaught))
    if labels.counts and known is not None:
        found += _range(labels, known)
    return found


def _untaught(classes: dict[str, int]) -> RunFinding:
    shown = listed([f"{name} ({count})" for name, count in classes.items()], 6)
    message = f"the validation data have objects of classes that training has none of: {shown}; their AP stays 0"
    proof = [("objects of each class in training and validation", f"0 in training: {shown}")]
    fix = "split the data so that each class is in both parts, or leave these classes out of both"
    return finding(CODE, "untaught", "warning", message, fix, proof, classes=classes)


def _range(labels: Labels, known: int) -> list[RunFinding]:
    low, high = min(labels.counts), max(labels.counts)
    total = sum(labels.counts.values())
    zeros = sum(n for label, n in labels.counts.items() if label < 1)
    above = sum(n for label, n in labels.counts.items() if label >= known)
    seen = f"labels {low} to {high} in {total} objects; the model tells 1 to {known - 1} apart, 0 is the background"
    proof = [("labels against classes", seen)]
    # A label that is wrong here and there costs its image; where most images have one, nothing much is left.
    of = "" if labels.of == "training data" else f" of the {labels.of}"
    severity = "error" if labels.bad_images >= 0.5 * labels.images and not of else "warning"
    where = some(labels.image_ids)
    found = []
    if zeros and (low == 0 and zeros >= 0.02 * total):
        message = f"labels start at 0, which is the background: {zeros} of {total} objects{of} have it{where}"
        fix = f'labels start at 1: target["labels"] = target["labels"] + 1, with num_classes={high + 2}'
        found.append(
            finding(
                CODE,
                "from zero",
                severity,
                message,
                fix,
                proof,
                images=labels.image_ids,
                of=labels.of,
                num_classes=high + 2,
            )
        )
    elif zeros:
        message = f"{zeros} of {total} objects{of} have labels below 1{where}"
        fix = "labels are 1, 2, …: 0 is the background"
        found.append(finding(CODE, "below one", severity, message, fix, proof, images=labels.image_ids, of=labels.of))
    if above and not found:
        counted = "background counts: " if high == known else ""
        message = (
            f"{above} of {total} objects{of} have labels up to {high}, the head tells {known} classes apart{where}"
        )
        fix = f"{counted}num_classes={high + 1} (labels 1 to {high}, and the background)"
        # A stray label costs its image, and the run goes on without it; a head that is too small meets its last class
        # in more images than may be left out.
        small = labels.head is not None and labels.bad_images > MAY_BE_LEFT_OUT * labels.images
        sure = "error" if severity == "error" or (small and not of) else "warning"
        found.append(
            finding(
                CODE, "too few", sure, message, fix, proof, images=labels.image_ids, of=labels.of, num_classes=high + 1
            )
        )
    return found


def _renamed(m: Matching, way: Way) -> list[RunFinding]:
    gain = m.renamed - m.ap
    if not m.mapping or gain < GAIN or m.renamed < FACTOR * max(m.ap, 0.01) or m.renamed < NEAR * m.agnostic:
        return []
    pairs = ", ".join(f"{a} → {b}" for a, b in list(m.mapping.items())[:6])
    message = (
        f"boxes are found and classes are permuted: AP50 {m.ap:.3f}, {m.agnostic:.3f} with classes left aside, "
        f"{m.renamed:.3f} with {pairs}"
    )
    proof = [
        ("AP50 of boxes, as named", f"{m.ap:.4f}"),
        ("AP50 with classes left aside", f"{m.agnostic:.4f}"),
        (f"AP50 renamed: {pairs}", f"{m.renamed:.4f}"),
    ]
    fix = "give training and validation data the same categories in the same order"
    if way != "command":
        fix = "give training and validation data sets one and the same map from class name to label"
    return [finding(CODE, "permuted", "warning", message, fix, proof, mapping=m.mapping)]
