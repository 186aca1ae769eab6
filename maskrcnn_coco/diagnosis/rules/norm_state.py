"""Normalisation layers whose statistics cannot be used.

What happens: every batch gives NaN or a huge loss from the first step on, whatever the learning rate; or
  training looks healthy and the evaluation finds nothing, because running statistics are NaN.
Why: a FrozenBatchNorm with eps 0 and a variance of 0 (or slightly below) divides by zero; a deep network
  without loaded weights whose frozen norm layers do nothing lets activations grow from layer to layer;
  trainable BatchNorm takes NaN into its buffers in the forward pass, although the update was skipped; a momentum
  above 1 has running statistics swing until a variance is below zero.
How it is proved: buffers are scanned for sign, eps and finiteness, and other batches fail at learning rate 0,
  on the weights from before the onset too: on weights that a divergence has ruined everything fails. Where a batch
  makes running statistics so in its forward pass, and its losses and gradients are sound, the replay shows that;
  where every batch does, the module keeps means that it cannot divide (codes that nobody has chosen yet).
What the guard does: puts the buffers of the newest verified state back; where the model was built this way it
  stops and says so; leaves out, or skips, what makes them so in its forward pass.
How to fix it: load pretrained weights (`--weights coco`, `--backbone-weights PATH`), use GroupNorm or trainable
  BatchNorm when training from scratch, keep eps at 1e-5.
"""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.rules.common import healthy
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "NORM_STATE"
OF_NUMBERS = ("nan", "inf", "finite")
"""Words of the errors that are about numbers which are not finite."""


def judge(facts: Facts) -> Finding | None:
    hits = [s for s in facts.state if s.where == "norm"]
    if not hits:
        return _by_forward(facts)
    certain = [s for s in hits if s.certain]
    same = facts.outcomes.get("same")
    if not certain and same is not None and same.error and not any(w in same.error.lower() for w in OF_NUMBERS):
        return None  # an error of the code's: layers that do nothing make numbers grow, and no more than that
    # On weights that a divergence has ruined every batch fails, whatever the norms hold: the state from before the
    # onset must fail too, or the norms must be new since then.
    before = not facts.earlier_steps or facts.bad("earlier") or facts.began_wild
    everywhere = facts.bad("same") and facts.bad("other") and before
    known = [s for s in hits if s.name in facts.norms_before]
    confidence = (0.98 if everywhere else 0.92) if certain else 0.93 if everywhere or _swung(facts) else 0.2
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


def _swung(facts: Facts) -> bool:
    """Whether what the step made unusable are the statistics of a layer whose momentum is above 1, and nothing else."""
    same = facts.outcomes.get("same")
    if same is None or same.error or same.bad_losses or same.bad_grad_count or not same.bad_buffers:
        return False
    swings = {s.module for s in facts.state if s.name.endswith(".momentum")}
    return all(name.rpartition(".")[0] in swings for name in same.bad_buffers)


def _by_forward(facts: Facts) -> Finding | None:
    """Nothing is wrong with a step but what it leaves in running statistics: a variance over one value is 0 / 0.

    Of other means that a module keeps in buffers (codes, centres) only where every batch does it, by any weights.
    """
    same = facts.outcomes.get("same")
    if same is None or same.error or same.bad_losses or same.bad_grad_count or facts.growing or facts.suspects():
        return None
    names = [n for n in same.bad_buffers if n.rpartition(".")[2].startswith("running_")]
    asked = [facts.outcomes[n] for n in ("other", "earlier") if n in facts.outcomes]
    everywhere = bool(asked) and all(set(o.bad_buffers) & set(same.bad_buffers) for o in asked)
    if not names and not everywhere:
        return None
    names = names or same.bad_buffers
    evidence = facts.says(CODE, "!same", "other", "earlier", "alone", "others")
    culprit = Culprit(module=names[0].rpartition(".")[0], image_ids=facts.guilty_images or [])
    fix = f"give {culprit.module} more than one value for each channel: a larger batch, or a variance that is biased"
    if everywhere:
        fix = f"look at what {culprit.module} divides its running means by: a count that is still 0, too few values"
    proved = bool(facts.guilty_images) and facts.bad(healthy(facts))
    detail = {"entries": names[:50], "by_forward": True, "proved_on_healthy_weights": proved}
    repeated = everywhere and facts.bad("again")
    return Finding(CODE, 0.93 if repeated else 0.6, culprit, evidence, facts.step, fix, detail)
