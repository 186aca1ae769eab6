"""A value passes 65504, the largest that half precision holds.

What happens: one block of the network computes inf in float16, and the loss is NaN a few layers later. Weights
  are healthy.
Why: activations of a badly scaled block, an attention or a sum over many pixels, an epsilon that rounds to 0 in
  half precision (1e-8).
  In bfloat16 nothing overflows, but eight bits of mantissa make a difference of two large numbers zero, and what
  divides by it, or takes its logarithm, infinite.
How it is proved: the same batch on the same weights in float32 is finite and normal; the first bad module and
  its largest value are named; the same step with that module alone in float32 is finite again. A loss that is
  far too large in float32 as well is divergence, not this. A block that computes in half precision whatever the run
  does (`.half()` in its forward) fails in float32 too: the first op that is not finite is one in float16, of finite
  numbers, and no division.
What the guard does: runs that module in float32 from here on; where what overflows is no module's (a line of the
  loss), the whole model, once it came a second time.
How to fix it: `--amp bf16` where the device has it, else `--amp off`.
"""

from __future__ import annotations

from typing import Any

from maskrcnn_coco.diagnosis.facts import Facts, Location
from maskrcnn_coco.diagnosis.rules.common import QUOTIENTS, healthy, nonfinite
from maskrcnn_coco.records import Culprit, Evidence, Finding
from maskrcnn_coco.replay.outcome import IN_HALF

CODE = "FP16_OVERFLOW"
LARGEST = 65504.0


def judge(facts: Facts) -> Finding | None:
    same, full = facts.outcomes.get("same"), facts.outcomes.get("fp32")
    if same is not None and overflows_by_itself(facts):
        return _by_itself(facts, facts.location)
    if facts.precision == "fp32" or same is None or full is None or same.finite or not full.finite:
        return None
    # Far too large in float32 as well: divergence, where the run has a healthy past to compare with.
    if facts.abnormal(full) and facts.reference.count:
        return None
    evidence = facts.says(CODE, "!same", "=fp32")
    location = facts.location
    culprit = Culprit()
    confidence = 0.9 if "module_fp32" in facts.done else 0.8
    if location and location.module:
        culprit = Culprit(component=location.component, module=location.module)
        value = "" if location.max_abs is None else f", largest value in float32 {location.max_abs:.4g}"
        evidence.append(Evidence("locate: first bad module", f"{location.module} ({location.op}){value}", CODE))
    if facts.good("module_fp32"):
        confidence = 0.97
        evidence += facts.says(CODE, "module_fp32")
    detail: dict[str, Any] = {
        "fp32_modules": facts.fp32_modules,
        "largest": LARGEST if facts.precision == "fp16" else None,
    }
    return Finding(
        CODE,
        confidence,
        culprit,
        evidence,
        facts.step,
        "--amp bf16" if facts.precision == "fp16" else "--amp off",
        detail,
    )


def overflows_by_itself(facts: Facts) -> bool:
    """Whether float32 does not help, because the first bad op was put into half precision by the model's own code."""
    place, full = facts.location, facts.outcomes.get("fp32")
    if place is None or place.op is None or IN_HALF not in place.op or place.op.startswith(QUOTIENTS):
        return False
    if facts.precision == "fp16" and (full is None or full.finite):
        return False  # the run's own half precision
    sound = not (facts.certain_state() or facts.lethal() or facts.suspects() or facts.anchors)
    return sound and nonfinite(facts) and facts.bad("same")


def _by_itself(facts: Facts, place: Location | None) -> Finding:
    assert place is not None
    named = place.module or "the loss"
    evidence = [Evidence("locate: first bad op, of finite numbers", f"{named} ({place.op})", CODE)]
    evidence += facts.says(CODE, "!same", "other", "earlier", "fp32")
    culprit = Culprit(component=place.component, module=place.module, image_ids=facts.guilty_images or [])
    fix = f"compute in float32 there: {place.op}"
    detail: dict[str, Any] = {"fp32_modules": [], "largest": LARGEST}
    detail["proved_on_healthy_weights"] = bool(facts.guilty_images) and facts.bad(healthy(facts))
    return Finding(CODE, 0.93, culprit, evidence, facts.step, fix, detail)
