"""The learning rate of one component (or of all) is too high: the training diverges.

What happens: learning rate too high → large updates → extreme activations → overflow to inf in the forward pass
  → NaN in the loss → NaN gradients → every weight NaN. It may also stay finite for ever, with a loss of 1e28.
  Usually the gradient norm grows for several steps before.
Why: `--lr` or a head multiplier above what the curvature allows, no or short warm-up, a batch size changed
  without the lr, momentum of 1 or more, a weight decay whose product with the lr passes 2. Clipping helps
  against an explosion: a norm of 1000 scaled to 10 keeps the direction. It does not help against an inf or a
  NaN: scaling those gives NaN again.
How it is proved: the same batch is normal on the weights of some steps before, and those steps, taken again as they
  were, diverge again (where they do not, something else happened once). Then they are taken again with the learning
  rate of one component lowered: it stays bounded; with all others lowered and this one as it was, it diverges again.
  The component whose loss grew most is the wrong one half the time; the order of the tests comes from the
  update-to-weight ratio before the onset. Where weights are thrown about and no loss has risen, short steps that cost
  no more make it likely (0.75). An update that was refused because its rates are not those of the plan is made on a
  copy, at both. A setting of the optimizer beside the rate is to blame where the steps stay bounded at the very rates
  they had, with it as it was before somebody changed it; or, where it was so from the start, with the default of its
  class, and are too long with it at a tenth of the rates too. A loop's momentum above 1, or decay that takes more
  than half of each weight in a step, is named by what it is in the first steps, before it shows in a loss.
What the guard does: goes back to the snapshot before the onset, lowers that component alone, and raises it again
  later if it holds. A setting that was proved wrong has the sound value from then on. Rates that somebody set beside
  the plan are held to the plan from then on.
How to fix it: `--head-lr-multiplier`, `--rpn-lr-multiplier`, `--lr`, `--warmup-steps`; `maskrcnn-coco advise
  --data PATH` measures the largest stable values.
"""

from __future__ import annotations

import math
from typing import Any

from maskrcnn_coco.diagnosis.facts import Facts
from maskrcnn_coco.diagnosis.limits import CALM, SLOWEST, SOUND
from maskrcnn_coco.diagnosis.lr_verdict import LrTrial, LrVerdict
from maskrcnn_coco.diagnosis.rules.common import diverges_as_weighed, divides_by_itself, led_there
from maskrcnn_coco.records import Culprit, Evidence, Finding, StepRecord

CODE = "LR_TOO_HIGH"
MEANINGLESS = {
    "momentum": "momentum is 1 or more: no gradient is ever forgotten, and steps only grow",
    "weight_decay": "rate times weight decay is above a half: what a step adds is gone with the next",
}
"""Settings beyond sense, and what they do whatever the loss is."""
GROWN = ("diverged", "loss_nonfinite", "grad_nonfinite", "param_nonfinite", "optimizer_nonfinite")
"""Symptoms that weights come to which only ever move faster."""
THROWS = 5.0
"""An update so many times as long as the one that was planned is none of the plan's."""
SETS = "look for what sets the learning rate between steps: optimizer.param_groups[...]['lr']"


