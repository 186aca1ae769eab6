"""Searches that ask as few replays as they can: which images are guilty, which component's learning rate. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from maskrcnn_coco.diagnosis.lr_verdict import LrTrial, LrVerdict
from maskrcnn_coco.replay.outcome import Outcome

Walk = Callable[[Sequence[str], float], tuple[bool, Outcome]]
"""(components to lower, factor) → (stays bounded, what came out)."""
FACTORS = (0.1, 0.01, 1e-3, 1e-4)
"""A rate far above the limit needs a later one: what was meant for another optimizer, or a decimal point too far."""
SHARE = 1e-2
"""Share of their norm that an update moves weights by in a healthy, if brisk, step."""


def smallest_culprits(items: Sequence[int], bad: Callable[[Sequence[int], str], bool], *, most: int = 3) -> list[int]:
    """The members of ``items`` that make a subset bad, each found with at most ⌈log2 n⌉ + 1 tests.

    Empty if none fails alone. ``bad(subset, name)`` runs one test under a name of its own. The whole of ``items`` is
    known to be bad.
    """
    found: list[int] = []
    left = list(items)
    while left and len(found) < most:
        one = _one(left, bad, tag=f"{len(found)}")
        if one is None:
            return found
        found.append(one)
        left = [i for i in left if i != one]
        if not left or not bad(left, "others"):
            return found
    return found


def _one(items: Sequence[int], bad: Callable[[Sequence[int], str], bool], tag: str) -> int | None:
    group = list(items)
    depth = 0
    while len(group) > 1:
        half = group[: (len(group) + 1) // 2]
        depth += 1
        # Known bad as a whole: if the first half is sound, the fault is in the second.
        group = half if bad(half, f"half{tag}.{depth}") else group[len(half) :]
    if len(items) == 1:
        return group[0]
    return group[0] if bad(group, "alone") else None


def smallest_cure(items: Sequence[int], cured: Callable[[Sequence[int], str], bool]) -> list[int]:
    """The one member of ``items`` without which the rest is sound, with at most 2 ⌈log2 n⌉ tests; empty if none is.

    For what is bad only in company, where `smallest_culprits` finds nobody: ``cured(left_out, name)`` runs one test.
    """
    group, depth = list(items), 0
    if len(group) < 3:
        return []  # of two, each would do
    while len(group) > 1:
        middle, depth = (len(group) + 1) // 2, depth + 1
        halves = {f"without{depth}.{i}": half for i, half in enumerate((group[:middle], group[middle:]))}
        group = next((half for name, half in halves.items() if cured(half, name)), [])
    return group


def factors_for(rise: float, leap: float = 0.0) -> tuple[float, ...]:
    """What rates are lowered by, in turn, where they stand ``rise`` times above those of the steps before.

    A rate that leapt, by a schedule's typing error, is next tried where it came from: no walks for what lies between.
    ``leap``: an update that was refused is so many times its weights; the last factor takes it to a sound share.
    """
    if math.isfinite(rise) and rise > 1 / FACTORS[1]:
        return (FACTORS[0], 1 / rise, FACTORS[0] / rise)
    least = SHARE / leap if 0.0 < leap < math.inf else 1.0
    return (*FACTORS, least) if least < FACTORS[-1] else FACTORS


def lr_search(
    walk: Walk,
    order: Sequence[str],
    from_step: int,
    *,
    quick: bool = False,
    beside: Sequence[str] = (),
    factors: Sequence[float] = FACTORS,
) -> LrVerdict:
    """Which components' learning rates must be lowered for the walk to stay bounded.

    ``order`` is the prior, most suspicious first. A single component is proved when lowering it alone is enough and
    lowering all the others is not; several when no single one is enough and each of the set is needed. ``quick``: where
    the one that is enough is not needed, do not look for one that is. ``beside``: components that learn as fast as the
    first of ``order``, tried along with it before everything else.
    """
    trials: list[LrTrial] = []

    def bounded(lowered: Sequence[str], factor: float) -> bool:
        known = (t.bounded for t in trials if t.factor == factor and set(t.lowered) == set(lowered))
        answer = next(known, None)
        if answer is None:
            answer, outcome = walk(list(lowered), factor)
            trials.append(LrTrial(tuple(lowered), factor, answer, outcome))
        return answer

    for factor in factors:
        if bounded(order[:1], factor):
            return _single(order, order[0], factor, bounded, from_step, trials, quick)
        if _together(order, beside, factor, bounded):
            return LrVerdict([order[0], *beside], from_step, factor, True, True, trials=trials)
        if len(order) > 1 and bounded(order, factor):
            for component in order[1:]:
                if bounded([component], factor):
                    # The first one is left as it was here, and it alone did not help: this one is needed.
                    return _single(order, component, factor, bounded, from_step, trials, quick)
            chosen = _needed(order, factor, bounded)
            return LrVerdict(chosen, from_step, factor, True, True, trials=trials)
    return LrVerdict([], from_step, factors[-1], False, False, trials=trials)


def _together(
    order: Sequence[str], beside: Sequence[str], factor: float, bounded: Callable[[Sequence[str], float], bool]
) -> bool:
    """Whether the first one, which alone is not enough, is enough with the one beside it, and both are needed."""
    if len(beside) != 1:
        return False
    others = [c for c in order if c not in (order[0], *beside)]
    if not bounded([order[0], *beside], factor) or bounded(beside, factor):
        return False
    return not others or not bounded(others, factor)


def _single(
    order: Sequence[str],
    component: str,
    factor: float,
    bounded: Callable[[Sequence[str], float], bool],
    from_step: int,
    trials: list[LrTrial],
    quick: bool,
) -> LrVerdict:
    def diverges_with(kept: str) -> bool:
        others = [c for c in order if c != kept]
        return not others or not bounded(others, factor)

    if diverges_with(component):
        return LrVerdict([component], from_step, factor, True, True, trials=trials)
    # Lowering it helps, but is not needed: look for one that is.
    for other in [] if quick else order:
        if other != component and diverges_with(other) and bounded([other], factor):
            return LrVerdict([other], from_step, factor, True, True, trials=trials)
    return LrVerdict([component], from_step, factor, True, False, trials=trials)


def _needed(order: Sequence[str], factor: float, bounded: Callable[[Sequence[str], float], bool]) -> list[str]:
    """All lowered is enough, no single one is: leave out what is not needed, least suspicious first."""
    kept = list(order)
    for component in reversed(order):
        fewer = [c for c in kept if c != component]
        if len(fewer) > 1 and bounded(fewer, factor):
            kept = fewer
    return kept
