"""The step fails once and not again: hardware, or weights changed outside the step.

What happens: the same weights, batch and random numbers replay finite, or the weights before the step are not
  those that the recorded steps lead to.
Why: a flipped bit in memory, an overheating or overclocked device, a kernel that reads unwritten memory, other
  code that writes into the weights.
How it is proved: the step is replayed twice from the same state and both replays are finite and equal bit for
  bit; or the last steps are walked again from an older verified state and end in other weights than the run
  has. The differing tensor is named. A run's first step, whose gradient was a thousand times the second one's, is
  taken again, and has one that is nothing like as long.
What the guard does: goes back to the verified state before the damage and takes the step again.
How to fix it: if it comes back, test the device (memory test, another card, lower clocks); look for code that
  changes weights between steps.
"""

from __future__ import annotations

import math

from maskrcnn_coco.diagnosis.facts import LEAP, Facts
from maskrcnn_coco.diagnosis.rules.common import (
    MULTIPLIED,
    by_the_loop,
    keeps_graph,
    led_there,
    multiplied,
    nonfinite,
    turned,
)
from maskrcnn_coco.records import Culprit, Evidence, Finding

CODE = "TRANSIENT"
FIX = "maskrcnn-coco doctor"
WORSE, NEAR = 2.0, 0.05
"""So many times the healthy loss is trouble; a replayed loss within this share of the recorded one is the same."""
LOUDER = 1e3
OFTEN = 50
"""Steps within which a third failure that a replay does not show is no chance: something is not replayed."""


def judge(facts: Facts) -> Finding | None:
    outside = facts.measured.get("changed_outside")
    if outside:
        before, now = facts.measured.get("norm_before"), facts.measured.get("norm")
        what = f"{', '.join(map(str, outside[:3]))}: norm {before} → {now}"
        evidence = [Evidence("guard: weights between two steps", what, CODE)]
        module = str(outside[0]).rpartition(".")[0] if len(outside) == 1 else None
        culprit = Culprit(component=facts.measured.get("component"), module=module)
        fix = FIX
        if facts.measured.get("changes") is not None:
            count, times = facts.measured["changes"]
            evidence.append(Evidence(f"guard: the last {count} such changes together", f"norm × {times:.3g}", CODE))
            fix = f"look for what writes into {outside[0]} between steps: each change is small, all together are not"
        return Finding(CODE, 0.95, culprit, evidence, facts.step, fix, {"changed": list(outside)[:50]})
    if facts.measured.get("steep_at") is not None:
        return _steep_at_first(facts)
    if multiplied(facts) is not None or turned(facts) is not None or "setting" in facts.measured:
        return None  # one factor for every number is no glitch
    drift = facts.drift
    # Where those steps diverge by themselves, what the weights are off by decided nothing: a chaos amplifies the last
    # digit, and a loop's own clip may not survive a norm that overflows.
    proof = not facts.bad("retrace") and facts.weighed is None and not _arrives(facts)
    if drift is not None and proof and not facts.unrepeatable():
        what = f"{drift.name} differs by {drift.relative:.3g} of its norm from what steps {drift.from_step}.. lead to"
        evidence = [Evidence(f"replay: steps {drift.from_step} to {facts.step - 1} taken again", what, CODE)]
        culprit = Culprit(component=drift.component, module=drift.module)
        # What was copied since may hold the damage; where the walk began, it was not yet.
        detail = {"changed": drift.name, "to_step": drift.from_step}
        return Finding(CODE, 0.95, culprit, evidence + facts.says(CODE, "retrace"), facts.step, FIX, detail)
    if facts.symptom in ("scale_collapse", "stalled") or facts.redefined is not None:
        return None
    if facts.measured.get("climbs"):
        return None  # replays go down what the loop goes up
    if facts.symptom == "input_nonfinite" and facts.suspects():
        return None  # without suspects the model is meant to be given such numbers, and the replay took them
    if facts.certain_state() or facts.lethal() or facts.bad("live") or facts.measured.get("every_batch"):
        return None
    if facts.unrepeatable() or by_the_loop(facts) or keeps_graph(facts):
        return None
    if led_there(facts) and not facts.not_repeated():
        return None  # the update would be as large again
    if facts.measured.get("by_update") and not facts.good("update"):
        return None  # what failed is the update, and that was not shown to be sound the second time
    if facts.healthy_retrace() and not nonfinite(facts):
        return _retraced(facts)
    if isinstance(facts.measured.get("moved"), dict):
        return None  # weights that a row of steps threw about, whatever its last loss is
    if facts.came_and_went():
        return _flaky(facts)
    if not facts.good("same") and not _finite_now(facts) and not _far_calmer(facts):
        return None
    if facts.symptom == "diverged" and not facts.not_repeated():
        return None  # the replay is the step as the run took it: nothing came and went
    return _once(facts)