def judge(facts: Facts) -> Finding | None:
    verdict = facts.lr_verdict
    if beside := _beside_the_plan(facts):
        return beside
    senseless = facts.measured.get("setting") in MEANINGLESS
    if (facts.healthy_retrace() and not led_there(facts) and not senseless) or facts.redefined is not None:
        return None  # the steps as they were, taken again, do not diverge: no rate is to blame
    if facts.climbs or divides_by_itself(facts):
        return None  # a lower rate only leads there later: upwards as it is told to, or to where the loss divides by 0
    if verdict is None or not (verdict.sufficient and verdict.settings):
        verdict = _by_itself(facts) or verdict
    if verdict is None or not verdict.sufficient:
        if facts.good("earlier") and facts.growing and verdict is None:
            evidence = facts.says(CODE, "!same", "=earlier")
            return Finding(CODE, 0.5, Culprit(), evidence, facts.onset_step, "--lr (lower)", {"components": []})
        return None
    every = len(verdict.components) == len(facts.components) and len(facts.components) > 1
    culprit = Culprit(component=None if every else verdict.components[0])
    # The walks that decided come first: a person reads the first two.
    trials = sorted(verdict.trials, key=lambda t: _rank(t, verdict))
    deciding = [t for t in trials if _rank(t, verdict) < 2]
    evidence = [_evidence(t, verdict, facts.step) for t in deciding]
    said = [MEANINGLESS[name] for name in verdict.settings if name in MEANINGLESS]
    evidence += [] if trials else [Evidence("settings of the optimizer", text, CODE) for text in said]
    evidence += facts.says(CODE, "=earlier", "!same", "!retrace")
    evidence += [_evidence(t, verdict, facts.step) for t in trials[len(deciding) :]]
    detail: dict[str, Any] = {
        "components": [*verdict.components, *verdict.also],
        "factor": unhurried(verdict.step_down, [*verdict.components, *verdict.also], facts),
        "update_ratio": facts.update_ratio,
        "lr": facts.lr,
        "snapshots": facts.earlier_steps,
        "holds": verdict.holds is not None,
    }
    foreign = {c: v for c, v in facts.foreign_rates.items() if c in detail["components"]}
    evidence = [_foreign(c, *v) for c, v in foreign.items()] + evidence
    fix = fix_of(facts, verdict)
    leapt = {c: facts.leapt[c] for c in detail["components"] if c in facts.leapt}
    if leapt and not foreign:
        evidence = [_leapt(c, v, facts) for c, v in leapt.items()][:1] + evidence
        detail["leapt"] = leapt
    if foreign:
        # The plan was never tried: it is what the run goes back to.
        detail["foreign_rates"] = foreign
        fix = SETS
    detail |= {k: v for k, v in verdict.settings.items() if not isinstance(v, dict)}
    if usual := {k: v for k, v in verdict.settings.items() if isinstance(v, dict)}:
        detail |= {"usual": usual, "since": verdict.since}
    if verdict.most:
        detail["most"] = verdict.most
    if verdict.back_to is not None:
        detail["back_to"] = verdict.back_to
    return Finding(CODE, _confidence(verdict, facts), culprit, evidence, verdict.from_step, fix, detail)


def _beside_the_plan(facts: Facts) -> Finding | None:
    """The guard refused an update at rates that are not the plan's, and at those of the plan it is a usual one."""
    own, planned = facts.outcomes.get("update"), facts.outcomes.get("planned")
    if own is None or planned is None or own.error or own.moved is None or planned.moved is None or not planned.finite:
        return None
    if own.moved <= max(CALM, THROWS * planned.moved):
        return None
    foreign: dict[str, list[float]] = facts.measured["foreign"]
    named = list(foreign)
    every = len(named) == len(facts.components) and len(named) > 1
    evidence = [_foreign(c, facts.step, *rates) for c, rates in foreign.items()]
    evidence += [facts.say("update", CODE), facts.say("planned", CODE)]
    # Steps before it that were taken at such rates are part of the trouble; without any, nothing was changed yet.
    first = min([facts.step, *(int(step) for step, _, _ in facts.foreign_rates.values())])
    detail = {"components": named, "foreign_rates": foreign, "refused": first == facts.step}
    return Finding(CODE, 0.97, Culprit(component=None if every else named[0]), evidence, first, SETS, detail)


