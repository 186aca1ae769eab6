"""From measured limits to settings: candidates are trained side by side, briefly, and the best safe one is advised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from maskrcnn_coco.advice.ladder import HEADS
from maskrcnn_coco.advice.limits import Limit, Settled, TrialVerdict, describe, judge, rising
from maskrcnn_coco.advice.trials import Trial, Trials
from maskrcnn_coco.config.lr_ranges import guideline
from maskrcnn_coco.config.recipes import CLIP_GUIDE
from maskrcnn_coco.guard.early_warning import own_level
from maskrcnn_coco.records import COMPONENTS
from maskrcnn_coco.replay.snapshot import Snapshot

SAFETY = 4.0
"""A component is advised at most its limit divided by this: networks get sharper as they train, and limits interact."""
MARGIN = 2.0
"""All advised rates together must also train stably at this many times themselves."""
HEAD_RANGE, RPN_RANGE = (1.0, 10.0), (0.5, 2.0)
"""Multipliers outside these are not advised, whatever the limits allow."""
HALVINGS = 5
BETTER = 0.95
"""Another candidate replaces the recipe's rates only if its loss ends below this share of theirs."""

Rates = dict[str, float]


@dataclass(frozen=True)
class Choice:
    """Learning rates as the flags express them, and where they come from."""

    name: str
    lr: float
    head: float
    rpn: float

    @property
    def rates(self) -> Rates:
        """Learning rate per component."""
        return dict(
            zip(COMPONENTS, (self.lr, self.lr * self.rpn, self.lr * self.head, self.lr * self.head), strict=True)
        )

    def times(self, factor: float, name: str | None = None) -> Choice:
        """All rates multiplied by ``factor``."""
        return Choice(name or self.name, two_digits(self.lr * factor), self.head, self.rpn)


@dataclass
class Tried:
    """One candidate, trained with all components at its rates."""

    choice: Choice
    trial: Trial
    verdicts: dict[str, TrialVerdict]

    @property
    def safe(self) -> bool:
        """Whether every component was stable."""
        return all(v.stable for v in self.verdicts.values())

    @property
    def worst(self) -> str:
        """The component whose own losses jumped most."""
        return max(self.verdicts, key=lambda c: self.verdicts[c].peak)


def two_digits(value: float) -> float:
    """``value`` with two significant digits: more would claim a precision that no limit has."""
    return float(f"{value:.1e}")


def cap(limit: Limit, component: str, *, pretrained: bool, optimizer: str = "sgd") -> float:
    """Highest rate to advise for one component: its limit over `SAFETY`; for loaded weights not past the guideline."""
    guide = guideline(optimizer).get(component)
    top = guide.aggressive[1] if pretrained and guide else math.inf
    return min(limit.stable / SAFETY, top)


def candidates(
    limits: Mapping[str, Limit],
    recipe: Choice,
    fixed: Mapping[str, float],
    *,
    pretrained: bool,
    optimizer: str = "sgd",
) -> list[Choice]:
    """The recipe's rates (lowered to the caps where they pass them), the measured ones, and the middle.

    ``fixed`` holds settings that the user gave, by Config's field names; they are never changed.
    """
    limits = {c: limit for c, limit in limits.items() if limit.measured}
    if not limits:
        return [recipe]  # nothing was measured: nothing speaks for other rates
    caps = {c: cap(limit, c, pretrained=pretrained, optimizer=optimizer) for c, limit in limits.items()}
    backbone = caps.get("backbone", min(caps.values()))
    lr = fixed.get("lr", two_digits(backbone))
    heads = [caps[c] for c in HEADS if c in caps]
    head = fixed.get("head_lr_multiplier", _clamp(min(heads, default=backbone) / lr, HEAD_RANGE))
    rpn = fixed.get("rpn_lr_multiplier", _clamp(caps.get("rpn", backbone) / lr, RPN_RANGE))
    # A multiplier of at least 1 may push a sensitive head past its cap: then everything goes down together.
    over = max([1.0, *(rate / caps[c] for c, rate in Choice("", lr, head, rpn).rates.items() if c in caps)])
    measured = (
        Choice("measured", lr, head, rpn) if "lr" in fixed else Choice("measured", two_digits(lr / over), head, rpn)
    )
    # Where no rate broke, nothing speaks against the recipe.
    broke = {c: limit.value / MARGIN for c, limit in limits.items() if not math.isinf(limit.high)}
    over = max([1.0, *(rate / broke[c] for c, rate in recipe.rates.items() if c in broke)])
    first = recipe if over == 1.0 or "lr" in fixed else recipe.times(1 / over, "recipe, lowered to the measured limits")
    if "lr" in fixed:
        return [first, measured]
    middle = [math.sqrt(getattr(first, n) * getattr(measured, n)) for n in ("lr", "head", "rpn")]
    return [first, Choice("between recipe and measured", *(two_digits(v) for v in middle)), measured]


