"""The loss itself, or its derivative, divides by zero.

What happens: one loss term is NaN while the others are finite; or the loss is finite and healthy and gradients
  are NaN.
Why: a mean over nothing (0/0) when a batch has no objects, the derivative of sqrt at 0, `where(x > 0, f(x), 0)`
  whose unused branch still sends NaN backwards, log(0), a class weight of 1/0 for an absent class.
How it is proved: targets, images and state are sound; the step fails again in float32 and on other weights;
  autograd's anomaly mode names the op and the line, be it one whose operand (a class weight) came in not finite.
  Where random numbers bring it about (an action, a level of noise), the same batch and weights are sound with others.
  Where the loss's own root or logarithm meets 0 for one batch, another is normal on the same weights, and nothing grew.
  Where the formula of a loss changes under way, a recorded step is taken again from its own weights: one term is
  another now, the others are what they were; or all are one factor of that, or turned around. Where the whole loss and
  its gradients are one factor of what they were in a loop that may weigh it anew, the loss has another weight, and the
  step is healthy in that measure; or steps that were sound diverge with that weight, at the rates of then. Where every
  gradient is one number times that of the same step taken again, the loss was multiplied after it was seen; below 0,
  somebody turned gradients around, and steps go up the loss. Where a
  second pass is sound with the buffers that the first one left, what divides is a buffer that nothing has filled yet.
  Where the loss is enormous from the first step on, or with one image alone, the largest number inside the model says
  whose doing it is, or the first op that makes such numbers of usual ones. Before any step an op inside the model is to
  blame that makes what is not finite of usual numbers, at every batch. Where the losses rise all the same with every
  rate at 0, the buffer that grows meanwhile is named.
What the guard does: skips the step, and keeps what its pass has put into buffers that were empty; stops where the
  formula itself changed, a buffer grows with every pass, or steps go up the loss. A lower learning rate does not
  help, but where a loop multiplies its loss in step after step, and steps grow with the gradient: they are made as
  long as they were.
How to fix it: `max(count, 1)`; mask the input of the op, not its output; add an epsilon inside the root; floor
  the class counts.
"""

from __future__ import annotations

import math

from maskrcnn_coco.diagnosis.facts import Facts, Redefined
from maskrcnn_coco.diagnosis.limits import LOSS_FACTOR
from maskrcnn_coco.diagnosis.rules.common import (
    QUOTIENTS,
    USUAL_INSIDE,
    diverges_as_weighed,
    divides_by_itself,
    divides_on_sound_weights,
    filled_by_a_pass,
    healthy,
    long_since,
    multiplied,
    nonfinite,
    spoilt_beside,
    sudden,
    turned,
)
from maskrcnn_coco.diagnosis.rules.fp16_overflow import overflows_by_itself
from maskrcnn_coco.records import Culprit, Evidence, Finding
from maskrcnn_coco.replay.outcome import CONSTANT, Outcome

CODE = "LOSS_MATH"
PRODUCTS = ("addmm", "mm ", "bmm", "linear", "conv", "matmul", "_scaled", "thnn", "mkldnn", "cudnn")

FROM_NOTHING = 1e6
THROWN = 1.0
"""Steps of more than a component's own norm; healthy ones stay below 0.12 of it."""


def judge(facts: Facts) -> Finding | None:
    if found := _of_another_weight(facts):
        return found
    same = facts.outcomes.get("same")
    if same is not None and _out_of_scale(facts, same):
        return _enormous(facts, same) if facts.bad("other") else _of_one_sample(facts, same)
    return None if same is None else _not_finite(facts, same)


def _of_another_weight(facts: Facts) -> Finding | None:
    """The loss, or a buffer that it goes by, is another than it was."""
    if facts.redefined is not None:
        return _redefined(facts, facts.redefined)
    if facts.lr_verdict is not None and facts.lr_verdict.swollen is not None:
        return _swollen(facts, *facts.lr_verdict.swollen)
    if facts.weighed is not None and facts.good("same"):
        return _weighed(facts, facts.weighed)
    if facts.weighed is not None and diverges_as_weighed(facts):
        return _too_heavy(facts, facts.weighed)
    if (times := multiplied(facts)) is not None:
        return _multiplied(facts, times)
    if (times := turned(facts)) is not None:
        return _turned(facts, times)
    return None


