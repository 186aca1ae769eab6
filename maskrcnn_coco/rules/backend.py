"""The step fails on this device or in compiled code only.

What happens: the same weights and batch are non-finite on the device every time, and finite in plain eager code
  on the CPU.
Why: a wrong kernel (half-precision convolutions of some GPUs, a broken cuDNN, a compiler that reorders a
  scatter), a driver.
How it is proved: the step fails twice in the same way on the device; the reference model, eager on the CPU, is
  finite; the first bad module is named.
What the guard does: skips the step, and stops with the verdict if it fails again.
How to fix it: `--amp off` or `--device cpu` to confirm, then another version of torch, cuDNN or the driver.
"""

from __future__ import annotations

from maskrcnn_coco.facts import Facts
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "BACKEND"


def judge(facts: Facts) -> Finding | None:
    if not facts.good("reference") or not facts.bad("same"):
        return None
    if facts.certain_state() or facts.lethal():
        return None
    location = facts.location
    culprit = Culprit(component=location.component, module=location.module) if location else Culprit()
    evidence = facts.says(CODE, "same", "again", "reference")
    if location and location.module:
        evidence.append(Evidence("locate: first bad module on the device", location.module, CODE))
    repeatable = facts.bad("again")
    return Finding(CODE, 0.93 if repeatable else 0.7, culprit, evidence, facts.step, "--device cpu", {})
