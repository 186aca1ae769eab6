"""Boxes score and masks do not.

What happens: bbox/AP is fine and segm/AP is 0.
Why: the masks of the data that are evaluated on (or trained on) have x and y exchanged, are mirrored, moved or of
  another size, while the boxes are right. Or they are lines, outlines that were not filled, many pieces in one box.
How it is proved: the predicted masks are transposed, mirrored, moved or rescaled, and scored again: one of these
  restores segm/AP. A mask head that lags behind in the first epochs is restored by none, and nothing is said; where
  the run has ended and hardly a mask is found in boxes that are, it is said with how much of its box a true mask fills.
What is done: it warns, and names the reading.
How to fix it: correct the masks of the validation data: they are where the reading says.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Facts, MaskReadings, Way
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding

CODE = "MASKS_ELSEWHERE"
FACTOR, NEAR, LEAST = 3.0, 0.5, 0.1
LOST, THIN = 0.02, 0.4
"""AP50 of masks that is none; share of its box below which a mask is a line, a ring, or pieces."""


def judge(facts: Facts) -> list[RunFinding]:
    return _judge(facts.mask_readings, facts.way) if facts.mask_readings is not None else []


def _judge(m: MaskReadings, way: Way) -> list[RunFinding]:
    best = max(m.readings, key=lambda n: m.readings[n], default=None)
    if m.boxes < LEAST:
        return []
    value = m.readings[best] if best is not None else 0.0
    if best is None or value < FACTOR * max(m.masks, 0.01) or value < NEAR * m.boxes:
        return _none(m, way)
    message = (
        f"boxes score and masks do not: AP50 {m.boxes:.3f} and {m.masks:.3f}; with the masks {best} it is {value:.3f}"
    )
    proof = [
        ("AP50 of boxes, of masks", f"{m.boxes:.4f}, {m.masks:.4f}"),
        *((f"AP50 of masks {name}", f"{v:.4f}") for name, v in m.readings.items()),
    ]
    fix = f"correct the masks of the validation data: they are {best} against the images"
    if way == "command":
        fix += "; maskrcnn-coco check --data PATH --html OUT.html draws them"
    return [finding(CODE, best, "warning", message, fix, proof, of="validation data", reading=best)]


def _none(m: MaskReadings, way: Way) -> list[RunFinding]:
    """No reading restores the masks of a run that is over."""
    if not m.ended or m.masks > LOST * m.boxes:
        return []
    thin = m.fill < THIN
    filled = f"a true mask fills {m.fill:.0%} of its box, in the middle"
    message = f"boxes score and masks do not, when the run ends: AP50 {m.boxes:.3f} and {m.masks:.3f}; {filled}" + (
        ": lines, rings or pieces, which a mask head hardly draws" if thin else ""
    )
    proof = [
        ("AP50 of boxes, of masks", f"{m.boxes:.4f}, {m.masks:.4f}"),
        *((f"AP50 of masks {name}", f"{v:.4f}") for name, v in m.readings.items()),
        ("share of its box that a true mask fills", f"{m.fill:.2f}"),
    ]
    fix = (
        "fill outlines, and give each piece an annotation of its own, where the masks were not meant so"
        if thin
        else "train longer, or raise the rate of the mask head (--head-lr-multiplier)"
        if way == "command"
        else "train longer, or raise the rate of the mask head"
    )
    if thin and way == "command":
        fix += "; maskrcnn-coco check --data PATH --html OUT.html draws them"
    return [finding(CODE, "none", "warning", message, fix, proof, of="validation data")]
