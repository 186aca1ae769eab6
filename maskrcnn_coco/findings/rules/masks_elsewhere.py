"""Boxes score and masks do not.

What happens: bbox/AP is fine and segm/AP is 0.
Why: the masks of the data that are evaluated on (or trained on) have x and y exchanged, are mirrored, moved or of
  another size, while the boxes are right.
How it is proved: the predicted masks are transposed, mirrored, moved or rescaled, and scored again: one of these
  restores segm/AP. A mask head that lags behind in the first epochs is restored by none, and nothing is said.
What is done: it warns, and names the reading.
How to fix it: correct the masks of the validation data: they are where the reading says.
"""

from __future__ import annotations

from maskrcnn_coco.findings.facts import Facts, MaskReadings, Way
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding

CODE = "MASKS_ELSEWHERE"
FACTOR, NEAR, LEAST = 3.0, 0.5, 0.1


def judge(facts: Facts) -> list[RunFinding]:
    return _judge(facts.mask_readings, facts.way) if facts.mask_readings is not None else []


def _judge(m: MaskReadings, way: Way) -> list[RunFinding]:
    best = max(m.readings, key=lambda n: m.readings[n], default=None)
    if best is None or m.boxes < LEAST:
        return []
    value = m.readings[best]
    if value < FACTOR * max(m.masks, 0.01) or value < NEAR * m.boxes:
        return []
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