def _steep_at_first(facts: Facts) -> Finding:
    """The guard saw that the run's first gradient was not its loss's; the optimizer's state remembers it."""
    first, norm = int(facts.measured["steep_at"]), float(facts.measured["grad_norm"])
    what = f"its gradient is less than a hundredth of the {norm:.4g} that the run had"
    evidence = [Evidence(f"replay: step {first} taken again", what, CODE)]
    return _sure(Finding(CODE, 0.95, Culprit(), evidence, first, FIX, {"to_step": first}), facts)


def _finite_now(facts: Facts) -> bool:
    """Whether what was NaN is a number in the replay, if a loud one: data with heavy tails have such batches.

    Not where it is as enormous as the step was: a norm beyond 1e19 overflows where it is recorded alone.
    """
    nan = facts.symptom in ("loss_nonfinite", "grad_nonfinite") and not facts.growing
    return nan and facts.not_repeated() and not facts.refused_before


def _far_calmer(facts: Facts) -> bool:
    """Whether the step is sound as far as losses go, and was thousands of times as loud when the run took it.

    Its gradients may be above the usual all the same: a loud step of the run's own came just before.
    """
    same, again = facts.outcomes.get("same"), facts.outcomes.get("again")
    if same is None or again is None or not facts.reference.count or not facts.not_repeated() or facts.handled():
        return False
    sound = 0.0 <= same.loss <= facts.limits()[0] and again.finite and bool(facts.faithful)
    recorded = facts.recorded_loss
    louder = recorded is not None and math.isfinite(recorded) and recorded > LOUDER * same.loss
    return sound and louder and facts.drift is None


def _arrives(facts: Facts) -> bool:
    """Whether the steps as they were lead to the very trouble: a weight that is off all the same has not made it.

    Adam takes whole steps along gradients that are rounding and nothing else, as those of an attention's key bias are.
    """
    walk, last = facts.outcomes.get("retrace"), facts.recorded_loss
    if walk is None or not walk.finite or last is None or not math.isfinite(last):
        return False
    return last > WORSE * facts.reference.loss and abs(walk.loss - last) <= NEAR * last


def _once(facts: Facts) -> Finding:
    """The refused step itself, replayed, is a normal one."""
    same, again = facts.outcomes["same"], facts.outcomes.get("again")
    exact = again is not None and again.digest == same.digest
    # Some CUDA kernels add in any order: then equal to a thousandth is all that can be asked, and it is said.
    pairs = [] if again is None else [(again.loss, same.loss), (again.grad_norm, same.grad_norm)]
    close = again is not None and again.finite and all(abs(a - b) <= 1e-3 * abs(b) for a, b in pairs)
    another = nonfinite(facts) or facts.not_repeated()
    confidence = 0.93 if (exact or close) and another else 0.6
    if same.times is not None and same.times > MULTIPLIED:
        # A glitch of the loss does that to all gradients, and so does whoever multiplies them: the next step will tell.
        confidence = min(confidence, 0.85)
    evidence = facts.says(CODE, "=same", "=again")
    if facts.not_repeated() and facts.recorded_loss is not None:
        what = f"loss {facts.recorded_loss:.4g}, gradient norm {facts.recorded_norm or 0.0:.4g}"
        evidence.insert(0, Evidence("the step as the run took it", what, CODE))
    evidence.append(
        Evidence("the two replays", "equal bit for bit" if exact else "equal to a thousandth" if close else "differ")
    )
    return _sure(Finding(CODE, confidence, _of_state(facts), evidence, facts.step, FIX), facts)


