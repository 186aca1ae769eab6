"""The first losses after a load: a file may be finite, whole and not what the run saved.

Two layers that changed places, a sign, a layer of zeros: nothing is extreme, and the run quietly begins to learn anew.
The losses recorded before the save tell it; older files, trained on over the same planned steps, prove it.
"""

from __future__ import annotations

import math

from maskrcnn_coco.records import Alarm
from maskrcnn_coco.training.session import Session

LOOKED = 2
"""Steps after a load whose losses are compared."""
BEFORE, FEWEST = 6, 5
"""Recorded steps before the save that they are compared with, at most and at least."""
JUMP = 2.0
"""One of them above this many times the highest before, and the others above it: a single hard batch is no doubt."""


def jump_after_load(session: Session) -> Alarm | None:
    """The alarm where the first losses after a load are above every one from before it, one by far; None otherwise.

    Only a doubt: what is done about it, an older file has to prove.
    """
    first = session.first_step
    if session.resumed_from is None or session.progress.step != first + LOOKED or session.ranks.world > 1:
        return None
    before = [abs(r.loss) for r in session.history if r.applied and r.step < first][-BEFORE:]
    since = [r for r in session.history if r.step >= first]
    if len(before) < FEWEST or len(since) != LOOKED or not all(r.applied and math.isfinite(r.loss) for r in since):
        return None
    highest, losses = max(before), [abs(r.loss) for r in since]
    if min(losses) <= highest or max(losses) <= JUMP * highest:
        return None
    last = since[-1]
    text = (
        f"the first losses after {session.resumed_from} was loaded are {', '.join(f'{r.loss:.3g}' for r in since)}; "
        f"before it was saved none was above {highest:.3g}"
    )
    measured = {"after_load": [highest, max(losses)], "losses": last.losses}
    return Alarm("diverged", last.step, last.epoch, first, text, measured)
