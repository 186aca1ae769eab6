"""At the start of a run: is a learning rate above what this model stands? At most a hundredth of the run's steps.

Limits that `advise` measured for the same data and settings are remembered in the user's cache folder and cost nothing.
Otherwise the run's first steps are tried on a private copy of the model at the full rates. Only where that breaks is
each component tried alone, which may take more than a hundredth: the run itself would not have survived. What breaks
while nothing moves, or cannot be read, is not their fault: nothing is said, the run's guard will find it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from maskrcnn_coco.advice.limits import judge, rising, settle
from maskrcnn_coco.advice.remembered import Spans, above
from maskrcnn_coco.advice.trials import Task, Trial, Trials
from maskrcnn_coco.guard.early_warning import own_level
from maskrcnn_coco.replay.snapshot import Snapshot
from maskrcnn_coco.wording import rate_flag

SHARE = 100
"""One step in so many may be spent."""
FEWEST = 10
"""Fewer steps than this show nothing."""
STILL = 1e-6
"""At this share of the rates no weight moves enough to matter: what breaks then is in the data."""


def quick_check(
    task: Callable[[int], Task], rates: Mapping[str, float], *, total_steps: int, remembered: Spans
) -> list[str]:
    """Warnings about the learning rates of a run that is about to start.

    Args:
        task: makes the run's training, on a private copy of its model, for so many steps.
        rates: each component's full learning rate.
        total_steps: planned steps of the run.
        remembered: limits measured before for the same data and settings; then nothing is tried.
    """
    if remembered:
        return above(dict(rates), remembered)
    steps = min(total_steps // SHARE, 20)
    if steps < FEWEST:
        return []
    try:
        return try_rates(Trials(task(steps)), rates, steps)
    except Exception:
        # A second copy does not fit, an image cannot be read, no rate trains, the data is odd: the run itself will
        # leave it out, or stop with the cause. A look before the run must not end it.
        return []


def try_rates(trials: Trials, rates: Mapping[str, float], steps: int) -> list[str]:
    """Train ``steps`` steps at ``rates``; where that breaks, each component alone, to name the one that breaks.

    Raises:
        DataError: training fails at every rate.
    """
    few, fresh = max(3, steps // 4), trials.save(0)
    all_rates = {c: rates.get(c, rates.get("backbone", 0.0)) for c in trials.components}
    settled = settle(trials, {c: v / 20 for c, v in all_rates.items()}, few)
    levels = {c: own_level(settled.trial.records, c) for c in trials.components}

    def train(lr: dict[str, float], state: Snapshot) -> Trial:
        trials.load(state)
        return trials.run(lr, steps - few, first_step=few, ramp=rising((steps - few) // 2))

    def breaks(lr: dict[str, float], named: list[str]) -> list[str]:
        trial = train(lr, settled.state)
        return [c for c in named if not judge(trial, c, levels[c]).stable]

    if (
        not breaks(all_rates, trials.components)
        or not train({c: v * STILL for c, v in all_rates.items()}, fresh).stable
    ):
        return []
    if breaks(settled.lr, trials.components):
        return [
            f"the learning rates break training within {steps} steps, even at a twentieth of them: lower "
            "--lr and the multipliers, or use --lr auto"
        ]
    guilty = [c for c in trials.components if breaks(settled.lr | {c: all_rates[c]}, [c])]
    if not guilty:
        return [f"the learning rates together break within {steps} steps, none alone: lower --lr, or use --lr auto"]
    return [
        f"{c}: learning rate {all_rates[c]:.2g} breaks training within {steps} steps: lower {rate_flag(c)}; "
        "maskrcnn-coco advise measures its limit"
        for c in guilty
    ]