def _clamp(value: float, span: tuple[float, float]) -> float:
    return two_digits(min(max(value, span[0]), span[1]))


class Joint:
    """Trains all components together at the rates of a choice, from the settled state."""

    def __init__(self, trials: Trials, settled: Settled, steps: int) -> None:
        self.trials, self.settled, self.steps = trials, settled, steps
        self.levels = {c: own_level(settled.trial.records, c) for c in trials.components}

    def train(self, choice: Choice, factor: float = 1.0) -> Tried:
        """One trial at ``factor`` times the choice's rates."""
        self.trials.load(self.settled.state)
        rates = {c: choice.rates.get(c, choice.lr) * factor for c in self.trials.components}
        trial = self.trials.run(rates, self.steps, first_step=self.settled.state.step, ramp=rising(self.steps // 2))
        return Tried(choice, trial, {c: judge(trial, c, level) for c, level in self.levels.items()})


def choose(joint: Joint, choices: Sequence[Choice], *, most: float, fixed_lr: bool) -> tuple[Tried, list[str]]:
    """The candidate to advise, and what was seen: trained together, then checked at `MARGIN` times its rates.

    The first candidate (the recipe's) wins unless another ends clearly lower. What is unsafe, or has no margin, is
    halved and tried again, at most `HALVINGS` times; with ``fixed_lr`` the next one that has a margin is taken, or it
    stays and the reasons say so. No further one is tried once the trials' work is past ``most``.
    """
    reasons = []
    tried = []
    for choice in choices:
        if tried and joint.trials.work > most:
            break
        tried.append(joint.train(choice))
        reasons.append(_seen(tried[-1]))
    safe = [t for t in tried if t.safe]
    best = min(safe or tried[-1:], key=lambda t: t.trial.final_loss)
    if tried[0].safe and best.trial.final_loss > BETTER * tried[0].trial.final_loss:
        best = tried[0]
    for _ in range(HALVINGS):
        wide = joint.train(best.choice, MARGIN)
        if best.safe and wide.safe:
            return best, [*reasons, f"all components together also train stably at {MARGIN:g} times the advised rates"]
        broken, factor = (wide, MARGIN) if best.safe else (best, 1.0)
        text = f"at {factor:g} times {_rates(best.choice)} together {_broke(broken)}"
        if fixed_lr:
            rest = sorted((t for t in safe if t is not best), key=lambda t: t.trial.final_loss)
            spare = next((t for t in rest if joint.train(t.choice, MARGIN).safe), None)
            so = f"the {spare.choice.name} multipliers stand it" if spare else "--lr was given and is kept"
            return spare or best, [*reasons, f"{text}; {so}"]
        reasons.append(f"{text}: halved")
        best = joint.train(best.choice.times(0.5, f"{best.choice.name}, halved"))
    return best, [*reasons, f"no rates with a margin were found down to {_rates(best.choice)}"]


def stood(limits: Mapping[str, Limit], best: Tried) -> dict[str, Limit]:
    """The limits, with what the advised rates together were seen to stand: nothing advised is above its own limit.

    Where no rate broke, the limit is the highest one that was seen to be stable, and the advised one was.
    """
    raised = {}
    for component, limit in limits.items():
        rate = best.choice.rates.get(component, best.choice.lr)
        seen = best.safe and math.isinf(limit.high) and rate > limit.low and limit.measured
        raised[component] = dataclasses.replace(limit, value=rate, low=rate) if seen else limit
    return raised


def why_this(best: Tried) -> str:
    """Why `choose` took ``best``, in a few words."""
    choice, percent = best.choice, f"{1 - BETTER:.0%}"
    if not best.safe:
        return "nothing that was tried is safe"
    if choice.name.startswith("recipe"):
        return f"no other safe rates that were tried end more than {percent} lower"
    return f"ends more than {percent} lower than the recipe's rates, or those are not safe or have no margin"


def _seen(tried: Tried) -> str:
    what = f"ends at loss {tried.trial.final_loss:.3g}" if tried.safe else _broke(tried)
    return f"{tried.choice.name}, {_rates(tried.choice)}: {what} after {tried.trial.steps} steps"


def _broke(tried: Tried) -> str:
    v = tried.verdicts[tried.worst]
    how = f", and the guard's alarm goes off ({tried.trial.symptom})" if v.alarm else ""
    return f"{tried.worst} breaks: its losses jump to {v.peak:.1f} times their level{how}"


def _rates(choice: Choice) -> str:
    return f"lr {choice.lr:g} × (1, rpn {choice.rpn:g}, heads {choice.head:g})"


def clip_from(norms: Sequence[float], current: float) -> tuple[float, str]:
    """A clip norm from true gradient norms of healthy steps: above almost all of them, no higher than measured with."""
    ordered = sorted(v for v in norms if math.isfinite(v))
    if not ordered:
        return current, "no gradient norm was measured"
    p50, p95 = ordered[len(ordered) // 2], ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
    seen = f"gradient norms: median {two_digits(p50):g}, 95th percentile {two_digits(p95):g}"
    steps = [v for v, _ in CLIP_GUIDE]
    wanted = next((v for v in steps if v >= 2 * p95), steps[-1])
    if current == 0:
        price = "touch almost no healthy step" if wanted >= p95 else "shorten many healthy steps too"
        return wanted, f"{seen}; clipping is off, {wanted:g} would stop an explosion and {price}"
    if p95 > current:
        return (
            current,
            f"{seen}; --max-grad-norm {current:g} clips many healthy steps, and the limits hold with it only",
        )
    chosen = min(wanted, current)
    return chosen, f"{seen}; --max-grad-norm {chosen:g} leaves nearly all healthy steps alone"


def compare(limits: Mapping[str, Limit], choice: Choice, *, pretrained: bool, optimizer: str = "sgd") -> list[str]:
    """One sentence a component: limit, advised rate, and the guideline, with the difference explained."""
    sentences, guides = [], guideline(optimizer)
    for component, limit in limits.items():
        rate, guide = choice.rates.get(component, choice.lr), guides.get(component)
        if not limit.measured:
            text = f"{component}: {describe(limit)}; nothing speaks for another rate than {rate:.2g}"
        elif math.isinf(limit.high):
            text = f"{component}: stable up to {limit.low:.2g}, the highest rate tried ({limit.how})"
        else:
            text = f"{component}: breaks above {limit.value:.2g} ({limit.low:.2g} to {limit.high:.2g}; {limit.how})"
            text += f"; {two_digits(limit.value / rate):g} times the advised {rate:.2g}"
        if guide:
            text += f"; guideline for {guide.state} weights: {guide.describe(rate)}"
            random = component in ("backbone", "rpn") and not pretrained
            text += ", but these start at random" if random and rate > guide.safe[1] else ""
        sentences.append(text)
    return sentences


@dataclass(frozen=True)
class ColdStart:
    """What the advised rates do from the first weights, without a warm-up: which components break, within ``steps``."""

    broken: tuple[str, ...]
    steps: int

    def sentence(self, warmup: int) -> str:
        """Why ``warmup`` steps of warm-up."""
        if self.broken:
            return f"without a warm-up {', '.join(self.broken)} breaks within {self.steps} steps: {warmup} steps of it"
        costs = f"a warm-up of {warmup} costs little" if warmup else "no warm-up is needed"
        return f"the advised rates also stand a cold start of {self.steps} steps; {costs}"


def cold_start(trials: Trials, fresh: Snapshot, choice: Choice, levels: Mapping[str, float], steps: int) -> ColdStart:
    """Train ``steps`` steps from ``fresh`` at the full rates from the first step on."""
    trials.load(fresh)
    trial = trials.run({c: choice.rates.get(c, choice.lr) for c in trials.components}, max(1, steps))
    broken = tuple(c for c, level in levels.items() if not judge(trial, c, level).stable)
    return ColdStart(broken, trial.steps)
