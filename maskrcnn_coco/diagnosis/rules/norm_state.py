"""Normalisation layers whose statistics cannot be used.

What happens: every batch gives NaN or a huge loss from the first step on, whatever the learning rate; or
  training looks healthy and the evaluation finds nothing, because running statistics are NaN.
Why: a FrozenBatchNorm with eps 0 and a variance of 0 (or slightly below) divides by zero; a deep network
  without loaded weights whose frozen norm layers do nothing lets activations grow from layer to layer;
  trainable BatchNorm takes NaN into its buffers in the forward pass, although the update was skipped; a momentum
  above 1 has running statistics swing until a variance is below zero.
How it is proved: buffers are scanned for sign, eps and finiteness, and other batches fail at learning rate 0,
  on the weights from before the onset too: on weights that a divergence has ruined everything fails.
What the guard does: puts the buffers of the newest verified state back; where the model was built this way it
  stops and says so.
How to fix it: load pretrained weights (`--weights coco`, `--backbone-weights PATH`), use GroupNorm or trainable
  BatchNorm when training from scratch, keep eps at 1e-5.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "NORM_STATE"


def judge(facts: Facts) -> Finding | None:
    hits = [s for s in facts.state if s.where == "norm"]
    if not hits:
        return None
    certain = [s for s in hits if s.certain]
    # On weights that a divergence has ruined every batch fails, whatever the norms hold: the state from before the
    # onset must fail too, or the norms must be new since then.
    before = not facts.earlier_steps or facts.bad("earlier") or facts.began_wild
    everywhere = facts.bad("same") and facts.bad("other") and before
    known = [s for s in hits if s.name in facts.norms_before]
    confidence = (0.98 if everywhere else 0.92) if certain else 0.93 if everywhere else 0.2
    if facts.good("earlier") and not facts.began_wild and len(known) == len(hits):
        confidence = 0.2  # as bad before the onset, where the same batch trains
    first = (certain or hits)[0]
    evidence = [Evidence(f"scan: state, {s.name}", s.what, CODE) for s in (certain or hits)[:8]]
    evidence += facts.says(CODE, "!same", "!other", "!earlier")
    culprit = Culprit(component=first.component, module=first.module, checkpoint=facts.settings.get("resume_path"))
    fix = "--weights coco" if first.name == "identity" else "restore real norm statistics, or set eps to 1e-5"
    if first.name.endswith(".momentum"):
        fix = "give the norm layers a momentum between 0 and 1"
    detail = {"entries": [s.name for s in hits[:50]], "at_load": not facts.earlier_steps}
    return Finding(CODE, confidence, culprit, evidence, facts.step, fix, detail)
