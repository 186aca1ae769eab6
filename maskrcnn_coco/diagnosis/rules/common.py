"""What several rules share: findings about data, and the check that a repair cured the step."""

from __future__ import annotations

from maskrcnn_coco.diagnosis.facts import SLACK, Facts, InputFault, TargetFault, far_apart
from maskrcnn_coco.diagnosis.limits import LOSS_FACTOR, SOON
from maskrcnn_coco.records import GRAPH_ERRORS, PROVED, Culprit, Evidence, Finding
from maskrcnn_coco.replay.outcome import CONSTANT
from maskrcnn_coco.wording import annotation_words

CURE_LOSS, CURE_NORM = 3.0, 5.0
"""A repaired batch cures if loss or gradient norm falls by such a factor; batches of one run differ by less."""

USUAL_INSIDE = 1e3
"""What modules take and give in models that learn stays below it, unless somebody's units are others."""

QUOTIENTS = (
    *("div", "log", "sqrt", "rsqrt", "reciprocal", "pow", "acos", "asin", "atanh"),
    *("std", "var", "fmod", "remainder", "lgamma", "erfinv"),
    *("mean over nothing", "median over nothing", "nanmean over nothing"),
)
"""Ops that make what is not finite of finite numbers, however small those are."""


def healthy(facts: Facts) -> str:
    """The replay of the failing batch on the healthiest weights known."""
    return "earlier" if "earlier" in facts.outcomes else "same"


def cured_by(facts: Facts, test: str) -> bool:
    """Whether the repaired or reduced batch is normal where the whole one, on the same weights, is not."""
    whole, repaired = facts.outcomes.get(healthy(facts)), facts.outcomes.get(test)
    if whole is None or repaired is None or facts.abnormal(repaired):
        return False
    if facts.abnormal(whole):
        return True
    return abs(whole.loss) > CURE_LOSS * abs(repaired.loss) or whole.grad_norm > CURE_NORM * repaired.grad_norm


MULTIPLIED, NEARLY = 3.0, 1.1
"""Gradients so many times as long are no matter of taste."""
ROW = 2
"""Steps behind a divergence, at least, that were taken up the loss."""


def multiplied(facts: Facts) -> float | None:
    """So many times as long as the loss makes them all gradients were, though the loss is as it was seen.

    Either the backward pass brought that number to the loss, or it is not the first step in a row: a glitch is. A row
    are steps that were refused for it, or recorded ones that were as long.
    """
    same, seen = facts.outcomes.get("same"), facts.recorded_loss
    if same is None or same.times is None or seen is None or facts.symptom != "diverged":
        return None
    by_loop = facts.measured.get("kept_gradients") or facts.measured.get("still_scaled")
    summed = facts.accumulate > 1 and abs(same.times / facts.accumulate - 1) < 0.1
    other = by_loop or summed or far_apart(seen, same.loss)
    brought = float(facts.measured.get("brought") or 0.0) * facts.accumulate / (facts.loss_scale or 1.0)
    again = any(facts.step - SOON <= s < facts.step for s in facts.settings.get("glitches") or ())
    shown = again or not far_apart(brought, same.times, NEARLY) or long_since(facts, same.times) is not None
    return same.times if same.times > MULTIPLIED and shown and not other else None


def turned(facts: Facts) -> float | None:
    """The number below 0 that all gradients were multiplied by after the backward pass, step after step.

    A loop that goes back from its loss times less than 0 from the first step on may mean it. A single step leads
    nowhere.
    """
    same, meant = facts.outcomes.get("same"), facts.measured.get("climbs") and not facts.measured.get("uphill")
    if same is None or same.times is None or facts.symptom != "diverged" or meant:
        return None
    row = facts.onset_step is not None and facts.step - facts.onset_step >= ROW
    return same.times if same.times < 0 and row and not far_apart(facts.recorded_loss or 0.0, same.loss) else None


def long_since(facts: Facts, times: float) -> int | None:
    """The first step, taken again, whose recorded gradient was ``times`` as long already; None: none was."""
    walk = facts.outcomes.get("retrace")
    long = [] if walk is None else [s for s, v in walk.longer.items() if not far_apart(v, times, NEARLY)]
    return min(long, default=None)


def by_the_loop(facts: Facts) -> bool:
    """Gradients that a loop did not clear or unscale; or only the gradients were bad, in a loop that handles them.

    What it does after the backward pass is not replayed, and is the likelier culprit (a division by a norm of 0).
    """
    if facts.measured.get("kept_gradients") or facts.measured.get("still_scaled") or facts.left_over():
        return True
    own = bool(facts.settings.get("own_gradients")) and facts.symptom == "grad_nonfinite"
    same = facts.outcomes.get("same")
    return (
        own and same is not None and facts.recorded_loss is not None and not far_apart(facts.recorded_loss, same.loss)
    )


def keeps_graph(facts: Facts) -> bool:
    """Autograd's complaint about a tensor of an earlier step: a replay, whose model is a copy without it, has none."""
    return any(said in str(facts.measured.get("error")) for said in GRAPH_ERRORS)


def cured(facts: Facts) -> str | None:
    """The repair that cured the step, if one did."""
    return next((t for t in ("repaired", "without") if cured_by(facts, t)), None)


