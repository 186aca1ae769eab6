"""The step fails once and not again: hardware, or weights changed outside the step.

What happens: the same weights, batch and random numbers replay finite, or the weights before the step are not
  those that the recorded steps lead to.
Why: a flipped bit in memory, an overheating or overclocked device, a kernel that reads unwritten memory, other
  code that writes into the weights.
How it is proved: the step is replayed twice from the same state and both replays are finite and equal bit for
  bit; or the last steps are walked again from an older verified state and end in other weights than the run
  has. The differing tensor is named.
What the guard does: goes back to the verified state before the damage and takes the step again.
How to fix it: if it comes back, test the device (memory test, another card, lower clocks); look for code that
  changes weights between steps.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import nonfinite
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "TRANSIENT"
FIX = "maskrcnn-coco doctor"


def judge(facts: Facts) -> Finding | None:
    outside = facts.measured.get("changed_outside")
    if outside:
        before, now = facts.measured.get("norm_before"), facts.measured.get("norm")
        what = f"{', '.join(map(str, outside[:3]))}: norm {before} → {now}"
        evidence = [Evidence("guard: weights between two steps", what, CODE)]
        module = str(outside[0]).rpartition(".")[0] if len(outside) == 1 else None
        culprit = Culprit(component=facts.measured.get("component"), module=module)
        return Finding(CODE, 0.95, culprit, evidence, facts.step, FIX, {"changed": list(outside)[:50]})
    drift = facts.drift
    if drift is not None:
        what = f"{drift.name} differs by {drift.relative:.3g} of its norm from what steps {drift.from_step}.. lead to"
        evidence = [Evidence(f"replay: steps {drift.from_step} to {facts.step - 1} taken again", what, CODE)]
        culprit = Culprit(component=drift.component, module=drift.module)
        return Finding(
            CODE, 0.95, culprit, evidence + facts.says(CODE, "retrace"), facts.step, FIX, {"changed": drift.name}
        )
    if facts.symptom in ("input_nonfinite", "scale_collapse", "stalled") or not facts.good("same"):
        return None
    if facts.certain_state() or facts.lethal() or facts.bad("live"):
        return None
    same, again = facts.outcomes["same"], facts.outcomes.get("again")
    exact = again is not None and again.digest == same.digest
    # Some CUDA kernels add in any order: then equal to a thousandth is all that can be asked, and it is said.
    close = again is not None and again.finite and abs(again.loss - same.loss) <= 1e-3 * abs(same.loss)
    confidence = 0.93 if (exact or close) and nonfinite(facts) else 0.6
    evidence = facts.says(CODE, "same", "again")
    evidence.append(
        Evidence("the two replays", "equal bit for bit" if exact else "equal to a thousandth" if close else "differ")
    )
    return Finding(CODE, confidence, Culprit(), evidence, facts.step, FIX)
