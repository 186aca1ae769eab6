"""After a rate was lowered for what diverged, the next climb is believed sooner; in no other run is it."""

from __future__ import annotations

import pytest

from maskrcnn_coco.guard.divergence import PROBATION, Divergence

HEALTHY = [4.0, 3.1, 2.9, 2.4, 2.2, 2.0, 2.1, 1.9, 1.8, 1.9, 1.7, 1.8]


def refused(after: list[tuple[float, float]], *, watched: bool, calm: int = 0) -> int | None:
    """Which of ``after`` (loss, gradient norm) is refused in a run that was healthy; None: none."""
    alarm = Divergence()
    for step, loss in enumerate(HEALTHY):
        assert alarm.judge(step, loss, 2.0, {}) is None
        alarm.accept(loss, 2.0, {})
    alarm.reset()
    if watched:
        alarm.watch()
        known = alarm.state_dict()
        alarm = Divergence()
        alarm.load_state_dict(known)
    for step, (loss, norm) in enumerate([(1.8, 2.0)] * calm + after):
        if alarm.judge(50 + step, loss, norm, {}) is not None:
            return step - calm
        alarm.accept(loss, norm, {})
    return None


CLIMBS = {
    "two loud steps": ([(17.0, 90.0), (19.0, 120.0)], 1),
    "one very loud step": ([(39.0, 317.0), (1.9, 2.0)], 0),
    "a hard batch whose gradient is usual": ([(29.0, 4.0), (29.0, 4.0)], None),
    "a batch that is somewhat harder": ([(12.0, 20.0), (12.0, 20.0), (2.0, 2.0)], None),
}


@pytest.mark.parametrize("name", CLIMBS)
def test_a_climb_after_a_rate_was_lowered_is_refused_sooner_and_only_then(name: str) -> None:
    after, expected = CLIMBS[name]
    assert refused(after, watched=True) == expected
    assert refused(after, watched=True, calm=PROBATION - 4) == expected
    assert refused(after, watched=False) is None
    assert refused(after, watched=True, calm=PROBATION + 1) is None