def _by_itself(facts: Facts) -> LrVerdict | None:
    """A momentum of 1 or more forgets no gradient: no rate holds with it, nor a walk without it once it is long.

    A decay that takes most of each weight leaves nothing to walk from.
    """
    momentum, told = float(facts.settings.get("highest_momentum") or 0.0), facts.measured.get("setting")
    if facts.symptom not in GROWN or not (momentum >= 1.0 or told == "weight_decay"):
        return None
    verdict = LrVerdict(list(facts.components), facts.step, 1.0, True, False, holds=1.0)
    verdict.from_step = min(facts.earlier_steps, default=facts.step)
    name = "momentum" if momentum >= 1.0 else "weight_decay"
    verdict.settings = {name: SOUND[name]}
    return verdict


def _foreign(component: str, step: float, planned: float, rate: float) -> Evidence:
    test = f"record of step {step:.0f}: learning rate of {component}"
    return Evidence(test, f"{rate:.3g}; the plan has {planned:.3g} there, somebody set another", CODE)


def _leapt(component: str, times: float, facts: Facts) -> Evidence:
    test = f"records: learning rate of {component} since step {facts.onset_step}"
    return Evidence(test, f"up to {times:.2g} times that of the steps before", CODE)


def _rank(trial: LrTrial, verdict: LrVerdict) -> int:
    """0: the named ones lowered alone; 1: all the others lowered; 2: the rest."""
    named, lowered = set(verdict.components), set(trial.lowered)
    everything = {c for t in verdict.trials for c in t.lowered}
    if trial.what:
        return 0 if trial.bounded else 2
    if trial.beyond:
        return 1 if trial.bounded else 2
    if trial.factor != verdict.factor:
        return 2
    return 0 if lowered == named else 1 if lowered == everything - named else 2


def _evidence(trial: LrTrial, verdict: LrVerdict, step: int) -> Evidence:
    last = f"{step}" if not trial.beyond else f"{step} and {trial.beyond} more"
    what = trial.what or f"lr of {', '.join(trial.lowered)} × {trial.factor:.2g}"
    test = f"replay: steps {verdict.from_step} to {last}, {what}"
    outcome = f"{'stays bounded' if trial.bounded else 'diverges'}: {trial.outcome.describe()}"
    if trial.what:
        return Evidence(test, outcome, CODE if trial.bounded else None)
    if verdict.settings:  # that slower steps do not hold speaks for the setting
        return Evidence(test, outcome, None if trial.bounded else CODE)
    # What speaks for the named ones: with them lowered it holds, without them it does not.
    named = set(verdict.components) <= set(trial.lowered)
    return Evidence(test, outcome, CODE if named == trial.bounded else None)


def unhurried(factor: float, components: list[str], facts: Facts) -> float:
    """``factor``, or less where the alarm was that weights are thrown about: a walk may stay bounded and throw on."""
    moved = facts.measured.get("moved")
    most = max((float(moved.get(c, 0.0)) for c in components), default=0.0) if isinstance(moved, dict) else 0.0
    return min(factor, max(CALM / most, SLOWEST)) if most > 0 else factor


def _confidence(verdict: LrVerdict, facts: Facts) -> float:
    if facts.faithful is False or facts.missing or facts.unrepeatable():
        return 0.7  # the replays are not the run's own steps to the digit
    if diverges_as_weighed(facts):
        return 0.85  # it is too high for the weight that the loss has now: whoever set that is to blame
    if facts.handled():
        return 0.85  # what the loop does to its gradients is not part of the walks
    return 0.75 if not verdict.necessary else 0.8 if verdict.doubtful else 0.97


