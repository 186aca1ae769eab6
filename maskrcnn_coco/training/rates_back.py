"""Lowered learning rates given back whole, where the run trains on at the plan's as well as at the lowered ones."""

from __future__ import annotations

from maskrcnn_coco import recovery
from maskrcnn_coco.diagnosis.rates_again import stand
from maskrcnn_coco.records import Alarm
from maskrcnn_coco.training.case import build_case
from maskrcnn_coco.training.incident import history_at
from maskrcnn_coco.training.session import Session


def give_back(session: Session, step: int) -> None:
    """Before planned step ``step``, whose state is verified: ask whether lowered rates are needed still, where due.

    What a spike brought down would else be raised by and by only, or not at all. Several processes would each take
    batches of their own, and have to agree: there it is by and by.
    """
    lowered = {c: f for c, f in session.progress.lr_factors.items() if f < 1.0}
    history = history_at(session, step)
    if not lowered or session.ranks.world > 1 or not recovery.may_ask(history, lowered, session.rates_asked):
        return
    session.rates_asked.append(step)
    if not _stand(session, step, *recovery.lowered_by(history, lowered)):
        return
    for component in lowered:
        del session.progress.lr_factors[component]
    session.guard.instruments.divergence.watch()
    names = ", ".join(lowered)
    session.console.note(
        f"step {step}: the learning rates of the plan are back ({names}): a copy of the model trains on at them"
    )


def _stand(session: Session, step: int, since: int, proved: bool) -> bool:
    """Whether a private copy does; whatever goes wrong in looking leaves the rates as they are."""
    try:
        case = build_case(session, Alarm("diverged", step, session.epoch_of(step), step, "", {}), [])
        planned = session.schedule.at(step)
        return stand(case, lambda _: planned, since, proved=proved)
    except Exception:  # odd data, odd models, memory
        return False
