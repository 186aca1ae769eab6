"""Learning rates at which next to nothing moves.

What happens: losses stay where they began, AP stays 0, no step is refused.
Why: a rate meant for another optimizer or for fine-tuning the last percent; a scheduler that is stepped in every
  iteration instead of every epoch, so that the rate is gone after a few steps; clipping that always bites.
How it is proved: the same steps are taken again on a private copy with the rates raised: the loss then falls and
  at the run's own rates it does not. A rate that fell a million-fold and stayed there proves itself. A low rate in a
  run whose loss falls, or whose weights were good to begin with, is no fault. Updates of less than a hundred-millionth
  of the weights, in every step, prove themselves too.
What is done: it warns; the rates stay as they were given.
How to fix it: raise --lr (or let `maskrcnn-coco advise` measure it); call scheduler.step() once an epoch.
"""

from __future__ import annotations

import math

from maskrcnn_coco.findings.facts import Facts, Lengths, Rates, RateTrial, Still, Way
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.wording import listed

CODE = "LR_TOO_LOW"
STANDS, CREEPS, CLIPPED, FAINT, SHORT = 1e-8, 1e-6, 100.0, 1e-4, 0.2
"""Of its weights, what a step moves at the most: in a million steps they change by 1 %, or, where every gradient is a
hundred times its bound, by themselves. Gradients below the fourth are those of a loss that was divided; and a run
whose warm-up takes it to less than the last share of its rate never gets to train."""
TRY_OUT = 10
"""A run of fewer steps shows whether everything works; it learns nothing at any rate."""
FALLS, STAYS, FAR = 0.8, 0.95, 0.05
"""With raised rates the loss ends below this share of its start; at the run's own it stays above this one.

A run whose many steps move its weights this far is slow on purpose.
"""


def judge(facts: Facts) -> list[RunFinding]:
    found = _fell(facts.rates) if facts.rates is not None else []
    if facts.rate_trial is not None:
        found += _trial(facts.rate_trial, facts.way)
    if facts.still is not None and facts.still.zero_rate:
        names = listed(facts.still.zero_rate, 4)
        message = f"{names}: the learning rate is 0 in all of {facts.still.steps} steps"
        proof = [("rates in force", f"0 in {facts.still.steps} of {facts.still.steps} steps")]
        fix = "give every parameter group a rate, or set requires_grad_(False)"
        found.append(finding(CODE, "zero", "warning", message, fix, proof))
    if facts.still is not None:
        found += _stands(facts.still, facts.way)
    return found + (_warming(facts.lengths, facts.way) if facts.lengths is not None else [])


def _stands(s: Still, way: Way) -> list[RunFinding]:
    """Steps after which a million more would change nothing; and steps that the clip alone makes so small."""
    if s.moved is None or s.rate <= 0 or s.gradient <= 0:
        return []
    # A detector's first gradients are of the order of 1, whatever the data.
    small = s.gradient < FAINT and (s.detection or s.gradient < s.rate)
    creeps = s.moved - s.decay < CREEPS and (s.clipped >= CLIPPED or (small and s.detection))
    if s.moved >= STANDS and not creeps:
        return []
    norms = f"rate {s.rate:.3g}, gradient norm at most {s.gradient:.3g}"
    if s.clipped >= CLIPPED:
        bound = s.gradient / s.clipped
        message = (
            f"clipping leaves next to nothing of each step: gradients are {s.clipped:.0f} times the bound or more in "
            f"all of {s.steps} steps, and weights move by {s.moved:.0e} of themselves at most"
        )
        fix = f"raise the bound: --max-grad-norm {10.0:g}" if way == "command" else "raise max_grad_norm: 10 is usual"
        proof = [("gradient norms against the bound", f"{norms}, clipped to about {bound:.0e}")]
        return [finding(CODE, "clipped", "warning", message, fix, proof, moved=s.moved)]
    message = (
        f"weights stand still: in {s.steps} steps none moves by more than {s.moved:.0e} of itself a step ({norms}): "
        "a whole training of such steps changes next to nothing"
    )
    fix = "the loss is too small: do not divide it" if small else "raise the learning rate"
    fix = f"{fix}: --lr" if way == "command" and not small else fix
    return [finding(CODE, "stands still", "warning", message, fix, [("update against weights", norms)], moved=s.moved)]


def _warming(t: Lengths, way: Way) -> list[RunFinding]:
    if t.steps < TRY_OUT or t.warmup < t.steps or t.reached > SHORT * t.rate:
        return []
    message = (
        f"the warm-up of {t.warmup} steps is longer than the run of {t.steps}: its rate ends at {t.reached:.3g}, and "
        f"never comes to {t.rate:.3g}"
    )
    fix = f"--warmup-steps {max(1, t.steps // 10)}" if way == "command" else f"Config(warmup_steps={t.steps // 10})"
    proof = [("rates of the schedule", f"{t.reached:.3g} at the highest in {t.steps} steps")]
    return [finding(CODE, "warm-up", "warning", message, fix, proof)]


def _fell(r: Rates) -> list[RunFinding]:
    if not r.fell:
        return []
    name, (high, low) = next(iter(r.fell.items()))
    factor = f"{high / low:.0e}-fold" if low > 0 else "to 0"
    message = (
        f"the learning rate fell {factor} within {r.since} steps ({name}: {high:.3g} → {low:.3g}) and stayed there"
    )
    proof = [("rates in force, by step", f"{high:.3g} at the highest, {low:.3g} from step {r.since} on")]
    fix = "call scheduler.step() once an epoch, not in every iteration; or count its milestones in steps"
    return [finding(CODE, "scheduler", "warning", message, fix, proof, components=list(r.fell))]


def _trial(t: RateTrial, way: Way) -> list[RunFinding]:
    own = t.after.get("1", math.inf)
    raised = {f: v for f, v in t.after.items() if f != "1" and math.isfinite(v)}
    if not raised or own < STAYS * t.before or t.reach >= FAR:
        return []
    best = min(raised, key=lambda f: raised[f])
    # The smallest factor that learns, not the one that learns fastest: it is the safest change.
    enough = next((f for f in sorted(raised, key=float) if raised[f] <= FALLS * t.before), best)
    if raised[enough] > FALLS * t.before or raised[enough] > FALLS * own:
        return []
    shown = ", ".join(f"×{f}: {t.before:.3g} → {v:.3g}" for f, v in t.after.items())
    lr = t.rates.get("backbone", next(iter(t.rates.values()), 0.0))
    message = (
        f"weights hardly move: in {t.steps} steps the loss goes from {t.before:.3g} to {own:.3g} at the rates of this "
        f"run, and to {raised[enough]:.3g} at {enough} times them"
    )
    fix = f"--lr {lr * float(enough):.3g}" if way == "command" else f"Config(lr={lr * float(enough):.3g})"
    proof = [("replay: the same steps with the rates raised", shown)]
    return [finding(CODE, "replayed", "warning", message, fix, proof, factor=float(enough))]
