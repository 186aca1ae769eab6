"""Learning rates beside those of the plan: somebody sets others between two steps, and an update throws weights away.

No loss need be extreme after such a step, least of all where the batch is small: scores go back to what they were at
the start, and stay there. What is known before it is applied is that nobody planned it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from maskrcnn_coco.guard.verdict import Verdict

FOREIGN = 10.0
"""A rate this many times the plan's was set by somebody else; a schedule of one's own beside it stays below."""
THROWS, CALM = 0.5, 0.1
"""Shares of their norm that weights may move by in a step: at the rate that was set more than the first, at the plan's
less than the second. Healthy steps stay below 0.12."""
FEWEST = 5
"""Steps that are judged before the first that may be refused: a loop of somebody's may lay aside a warm-up."""


class PlannedRates:
    """Judges updates by the plan, where there is one."""

    def __init__(self) -> None:
        self.rates: Mapping[str, float] = {}
        """Component → the plan's rate at the coming step; empty: there is no plan."""
        self._seen = 0

    def judge(self, bound: Mapping[str, float], rates: Callable[[], Mapping[str, float]]) -> Verdict | None:
        """The verdict on a step whose update is not applied yet.

        Args:
            bound: component → most of ‖update‖ / ‖weights‖.
            rates: gives the learning rates that it would be taken at.
        """
        self._seen += 1
        if not self.rates or self._seen <= FEWEST or max(bound.values()) <= THROWS:
            return None
        known = ((name, self.rates.get(name, 0.0), rate) for name, rate in rates().items())
        far = {name: [planned, rate] for name, planned, rate in known if rate > FOREIGN * planned > 0}
        far = dict(sorted(far.items(), key=lambda entry: -bound.get(entry[0], 0.0)))
        worst = next(iter(far), "")
        by_plan = {name: most * far[name][0] / far[name][1] if name in far else most for name, most in bound.items()}
        # Where the plan's own update were wild too, a divergence is under way already, and is another alarm's.
        if bound.get(worst, 0.0) <= THROWS or max(by_plan.values()) >= CALM:
            return None
        planned, rate = far[worst]
        text = (
            f"the learning rate of {worst} is {rate:.3g} and the plan's {planned:.3g}: the update may be "
            f"{bound[worst]:.3g} times its weights"
        )
        return Verdict("diverged", text, {"update_bound": dict(bound), "foreign": far, "component": worst})
