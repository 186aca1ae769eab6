"""A loss that was above zero at every step and is far below it at the next: its sign may have been turned around.

Nothing about it is extreme for long: the run quietly learns the opposite. A recorded step, taken again, proves it.
"""

from __future__ import annotations

from maskrcnn_coco.records import Alarm, StepRecord
from maskrcnn_coco.training.session import Session

FEWEST, LOOKED = 5, 50
"""Recorded steps that a loss must have been above zero at, at least; and how many are looked at."""
AS_LARGE = 0.3
"""A loss that crosses zero by itself (a likelihood) is near it the step before: one turned around is hardly smaller."""


def turned_loss(session: Session) -> Alarm | None:
    """The alarm where a loss of the last step has another sign than ever before, and about its size; None otherwise.

    Only a doubt: what is done about it, a recorded step that is taken again has to prove.
    """
    last = session.history[-1] if session.history else None
    if last is None or not last.applied or session.ranks.world > 1 or all(v >= 0 for v in last.losses.values()):
        return None
    before = [r for r in session.history[-LOOKED - 1 : -1] if r.applied]
    turned = [k for k, v in last.losses.items() if _turned(k, v, before)]
    if len(before) < FEWEST or not turned:
        return None
    now, was = last.losses[turned[0]], before[-1].losses[turned[0]]
    text = f"step {last.step}: {turned[0]} is {now:.3g} after {was:.3g}, and was never below zero before"
    return Alarm("diverged", last.step, last.epoch, last.step, text, {"turned": turned, "losses": last.losses})


def _turned(name: str, value: float, before: list[StepRecord]) -> bool:
    known = [r.losses.get(name, -1.0) for r in before]
    return value < 0 and all(v > 0 for v in known) and bool(known) and -value > AS_LARGE * known[-1]
