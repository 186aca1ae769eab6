"""Gradients of several micro-batches are summed wrongly.

What happens: with `--accumulate k` the gradient is k times too large, so the learning rate is k times too
  large; or a NaN gradient of a refused step is never cleared, and every later step is refused although all
  losses are finite.
Why: the loss is not divided by k; gradients are only cleared when the step was taken; one micro-batch of k is
  bad.
How it is proved: the recorded gradient norm is k times the norm of the same micro-batches replayed; or the
  recorded gradients are non-finite and the replay of the whole step is finite. Micro-batches are also replayed
  one at a time.
What the guard does: skips the step and clears the gradients. Of a loop of one's own that never clears them, and
  learns all the same, it is said once after twenty steps, and no step is refused for it.
How to fix it: divide each loss by the number of micro-batches; call zero_grad whether or not the step was
  taken.
"""

from __future__ import annotations

import math

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import nonfinite
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "ACCUMULATION"
CLEAR = "call optimizer.zero_grad() before each backward pass, whether or not the step before was taken"

NEAR = 0.1
"""So close to the number of micro-batches a ratio of norms is that number."""
BUFFER = "clear the buffer that gradients pass through before the optimizer sees them"


def judge(facts: Facts) -> Finding | None:
    k = facts.accumulate
    if facts.measured.get("kept_gradients"):
        what = "still there when those of this step were added to them: they add up over all steps"
        found = _finding(0.95, Evidence("gradients of the step before", what, CODE), facts, CLEAR)
        found.detail["never_cleared"] = facts.symptom == "stalled"
        return found
    if facts.left_over():
        norm, replayed = facts.recorded_norm or 0.0, facts.outcomes["same"].grad_norm
        what = (
            f"norm {norm:.4g} and no further from that of the step before than the batch's own are long: {replayed:.4g}"
        )
        return _finding(0.95, Evidence("gradients at optimizer.step()", what, CODE), facts, BUFFER)
    if k < 2 and not facts.settings.get("own_gradients"):
        return None
    ratio = facts.norm_ratio
    if k > 1 and ratio is not None and abs(ratio / k - 1) < NEAR:
        return _summed(facts, k, ratio)
    same = facts.outcomes.get("same")
    if same is None or facts.abnormal(same) or facts.recorded_norm is None:
        return None
    finite_loss = facts.recorded_loss is not None and math.isfinite(facts.recorded_loss)
    if math.isfinite(facts.recorded_norm) or not finite_loss or not facts.refused_before:
        return None
    if facts.measured.get("kept_gradients") is False:
        return None  # they were cleared
    what = "recorded gradients non-finite, losses and replayed gradients finite; the step before was refused"
    return _finding(0.92, Evidence("gradients left over", what, CODE), facts, "call zero_grad after every refused step")


def _summed(facts: Facts, k: int, ratio: float) -> Finding | None:
    """A sum in place of a mean; of what is NaN by now only where the same steps, with the mean, lead elsewhere."""
    what = f"{ratio:.2f} times the norm of the same {k} micro-batches replayed and averaged"
    found = _finding(0.95, Evidence("recorded gradient norm", what, CODE), facts, "divide each loss by --accumulate")
    if not nonfinite(facts):
        return found
    walk = facts.outcomes.get("retrace")
    if walk is None or not (facts.bad("same") and facts.good("earlier") and facts.healthy_retrace()):
        return None
    found.onset_step, found.detail["summed"] = walk.path[0][0], k
    return found


def _finding(confidence: float, evidence: Evidence, facts: Facts, fix: str) -> Finding:
    return Finding(CODE, confidence, Culprit(), [evidence, *facts.says(CODE, "same", "retrace")], facts.onset_step, fix)