def fix_of(facts: Facts, verdict: LrVerdict) -> str:
    """The flags that make the cure permanent, from the run's own values."""
    s = facts.settings
    # What recovery took away before is part of the rate that diverged now.
    lowered = s.get("lr_factors") or {}
    factor = verdict.step_down * min([1.0, *(float(lowered.get(c, 1.0)) for c in verdict.components)])
    lr = _value(s, "lr", 0.0)
    head, rpn, fpn = (_value(s, f"{name}_lr_multiplier", 1.0) for name in ("head", "rpn", "fpn"))
    if _value(s, "momentum", 0.9) >= 0.98:
        return "--momentum 0.9"
    decay = _value(s, "weight_decay", 0.0)
    if decay * max([lr, *facts.lr.values()]) > 0.5:
        return "--weight-decay 0.0001"
    for name, sound in verdict.settings.items():  # of the run's own flags it is none
        if isinstance(sound, dict) and verdict.since is None:
            return f"give the optimizer {name}={next(iter(sound.values()))}"
        return f"look for what sets the {name.replace('_', ' ')} between steps: optimizer.param_groups[...]['{name}']"
    named = {*verdict.components, *verdict.also}
    flags = []
    if "backbone" in named or not named & {"rpn", "box_head", "mask_head"}:
        flags.append(f"--lr {lr * factor:.2g}" if lr else "--lr (lower)")
        # The other rates are multiples of --lr: keep those that were not to blame.
        if "backbone" in named and not named & {"box_head", "mask_head"} and "box_head" in facts.components:
            flags.append(f"--head-lr-multiplier {head / factor:.3g}")
        if "backbone" in named and "rpn" not in named and "rpn" in facts.components:
            flags.append(f"--rpn-lr-multiplier {rpn / factor:.3g}")
        # By default these two follow --lr, upwards where it is lowered: said, they stay what they are of it.
        flags += [f"--rpn-lr-multiplier {rpn:.3g}"] if "rpn" in named and rpn > 1 else []
        flags += [f"--fpn-lr-multiplier {fpn:.3g}"] if "backbone" in named and fpn > 1 else []
    else:
        if named & {"box_head", "mask_head"}:
            flags.append(f"--head-lr-multiplier {max(head * factor, 0.01):.3g}")
        if "rpn" in named:
            flags.append(f"--rpn-lr-multiplier {max(rpn * factor, 0.01):.3g}")
    if s.get("max_grad_norm") == 0:
        flags.append("--max-grad-norm 10")
    return " ".join(flags)


def _value(settings: dict[str, Any], key: str, default: float) -> float:
    value = settings.get(key)
    return float(value) if isinstance(value, (int, float)) else default


def chain(history: list[StepRecord], max_grad_norm: float | None, component: str | None) -> list[str]:
    """One line a link of the chain from learning rate to NaN, with the figures of the last records of ``history``."""
    if not history:
        return []
    last = history[-1]
    named = component or max(last.lr, key=lambda c: last.lr[c], default=None)
    ratio = next((r.update_ratio[named] for r in reversed(history) if named in r.update_ratio), None) if named else None
    rate = f"{last.lr[named]:.3g}" if named in last.lr else "unknown"
    lines = [f"learning rate of {named or 'the model'}: {rate}"]
    if ratio is not None:
        lines.append(f"update-to-weight ratio of {named}: {ratio:.2g} a step (healthy training stays near 1e-3)")
    tail = history[-6:]
    lines.append("gradient norm: " + " → ".join(f"{r.grad_norm:.3g}" for r in tail))
    lines.append("loss: " + " → ".join(f"{r.loss:.3g}" for r in tail))
    if max_grad_norm:
        clipped = [r for r in tail if max_grad_norm < r.grad_norm < math.inf]
        if clipped:
            worst = max(clipped, key=lambda r: r.grad_norm)
            lines.append(
                f"clipping: the norm of {worst.grad_norm:.3g} at step {worst.step} was scaled to {max_grad_norm:g}, "
                "direction kept; an inf or a NaN cannot be scaled"
            )
    elif max_grad_norm == 0:
        lines.append("clipping: off (--max-grad-norm 0); at 10 the direction would be kept and the size bounded")
    bad = [name for name, value in last.losses.items() if not math.isfinite(value)]
    if bad:
        lines.append(f"overflow: {', '.join(bad)} non-finite at step {last.step} → NaN gradients → every weight NaN")
    if not last.applied:
        lines.append(f"step {last.step} was refused: no weight took it")
    return lines