def _flaky(facts: Facts) -> Finding:
    """A device not to be relied on: it failed at the step and at the first replay; nothing was changed since."""
    evidence = [*facts.says(CODE, "!same", "=again"), Evidence("the two replays", "one failed, and one did not", CODE)]
    # An error is raised or it is not; numbers may also follow something that no replay sets back.
    confidence = 0.92 if facts.symptom == "crash" else 0.7
    return _sure(Finding(CODE, confidence, Culprit(), evidence, facts.step, FIX), facts)


def _of_state(facts: Facts) -> Culprit:
    """Whose the state, gradients or update are that the guard found bad, and the replay does not."""
    names = [str(n).rpartition(" of ")[2] for n in facts.measured.get("optimizer_state") or ()]
    modules = {n.rpartition(".")[0] for n in names}
    if len(modules) == 1:
        return Culprit(component=facts.measured.get("component"), module=modules.pop())
    if facts.symptom == "grad_nonfinite":
        return _of_gradients(facts)
    bound = facts.measured.get("update_bound")
    far = [c for c, v in bound.items() if v > LEAP] if isinstance(bound, dict) else []
    return Culprit(component=far[0] if len(far) == 1 else None)


def _of_gradients(facts: Facts) -> Culprit:
    """Whose the gradients are that were not finite, where all others were."""
    norms = facts.measured.get("group_grad_norm") or {}
    bad = [c for c, v in norms.items() if not math.isfinite(float(v))]
    modules = {str(n).rpartition(".")[0] for n in facts.measured.get("parameters") or ()}
    if len(bad) != 1 or len(norms) < 2:
        return Culprit()
    return Culprit(component=bad[0], module=next(iter(modules)) if len(modules) == 1 else None)


def _retraced(facts: Facts) -> Finding:
    """The steps before it, taken again from an older state with nothing changed, do not diverge."""
    evidence = facts.says(CODE, "=retrace", "same")
    walk = facts.outcomes["retrace"]
    first = walk.path[0][0] if walk.path else facts.step
    evidence.append(Evidence(f"the run from step {first} on", "diverged, with the same batches and rates", CODE))
    # A rival that is trained beside this network is not taken back with it: the loss is of another one now.
    confidence = 0.92 if facts.faithful and not facts.settings.get("rivals") else 0.6
    # Copies that were made since may hold what went wrong; the one that was walked from is known to be sound.
    where = Culprit(component=facts.astray)
    found = Finding(CODE, confidence, where, evidence, min(facts.onset_step, facts.step), FIX, {"to_step": first})
    return _sure(found, facts)


def _sure(finding: Finding, facts: Facts) -> Finding:
    """Less sure where replays are known not to do what the run does, or where it is not the first time."""
    before = [s for s in facts.settings.get("glitches") or () if facts.step - OFTEN <= s]
    if facts.step in before or len(before) >= 2:
        finding.confidence = min(finding.confidence, 0.6)
        when = ", ".join(map(str, before[-3:]))
        finding.evidence.append(Evidence("the same before", f"at step {when}: no glitch comes so often"))
    if facts.faithful is False or facts.missing:
        finding.confidence = min(finding.confidence, 0.6)
        why = ", ".join(facts.missing[:3]) or "a recorded healthy step, replayed, gives another loss"
        finding.evidence.append(Evidence("how far replays can be trusted", why))
    return finding
