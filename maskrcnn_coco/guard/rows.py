"""What is wrong with the last steps together, where no single one is extreme. No tensors here.

Some of it comes in a row, without a calm step in between. Where a loss saturates it does not: one batch is right with
certainty and costs nothing, the next is wrong with certainty.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Sequence
from typing import Any

Loud = tuple[int, float, float, float]
"""(step, loss, the loss over the healthy one, the gradient norm over the healthy one)."""
CALM = 3.0
"""A step up to this many times the reference is healthy, and teaches the reference."""
STREAKS = ((3, 30.0), (6, 8.0))
"""(steps in a row, times the reference) that make an alarm. Early noise and single hard batches stay far below."""
RAMP_STEPS, RAMP_LOSS, RAMP_NORM = 10, 5.0, 5.0
"""Steps in a row with loss and gradient both this many times healthy: slower than a streak, but both rise together."""
DOUBLINGS, DOUBLED = 3, 10.0
"""Doublings in a row that end above this many times the reference: exponential growth, the signature of divergence."""
THROWN, AFTERWARDS, STAYS = 100.0, 6, 5.0
"""A loss this many times healthy after which so many steps in a row stay above that: it does not fall back by itself.

Clipped gradients move nothing any more from where one step at an absurd rate has thrown the weights.
"""
MOSTLY, OVER_START, RISES = (10, 16, 2.0), 4.0, 2.0
"""(so many of so many steps, times the healthy gradient), times the first losses, times all losses before: a level that
rises in noise."""
RELAPSE = ((2, 8.0), (1, 15.0))
"""After a rate was lowered: (steps in a row, times the reference), the gradient as far above its own. It was shown to
hold over a few steps, not over all that may come."""
SPREAD, TALL_ONES, APART = 16, 4, 3
"""So many tall losses among as many, in so many places, are a divergence, though calm ones come in between."""
TALL, RECORD = 8.0, 3.0
"""A loss is tall above so many times the healthy one, and so many times the largest of all that were taken before."""


def risen(recent: Sequence[Loud], above: float, most: float) -> tuple[str, int] | None:
    """What is wrong where most of the last steps are loud, and the first that was.

    Each of them may be met again and again, with calm ones in between: what rises is their level.

    Args:
        above: times the healthy loss.
        most: the largest loss before them.
    """
    count, steps, loud = MOSTLY
    last = list(recent)[-steps:]
    found = [step for step, _, r, g in last if r > above and g > loud]
    rises = max(abs(loss) for _, loss, _, _ in last) > RISES * most
    if len(found) < count or found[-1] != last[-1][0] or not rises:
        return None
    return f"{len(found)} of {steps} steps above {above:.2g} times, gradients too", found[0]


def found_in(recent: Sequence[Loud], level: float, hurled: tuple[int, float] | None, *, relapses: bool) -> str | None:
    """What is wrong with the last steps in a row; None: nothing.

    Args:
        recent: the last steps, the newest last.
        level: times the healthy loss that rows are measured from.
        hurled: the last step that threw weights, and by what share of their norm.
        relapses: whether a rate was lowered a few steps ago.
    """
    last = [(step, loss, r / level, g) for step, loss, r, g in recent]
    for count, factor in STREAKS:
        if len(last) >= count and all(r > factor for _, _, r, _ in last[-count:]):
            return f"{count} steps in a row above {factor:g} times"
    for count, factor in RELAPSE if relapses else ():
        if len(last) >= count and all(min(r, g) > factor for _, _, r, g in last[-count:]):
            return f"{count} in a row above {factor:g} times, loss and gradient, after a rate was lowered"
    return _after(last, hurled) or _rising(last)


def _after(last: list[Loud], hurled: tuple[int, float] | None) -> str | None:
    """Losses that do not fall back after one that was thrown, or after a step that threw the weights."""
    thrown = next((i for i in range(len(last) - 1, -1, -1) if last[i][2] > THROWN), len(last))
    after = last[thrown + 1 :]
    if len(after) >= AFTERWARDS and all(r > STAYS for _, _, r, _ in after):
        return f"{len(after)} steps in a row above {STAYS:g} times, since step {last[thrown][0]}"
    if hurled is None:
        return None
    since, moved = hurled
    ratios = [r for step, _, r, _ in last if step > since]
    if len(ratios) < AFTERWARDS or not all(r > CALM for r in ratios):
        return None
    far = f"since step {since} moved weights by {moved:.2g} times their norm"
    return f"{len(ratios)} steps in a row above {CALM:g} times, {far}"


def _rising(last: list[Loud]) -> str | None:
    """Loss and gradient high together for long, or a loss that keeps doubling."""
    if len(last) >= RAMP_STEPS and all(r > RAMP_LOSS and g > RAMP_NORM for _, _, r, g in last[-RAMP_STEPS:]):
        return f"loss and gradient norm high for {RAMP_STEPS} steps in a row"
    rises = [abs(v) for _, v, _, _ in last[-DOUBLINGS - 1 :]]
    doubled = len(rises) == DOUBLINGS + 1 and all(b > 2 * a for a, b in itertools.pairwise(rises))
    if doubled and last[-1][2] > DOUBLED and last[-1][3] > 1.0 and last[-2][2] > CALM:
        return f"loss more than doubled {DOUBLINGS} times in a row"
    return None


class Scattered:
    """Tall losses with calm ones in between. Of tails that were there from the beginning the largest was met before.

    Asked and told only where a loss is not calm: calm steps cost nothing.
    """

    def __init__(self) -> None:
        self._tall: deque[tuple[int, int, float]] = deque()
        """(number of the applied step, the run's step, size of its loss) of the tall ones of the last `SPREAD`."""
        self.most = 0.0
        """The largest loss before those."""

    def judge(self, taken: int, size: float, r_loss: float, r_norm: float) -> tuple[str, int] | None:
        """What is wrong with the last steps and this one, which is not applied yet, and the step that it began at.

        ``taken``: how many were applied.
        """
        self._forget(taken)
        if taken < 2 * SPREAD or not _tall(r_loss, r_norm) or size <= RECORD * self.most:
            return None
        onset = [step for _, step, v in self._tall if v > RECORD * self.most][:1]
        tall = [at for at, _, v in self._tall if v > RECORD * self.most] + [taken + 1]
        apart = 1 + sum(b > a + 1 for a, b in itertools.pairwise(tall))
        if len(tall) < TALL_ONES or apart < APART:
            return None
        text = f"{len(tall)} of {SPREAD} steps above {TALL:g} times, and above {RECORD:g} times all losses before"
        return text, onset[0]

    def accept(self, taken: int, step: int, size: float, r_loss: float, r_norm: float) -> None:
        """One more applied step that is not calm, the ``taken``-th."""
        self._forget(taken)
        if _tall(r_loss, r_norm):
            self._tall.append((taken, step, size))
        else:
            self.most = max(self.most, size)

    def weighed_anew(self, factor: float) -> None:
        """The loss counts ``factor`` times as much from here on, which may be what made the last ones tall."""
        self.most = max([v for _, _, v in self._tall] + [self.most * factor])
        self._tall.clear()

    def reset(self) -> None:
        """Forget the run-up: it is taken back."""
        self._tall.clear()

    def _forget(self, taken: int) -> None:
        while self._tall and self._tall[0][0] <= taken - SPREAD:
            self.most = max(self.most, self._tall.popleft()[2])

    def state_dict(self, taken: int) -> dict[str, Any]:
        """Plain data."""
        return {"tall": [[taken - at, step, v] for at, step, v in self._tall], "most": self.most}

    def load_state_dict(self, state: dict[str, Any], taken: int) -> None:
        """Take back what `state_dict` gave."""
        self._tall = deque((taken - int(ago), int(step), v) for ago, step, v in state.get("tall", []))
        self.most = state.get("most", 0.0)


def _tall(r_loss: float, r_norm: float) -> bool:
    return r_loss > TALL and r_norm > CALM
