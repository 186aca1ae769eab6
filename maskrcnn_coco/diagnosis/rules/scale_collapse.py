"""The loss scale fell so far that gradients are lost, and no longer recovers.

What happens: GradScaler halves the scale at every refused step and has no floor: after 166 of them it is
  exactly 0, and the next good batch gives NaN. Before that, small gradients round to zero and training stands
  still with a normal loss.
Why: something makes every step non-finite whatever the scale (NaN input, overflow in the forward pass), or
  gradients are clipped before they are unscaled. Or the optimizer steps past its scaler: gradients that are still
  multiplied by the scale.
How it is proved: the scale is below its floor, and the same batch and weights at a normal scale give finite, normal
  gradients; or the norm of the gradients, times the scale, is one typed number at step after step.
What the guard does: puts the scale back to a normal value and holds it above a floor; the inner cause is named
  where there is one.
How to fix it: `--amp bf16` needs no loss scale.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "SCALE_COLLAPSE"
NORMAL_SCALE = 2.0**12
STEP = "scaler.step(optimizer) in place of optimizer.step(), or scaler.unscale_(optimizer) before it"

UNSCALE = "scaler.unscale_(optimizer) before clip_grad_norm_"


def judge(facts: Facts) -> Finding | None:
    scale = facts.measured.get("still_scaled")
    if scale:
        what = f"not divided by the loss scale: they are {scale:g} times too large for the optimizer"
        evidence = [Evidence("gradients at optimizer.step()", what, CODE)]
        return Finding(CODE, 0.95, Culprit(), evidence, facts.onset_step, STEP, {"still_scaled": scale})
    bound = facts.measured.get("clipped_scaled")
    if bound:
        what = f"{facts.measured.get('norm') or 0.0:.3g} at step after step: {bound:g} divided by the loss scale"
        evidence = [Evidence("norm of the gradients at optimizer.step()", what, CODE)]
        return Finding(CODE, 0.95, Culprit(), evidence, facts.onset_step, UNSCALE, {"clipped_scaled": bound})
    hits = [s for s in facts.state if s.where == "scaler"]
    still = facts.symptom == "stalled" and facts.precision == "fp16"
    if facts.symptom != "scale_collapse" and not hits and not still:
        return None
    evidence = [Evidence("scan: loss scale", s.what, CODE) for s in hits]
    if facts.symptom == "scale_collapse":
        shown = "unknown" if facts.loss_scale is None else f"{facts.loss_scale:.3g}"
        evidence.append(Evidence("guard: loss scale below its floor while weights stand still", shown, CODE))
    evidence += facts.says(CODE, "rescaled")
    confidence = 0.95 if facts.good("rescaled") and not still else 0.6
    if still:
        lost = facts.norm_ratio is not None and facts.norm_ratio < 0.01
        tiny = facts.loss_scale is not None and facts.loss_scale < 1
        if lost:
            what = f"{facts.norm_ratio:.2g} of the norm that the same step has when replayed"
            evidence.append(Evidence("recorded gradient norm", what, CODE))
        if tiny:
            evidence.append(Evidence("recorded loss scale", f"{facts.loss_scale:.3g}", CODE))
        confidence = 0.9 if lost or tiny else 0.5
    detail = {"loss_scale": NORMAL_SCALE}
    return Finding(CODE, confidence, Culprit(), evidence, facts.onset_step, "--amp bf16", detail)
