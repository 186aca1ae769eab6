"""The largest stable learning rate of each component, by short trainings that do or do not diverge.

The model first trains a few steps at safe rates, so that momentum and the first sharp phase are behind it. From that
state, each trial raises one component's rate over the first half of its steps and keeps the others safe. The critical
learning rate of `sharpness` says where to begin; trials three apart bracket the limit, and bisection narrows it.

Taken in: momentum, weight decay, AdamW's scaling, clipping, batch size, noise between batches, mixed precision.
Left out: what happens later than the trial's steps (networks get sharper as they train, which the interval's margin
allows for), and components raised together (`advise` checks that with one joint run).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from maskrcnn_coco.advice.sharpness import critical_lr
from maskrcnn_coco.advice.trials import Task, Trial, Trials
from maskrcnn_coco.errors import DataError
from maskrcnn_coco.guard.early_warning import JUMP, OWN_LOSSES, own_level, own_loss
from maskrcnn_coco.replay.snapshot import Snapshot

WIDTH = 2.0
"""The reported interval spans at most this factor when the budget allows it."""
BRACKET = 1.5
"""Bisection goes on until stable and diverged are this close; the rest of `WIDTH` is margin for later steps."""
STRIDE = 3.0
SETTLE_LEAST = 3
"""Steps that the state is settled over at least."""
LEAST = 2
"""Trainings that each component gets, whatever the budget: a limit of which nothing was tried is none."""
CEILING = 30.0
"""No rate above this is tried: a component that stands it has no limit of interest."""

UNMEASURED = f"not measured: training began at {{:.2g}}, and no rate above {CEILING:g} is tried"

Say = Callable[[str], None]


@dataclass(frozen=True)
class TrialVerdict:
    """What one trial at ``rate`` showed. ``peak``: highest own loss, as a multiple of its settled level."""

    rate: float
    alarm: bool
    peak: float

    @property
    def stable(self) -> bool:
        """No alarm of the guard, and no step with own losses above `JUMP` times their level.

        A component that is thrown often falls back within two or three steps and looks quiet, having learned less
        (`bench/results/advise.md`). Such a rate does not count as stable.
        """
        return not self.alarm and self.peak <= JUMP


@dataclass(frozen=True)
class Limit:
    """Largest stable learning rate of one component while the others are safe. Stable is `TrialVerdict.stable`.

    ``low`` is believed stable, ``high`` believed to break; ``value`` is their geometric mean. ``high`` is inf where
    nothing up to ``low`` broke: `CEILING` was reached, or the budget was spent (``how`` says which). ``alarm`` is the
    smallest rate tried at which the guard's alarm went off, inf where none did. ``tried`` is in order.
    """

    value: float
    low: float
    high: float
    how: str
    steps_spent: int
    seconds: float
    critical: float = math.nan
    tried: tuple[TrialVerdict, ...] = ()

    @property
    def measured(self) -> bool:
        """Whether any training was made at all: where none was, ``low`` is only where it would have begun."""
        return bool(self.tried) or math.isfinite(self.high)

    @property
    def alarm(self) -> float:
        """Smallest rate tried at which the guard raised its alarm; inf where none did."""
        return min((v.rate for v in self.tried if v.alarm), default=math.inf)

    @property
    def stable(self) -> float:
        """The rate to quote as the limit: ``value``, or the highest rate tried where nothing broke."""
        return self.low if math.isinf(self.high) else self.value

    @property
    def width(self) -> float:
        """high / low."""
        return self.high / self.low if self.low > 0 else math.inf


@dataclass
class Settled:
    """The state that trials start from, the safe rates it was reached with, and the records of the way there."""

    state: Snapshot
    lr: dict[str, float]
    trial: Trial
    notes: list[str] = field(default_factory=list)


def settle(trials: Trials, base_lr: Mapping[str, float], steps: int, *, say: Say | None = None) -> Settled:
    """Train ``steps`` steps at ``base_lr`` with a linear ramp; where that diverges, at a quarter, up to six times.

    Raises:
        DataError: it does not even train at the smallest rate: then the rate is not what is wrong.
    """
    start = trials.save(0)
    lr, notes = dict(base_lr), []
    for _ in range(6):
        trial = trials.run(lr, steps, ramp=rising(steps))
        if trial.stable:
            return Settled(trials.save(trial.steps), lr, trial, notes)
        sentence = f"training is unstable even at {_rates(lr)} ({trial.symptom} at step {trial.steps - 1})"
        notes.append(sentence)
        if say:
            say(sentence + "; trying a quarter")
        lr = {c: v / 4 for c, v in lr.items()}
        trials.load(start)
    raise DataError(
        "training fails at every learning rate tried, so no limit can be measured",
        got=notes[-1],
        expected="a stable step at some learning rate",
        fix="maskrcnn-coco check --data … looks for bad annotations and images; train once to get the cause named",
    )


def measure_limits(
    task: Task,
    *,
    base_lr: Mapping[str, float],
    components: Sequence[str] | None = None,
    steps: int = 20,
    settle_steps: int = 10,
    budget: float = math.inf,
    say: Say | None = None,
) -> dict[str, Limit]:
    """Largest stable learning rate per component; see the module's text for how, and for what is taken in.

    Args:
        base_lr: rates believed safe, by component; lowered together where they are not.
        components: those to measure; default: all that train.
        steps: length of a trial; a diverging one ends earlier.
        budget: steps in all (`Trials.work`): when they are spent, the remaining intervals stay wider and say so. A
            machine that others keep busy takes longer, and measures the same.

    Raises:
        DataError: training fails at every rate.
    """
    trials = Trials(task)
    settled = settle(trials, base_lr, settle_steps, say=say)
    return limits_from(trials, settled, components=components, steps=steps, budget=budget, say=say)


def limits_from(
    trials: Trials,
    settled: Settled,
    *,
    components: Sequence[str] | None = None,
    steps: int = 20,
    budget: float = math.inf,
    say: Say | None = None,
) -> dict[str, Limit]:
    """`measure_limits` from a settled state, so that the caller can go on with the same trials."""
    names = list(components or trials.components)
    start = trials.work
    limits: dict[str, Limit] = {}
    for i, component in enumerate(names):
        # What one component does not use goes to the next ones.
        share = (budget - (trials.work - start)) / (len(names) - i)
        limits[component] = find_limit(trials, settled, component, steps=steps, budget=share)
        if say:
            say(f"{component}: {describe(limits[component])}")
    return limits


def find_limit(trials: Trials, settled: Settled, component: str, *, steps: int, budget: float = math.inf) -> Limit:
    """The limit of one component: critical rate, bracket of the calm limit, bracket of the stable one."""
    began, spent = time.monotonic(), trials.steps_spent
    most = trials.work + budget
    safe = settled.lr[component]
    critical = critical_lr(
        trials, settled.state, component, start=safe * 30, losses=OWN_LOSSES.get(component, ()), max_forwards=9
    )
    level = own_level(settled.trial.records, component)
    tried: list[TrialVerdict] = []

    def stable(rate: float) -> bool:
        trial = trial_at(trials, settled, component, rate, steps, level)
        tried.append(judge(trial, component, level))
        return tried[-1].stable

    guess = max(min(critical.lr, CEILING / STRIDE), min(safe * 2, CEILING))
    low, high = bracket(stable, safe, math.inf, guess, lambda: trials.work >= most, least=LEAST)
    cut_short = trials.work >= most and high / low > WIDTH and middle(low, high) <= CEILING
    how = f"{len(tried)} training{'s' * (len(tried) != 1)} of up to {steps} steps from step {settled.state.step}"
    how += ", then the budget was spent" if cut_short else ""
    spent = trials.steps_spent - spent
    return Limit(*interval(low, high), how, spent, time.monotonic() - began, critical.lr, tuple(tried))


def judge(trial: Trial, component: str, level: float) -> TrialVerdict:
    """The verdict on ``trial`` for ``component``, whose own losses settle at ``level``."""
    own = [own_loss(r, component) / level for r in trial.records]
    return TrialVerdict(trial.lr[component], not trial.stable, max(own, default=0.0))


def trial_at(trials: Trials, settled: Settled, component: str, rate: float, steps: int, level: float) -> Trial:
    """Train from the settled state with one component raised to ``rate``; ends early once its own losses jump."""
    trials.load(settled.state)
    return trials.run(
        settled.lr | {component: rate},
        steps,
        first_step=settled.state.step,
        ramp={component: rising(steps // 2)},
        stop=lambda record: own_loss(record, component) > JUMP * level,
    )


def rising(steps: int) -> Callable[[int], float]:
    """A linear ramp to 1 over ``steps`` steps."""
    return lambda i: min(1.0, (i + 1) / max(1, steps))


def bracket(
    good: Callable[[float], bool],
    low: float,
    high: float,
    first: float,
    spent: Callable[[], bool] = lambda: False,
    *,
    least: int = 0,
) -> tuple[float, float]:
    """(largest rate seen good, smallest seen bad), `BRACKET` apart where the budget allows it.

    ``low`` is known to be good and ``high`` to be bad (inf: unknown); ``first`` is tried first. ``high`` stays inf
    where `CEILING` is good too. It ends once the budget is ``spent``; as many as ``least`` are tried before it counts.
    """
    rate, made = first, 0
    while high / low > BRACKET and low < rate <= CEILING and (made < least or not spent()):
        made += 1
        if good(rate):
            low = rate
        else:
            high = rate
        rate = middle(low, high)
    return low, high


def middle(low: float, high: float) -> float:
    """Where to try next: `STRIDE` above ``low`` or below ``high`` while they are far apart, else between."""
    if math.isinf(high):
        return low * STRIDE
    return math.sqrt(low * high) if high / low < STRIDE**2 else high / STRIDE


def interval(low: float, high: float) -> tuple[float, float, float]:
    """(value, low, high): the bracket widened to `WIDTH` where it is narrower, about its geometric mean."""
    if math.isinf(high):
        return low, low, high
    value = math.sqrt(low * high)
    half = max(math.sqrt(WIDTH), math.sqrt(high / low))
    return value, value / half, value * half


def describe(limit: Limit) -> str:
    """One line: "0.031 (0.022 to 0.044; 5 trainings …)"."""
    if not limit.measured:
        return UNMEASURED.format(limit.low)
    if math.isinf(limit.high):
        return f"stable up to {limit.low:.2g} at least ({limit.how}, {limit.seconds:.0f} s)"
    return f"{limit.value:.2g} ({limit.low:.2g} to {limit.high:.2g}; {limit.how}, {limit.seconds:.0f} s)"


def _rates(lr: Mapping[str, float]) -> str:
    return ", ".join(f"{c} {v:.2g}" for c, v in lr.items())