def _not_finite(facts: Facts, same: Outcome) -> Finding | None:
    if same.finite or same.error or not nonfinite(facts):
        return None
    if facts.certain_state() or facts.lethal() or facts.anchors or facts.good("fp32") or facts.good("reference"):
        return None
    if overflows_by_itself(facts) or spoilt_beside(facts):
        return None
    gradient_only = not same.bad_losses and same.bad_grad_count > 0
    one_term = len(same.bad_losses) == 1 and len(same.losses) > 1
    empty = filled_by_a_pass(facts)
    if not (gradient_only or one_term or empty or _behind_the_model(facts) or _divides(facts)):
        return None
    located = facts.location is not None and facts.location.op is not None
    # Finite on other weights, however large, is divergence; so is an overflow in a product of large numbers.
    if located and facts.location is not None and facts.location.op is not None:
        located = not facts.location.op.startswith(PRODUCTS) or gradient_only
    earlier = facts.outcomes.get("earlier")
    everywhere = (earlier is not None and not earlier.finite) or facts.by_chance or divides_on_sound_weights(facts)
    everywhere = (
        everywhere
        or divides_by_itself(facts)
        or (not facts.earlier_steps and (_nonfinite(facts, "other") or bool(facts.empty_images)))
    )
    usual = not facts.reference.count or abs(same.loss) <= LOSS_FACTOR * facts.reference.loss
    # After a step that threw the weights a loss may be as usual by chance: then older weights are asked.
    thrown = max(facts.update_ratio.values(), default=0.0) > THROWN
    normal_loss = gradient_only and usual and sudden(facts) and located and not thrown
    confidence = 0.93 if located and (everywhere or normal_loss) else 0.6 if everywhere or located else 0.3
    if not gradient_only and not one_term and "reference" not in facts.outcomes:
        confidence = min(confidence, 0.85)  # the model's own outermost ops look the same, and a kernel may be wrong
    evidence = facts.says(CODE, "!same", "!earlier", "other", "!fp32")
    culprit = Culprit()
    if facts.location is not None and located:
        culprit = Culprit(component=facts.location.component, module=facts.location.module)
        evidence.append(Evidence(f"locate: first bad op, {facts.location.phase}", str(facts.location.op), CODE))
    evidence += facts.says(CODE, "=chance", "=reseeded") if facts.by_chance else []
    if facts.guilty_images:
        culprit.image_ids = facts.guilty_images
        evidence += facts.says(CODE, "alone", "others")
    term = same.bad_losses[0] if same.bad_losses else None
    detail = {"term": term, "empty_images": facts.empty_images, "weights": healthy(facts), "taken": facts.taken}
    detail["sound_beside"] = divides_on_sound_weights(facts) or (_behind_the_model(facts) and facts.good("other"))
    # An image that brings it about on healthy weights too is left out: it would come back every epoch.
    detail["proved_on_healthy_weights"] = bool(facts.guilty_images) and facts.bad(healthy(facts))
    fix = f"look at {facts.location.op}" if located and facts.location else f"look at the maths of {term or 'the loss'}"
    if empty:
        confidence = 0.93
        evidence += facts.says(CODE, "=passed")
        detail["passed"] = True
        fix += ": it goes by a buffer that only a first pass fills"
    return Finding(CODE, confidence, culprit, evidence, facts.step, fix, detail)


def _out_of_scale(facts: Facts, same: Outcome) -> bool:
    """Whether the loss is beyond what a loss could make of the model's own numbers.

    Of those a square is the most that a loss takes; what is a million times as much the loss has put in by itself: for
    every batch before any step, or for samples that bring it about on healthy weights too. So has an op inside the
    model that makes such numbers of usual ones: they are no weight's.
    """
    if facts.inside is None or not same.finite or same.error or facts.state or facts.anchors or facts.suspects():
        return False
    everywhere = not facts.reference.count and facts.bad("other") and not facts.good("reference")
    of_some = bool(facts.guilty_images) and facts.good("other") and facts.bad(healthy(facts))
    # What all batches are compared with counts as well; of a single sample it may be the very fault.
    given = 0.0 if of_some else float(facts.measured.get("given") or 0.0)
    own = facts.grown is not None and facts.inside <= FROM_NOTHING * facts.grown[1]
    known = given if own else max(facts.inside, given)
    return (everywhere or of_some) and abs(same.loss) > FROM_NOTHING * (1.0 + known) ** 2


