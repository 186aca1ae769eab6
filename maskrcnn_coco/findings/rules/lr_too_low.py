"""Learning rates at which next to nothing moves.

What happens: losses stay where they began, AP stays 0, no step is refused.
Why: a rate meant for another optimizer or for fine-tuning the last percent; a scheduler that is stepped in every
  iteration instead of every epoch, so that the rate is gone after a few steps; clipping that always bites.
How it is proved: the same steps are taken again on a private copy with the rates raised: the loss then falls and
  at the run's own rates it does not. A rate that fell a million-fold and stayed there proves itself. A low rate in a
  run whose loss falls, or whose weights were good to begin with, is no fault.
What is done: it warns; the rates stay as they were given.
How to fix it: raise --lr (or let `maskrcnn-coco advise` measure it); call scheduler.step() once an epoch.
"""

from __future__ import annotations

import math

from maskrcnn_coco.findings.facts import Facts, Rates, RateTrial, Way
from maskrcnn_coco.findings.rules.common import finding
from maskrcnn_coco.records import RunFinding
from maskrcnn_coco.wording import listed

CODE = "LR_TOO_LOW"
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
    return found


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