def data_finding(
    facts: Facts, code: str, hits: list[TargetFault] | list[InputFault], scan: str, fix: str
) -> Finding | None:
    """The finding of a data rule whose scan has ``hits``; lethal ones are proved by the scan itself."""
    if not hits:
        return None
    evidence = [Evidence(f"scan: {scan}, image {h.image_id}{_annotation(h)}", h.what, code) for h in hits[:8]]
    test = cured(facts)
    if any(h.lethal for h in hits):
        # A batch that stays bad without the named image has a second fault; then the scan alone is no proof.
        confidence = 0.6 if facts.bad("without") and facts.suspects() != facts.image_ids else 0.98
        evidence += facts.says(code, "=without")
    elif test is not None or facts.symptom == "input_nonfinite":
        # An alarm of the input check is this very scan; otherwise a replay must show that the fault matters.
        confidence = 0.95
        evidence += facts.says(code, f"!{healthy(facts)}", f"={test or ''}")
    elif any(h.form for h in hits) and facts.symptom == "crash":
        # Nothing of the batch is left to try without: other batches, which have not this form, say it.
        confidence = 0.93 if facts.good("other") and not facts.widespread else 0.6
        confidence = 0.92 if facts.widespread and facts.raises_everywhere() else confidence
        evidence += facts.says(code, "!same", "=other")
    else:
        confidence = 0.2
    images = list(dict.fromkeys(h.image_id for h in hits))
    annotations = [a for a in dict.fromkeys(getattr(h, "annotation_id", None) for h in hits) if a is not None]
    detail = {"widespread": facts.widespread, "proved_on_healthy_weights": confidence >= PROVED}
    culprit = Culprit(image_ids=images, annotation_ids=annotations)
    return Finding(code, confidence, culprit, evidence, facts.step, fix, detail)


def _annotation(hit: TargetFault | InputFault) -> str:
    annotation = getattr(hit, "annotation_id", None)
    return "" if annotation is None else f", {annotation_words([annotation])}"


def replayed_data(facts: Facts, code: str, terms: tuple[str, ...], fix: str) -> Finding | None:
    """A clean scan, but replays name one annotation, and only the losses in ``terms`` are bad with it."""
    if not facts.guilty_images or not facts.guilty_annotations or facts.targets or facts.inputs:
        return None
    bad = set(facts.outcomes[healthy(facts)].bad_losses)
    if not bad or not bad <= set(terms):
        return None
    culprit = Culprit(image_ids=facts.guilty_images, annotation_ids=facts.guilty_annotations)
    evidence = facts.says(code, healthy(facts), "other", "alone", "others")
    detail = {"widespread": False, "proved_on_healthy_weights": True}
    return Finding(code, 0.8, culprit, evidence, facts.step, fix, detail)


def led_there(facts: Facts) -> bool:
    """Whether the guard refused the update by its size, and the steps before it, taken again, speak for nobody else.

    They do where weights and batch of the refused step are far off, and those steps lead to where all is usual.
    """
    return facts.leap and not (facts.bad("same") and facts.healthy_retrace())


def divides_on_sound_weights(facts: Facts) -> bool:
    """A loss's own division (root, logarithm) fails for this batch, on weights that have not diverged.

    Another batch is normal on them, and this one on those of before: a lower rate would only have led past the 0.
    """
    place = facts.location
    own = place is not None and place.op is not None and place.module is None and place.op.startswith(QUOTIENTS)
    return own and sudden(facts) and facts.good("other") and facts.good("earlier")


def filled_by_a_pass(facts: Facts) -> bool:
    """A second pass is sound with the buffers that the first left, and not without: they were empty."""
    return facts.good("passed") and facts.bad("again")


def divides_by_itself(facts: Facts) -> bool:
    """A loss's own division (root, logarithm) fails all at once, and no number inside the model is a large one.

    Weights that a rate throws about give large ones: what saturates at usual numbers does so at any rate in the end.
    """
    place = facts.location
    own = place is not None and place.op is not None and place.module is None and place.op.startswith(QUOTIENTS)
    return own and sudden(facts) and facts.inside is not None and facts.inside <= USUAL_INSIDE


def spoilt_beside(facts: Facts) -> bool:
    """What is not finite is neither the model's nor the batch's, and was finite in steps that were taken.

    Something that the script keeps from step to step: their batches fail today, and on older weights this one too.
    """
    place = facts.location
    brought = place is not None and place.module is None and CONSTANT in str(place.op)
    asked = [facts.outcomes.get(n) for n in ("other", "earlier")]
    return brought and facts.reference.count > 0 and all(o is not None and not o.finite and not o.error for o in asked)


def diverges_as_weighed(facts: Facts) -> bool:
    """Whether steps from before the onset, sound in the run, diverge with the loss's new weight, at rates no higher."""
    if facts.weighed is None or not facts.bad("retrace") or max(facts.rises.values(), default=1.0) > SLACK:
        return False
    most = facts.limits()[0]
    walks = [facts.outcomes[n].path for n in ("retrace", "heavier") if n in facts.outcomes]
    return any(step < facts.onset_step and not abs(v) <= most for path in walks for step, v, _ in path)


def sudden(facts: Facts) -> bool:
    """Something is not finite, and neither loss nor gradients had grown before; or what had is over.

    A small loss is noisy, and one that doubles may be any batch's: gradients alone are not finite then, of a loss that
    is usual, and another batch is normal on the same weights.
    """
    return nonfinite(facts) and (not facts.growing or _gradients_alone(facts))


def _gradients_alone(facts: Facts) -> bool:
    same = facts.outcomes.get("same")
    if same is None or same.bad_losses or not same.bad_grad_count or not facts.reference.count:
        return False
    return abs(same.loss) <= LOSS_FACTOR * facts.reference.loss and facts.good("other")


def nonfinite(facts: Facts) -> bool:
    """The alarm was about non-finite numbers, not about large ones."""
    return facts.symptom.endswith("_nonfinite") or facts.symptom in ("crash", "scale_collapse")