def _largest_term(same: Outcome) -> str | None:
    return max(same.losses, key=lambda k: abs(same.losses[k]), default=None)


def _enormous(facts: Facts, same: Outcome) -> Finding:
    evidence = [_watched(facts, same, "the loss"), *facts.says(CODE, "!same", "!other", "!earlier")]
    term = _largest_term(same)
    fix = f"look at what multiplies or divides {term or 'the loss'}: a weight, an exponent, a count"
    fix = f"look at {facts.grown[0]}" if facts.grown else fix
    return Finding(CODE, 0.92, Culprit(), evidence, facts.step, fix, {"term": term})


def _watched(facts: Facts, same: Outcome, term: str) -> Evidence:
    """What the watched replay says of an enormous loss: which op made it, or that none inside the model did."""
    what = f"no module takes or gives a number above {facts.inside:.4g}; {term} makes {same.loss:.4g} of it"
    if facts.grown:
        op, most = facts.grown
        what = f"{op}: up to {most:.4g}; {term} is {same.loss:.4g}"
        return Evidence("locate: first op that makes enormous numbers of usual ones", what, CODE)
    return Evidence("locate: every module watched", what, CODE)


def _of_one_sample(facts: Facts, same: Outcome) -> Finding:
    """Not sure: the formula may stand, and a number of the sample's that no scan knows be wrong."""
    term = _largest_term(same)
    evidence = [_watched(facts, same, term or "the loss")]
    evidence += facts.says(CODE, "!same", "!earlier", "=other", "alone", "others")
    culprit = Culprit(image_ids=facts.guilty_images or [], annotation_ids=facts.guilty_annotations)
    fix = (
        f"look at what divides {term or 'the loss'}, or stands in its exponent: a size, an area, a count of this sample"
    )
    fix = f"look at {facts.grown[0]}, and what this sample brings to it" if facts.grown else fix
    detail = {"term": term, "inside": facts.inside, "taken": facts.taken, "proved_on_healthy_weights": True}
    return Finding(CODE, 0.85, culprit, evidence, facts.step, fix, detail)


def _behind_the_model(facts: Facts) -> bool:
    """Whether the first op that is not finite is the losses' own, outside all modules.

    Of a single term any op counts; of several only one that divides, or one whose operand the losses bring along: a
    product may be of a number that was infinite.
    """
    place = facts.location
    if place is None or place.op is None or place.phase == "backward" or place.module is not None:
        return False
    own = place.op.startswith(QUOTIENTS) or CONSTANT in place.op
    return len(facts.outcomes["same"].losses) == 1 or (place.phase == "loss" and own)


def _divides(facts: Facts) -> bool:
    """Whether a module of the model's own divides by 0, or takes the root or logarithm of too little.

    For samples that bring it about on healthy weights too, or for every batch before any step: else the weights have
    led there. Other ops count as well (a determinant's logarithm, an inverse, an exponent) where they took nothing
    large, as no product has made that, and nothing is wrong with those samples themselves.
    """
    place = facts.location
    if place is None or place.op is None or place.phase != "forward":
        return False
    quotient = place.op.startswith(QUOTIENTS)
    of_some = bool(facts.guilty_images) and facts.good("other") and facts.bad(healthy(facts))
    if quotient and (of_some or facts.by_chance):
        return True
    of_some = of_some and not (facts.suspects() or facts.flat_images or facts.broken_entries)
    usual = place.took is not None and place.took <= USUAL_INSIDE and not place.op.startswith(PRODUCTS)
    asked = [n for n in ("other", "earlier") if n in facts.outcomes]
    everywhere = "other" in asked and not facts.reference.count and all(map(facts.bad, asked))
    return (everywhere and quotient) or ((everywhere or of_some) and usual)


