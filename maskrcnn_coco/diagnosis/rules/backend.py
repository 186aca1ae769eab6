"""The step fails on this device or in compiled code only.

What happens: the same weights and batch are non-finite on the device every time, and finite in plain eager code
  on the CPU.
Why: a wrong kernel (half-precision convolutions of some GPUs, a broken cuDNN, a compiler that reorders a
  scatter), a driver. Some are known: RoIAlign's gradients on Apple GPUs are wrong in torchvision before 0.29.
How it is proved: the step fails twice in the same way; with one thing taken away it is finite: the vendor's library
  (oneDNN, cuDNN), the fused kernel of scaled_dot_product_attention, the compiled code of one module, or the device
  itself (eager, in float32, on the CPU). The first bad module is named.
What the guard does: runs that module as eager code, or turns the library off, and takes the step again. Where only
  the CPU is right it skips the step, and stops with the verdict if it fails again.
How to fix it: `--amp off` or `--device cpu` to confirm, then another version of torch, cuDNN or the driver.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "BACKEND"
ATTENTION = "with torch.nn.attention.sdpa_kernel(SDPBackend.MATH): around the forward pass"


def judge(facts: Facts) -> Finding | None:
    if facts.eager_modules and facts.bad("live again"):
        return _compiled(facts)
    if not facts.good("reference") or not facts.bad("same"):
        return None
    if facts.certain_state() or facts.lethal() or facts.came_and_went():
        return None
    location = facts.location
    culprit = Culprit(component=location.component, module=location.module) if location else Culprit()
    evidence = facts.says(CODE, "!same", "!again", "=reference")
    if location and location.module:
        evidence.append(Evidence("locate: first bad module on the device", location.module, CODE))
    evidence += [
        Evidence("versions: what is installed here, on this device", known, CODE) for known in facts.known_faults
    ]
    sure = 0.93 if facts.bad("again") else 0.7
    detail = {"libraries": facts.libraries} | ({"attention": False} if facts.attention else {})
    return Finding(CODE, sure, culprit, evidence, facts.step, ATTENTION if facts.attention else "--device cpu", detail)


def _compiled(facts: Facts) -> Finding:
    """The copy, which is eager, and the run's own model with one module made eager, are finite; the run's is not."""
    evidence = facts.says(CODE, "live", "live again", "eager", "same")
    culprit = Culprit(facts.location.component, facts.location.module) if facts.location else Culprit()
    fix = f"do not compile {', '.join(facts.eager_modules)}"
    return Finding(CODE, 0.95, culprit, evidence, facts.step, fix, {"eager_modules": facts.eager_modules})