def _redefined(facts: Facts, changed: Redefined) -> Finding:
    much = (
        f"{changed.ratio:.4g} times what was recorded then" if changed.ratio < math.inf else "it had no such term then"
    )
    term = changed.term or "every loss"
    what = f"{much}; every other loss is the same to the digit" if changed.term else f"{much}, each"
    test = f"replay: a recorded step, its own weights and batch, {term}"
    evidence = [Evidence(test, what, CODE), *facts.says(CODE, "same", "other", "retrace")]
    fix = f"look at what changes {term} from step {changed.step} on"
    detail = {
        "term": changed.term,
        "redefined": changed.ratio,
        "stops": "the loss is not the one that this run began with",
    }
    return Finding(CODE, 0.95, Culprit(), evidence, changed.step, fix, detail)


def _swollen(facts: Facts, name: str, times: float, component: str) -> Finding:
    """Losses rise although no weight moves: what grows from pass to pass is the model's own bookkeeping."""
    module = name.rpartition(".")[0] or None
    what = f"{times:.3g} times what it was, with every learning rate at 0; the losses rise with it beyond all bounds"
    evidence = [Evidence(f"replay: the last steps, learning rate 0, buffer {name}", what, CODE)]
    evidence += facts.says(CODE, "!same", "!retrace", "=earlier")
    culprit = Culprit(component=component, module=module)
    fix = f"look at what {module or 'the model'} adds to {name}: it grows with every pass"
    detail = {"swollen": times, "stops": "no rate and no way back changes what grows with every pass"}
    return Finding(CODE, 0.92, culprit, evidence, facts.step, fix, detail)


def _weighed(facts: Facts, factor: float) -> Finding:
    """Nothing is wrong with this step but its loss's weight."""
    what = f"loss and gradients are {factor:.4g} times what was recorded then, both alike"
    evidence = [Evidence("replay: a recorded step, its own weights and batch", what, CODE), *facts.says(CODE, "=same")]
    fix = "if the loss was weighed anew on purpose, say guard.new_regime() there; else look at what multiplies it"
    return Finding(CODE, 0.95, Culprit(), evidence, facts.step, fix, {"weighed": factor})


def _too_heavy(facts: Facts, factor: float) -> Finding:
    """The rates are what they were: with this weight even steps that the run took soundly diverge."""
    what = f"loss and gradients are {factor:.4g} times what was recorded then, both alike"
    evidence = [Evidence("replay: a recorded step, its own weights and batch", what, CODE)]
    evidence += facts.says(CODE, "!heavier", "!retrace", "!same", "earlier")
    fix = f"look at what multiplies the loss; if it is meant to, divide the learning rate by {factor:.3g}"
    detail = {"heavier": factor, "ruined": True}
    return Finding(CODE, 0.95, Culprit(), evidence, facts.onset_step, fix, detail)


def _multiplied(facts: Facts, times: float) -> Finding:
    """Somebody multiplied the loss after it was seen: no glitch has one factor for every number."""
    what = f"each is {times:.4g} times that of the same step taken again, to the digit; the loss is the same"
    evidence = [Evidence("gradients of the run", what, CODE), *facts.says(CODE, "=same", "=again")]
    fix = "look at what multiplies the loss between the model and backward(), or all gradients after it"
    since, detail = long_since(facts, times), {"multiplied": times}
    if since is not None:
        what = f"the recorded gradient of step {since} was {times:.4g} times as long as well, at the same loss"
        evidence.insert(1, Evidence(f"replay: {facts.outcomes['retrace'].test}", what, CODE))
        detail["ruined"] = True
    return Finding(CODE, 0.95, Culprit(), evidence, facts.step if since is None else since, fix, detail)


def _turned(facts: Facts, times: float) -> Finding:
    what = f"each is {times:.4g} times that of the same step taken again, to the digit: every step goes up the loss"
    evidence = [Evidence("gradients of the run", what, CODE), *facts.says(CODE, "=same", "retrace", "=earlier")]
    fix = "look at what turns the sign of gradients between backward() and the optimizer's step"
    if facts.measured.get("climbs"):
        fix = "look at what turns the sign of the loss between the model and backward()"
    stops = "the optimizer is given gradients that point up the loss"
    return Finding(CODE, 0.95, Culprit(), evidence, facts.onset_step, fix, {"turned": times, "stops": stops})


def _nonfinite(facts: Facts, name: str) -> bool:
    outcome = facts.outcomes.get(name)
    return outcome is not None and not outcome.finite
