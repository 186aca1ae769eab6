"""Rates that recovery lowered come back whole within the run, where it trains on at the plan's as well."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from runs import OwnData, config, lines, tiny_model

from maskrcnn_coco import train
from maskrcnn_coco.model.optim import Schedule
from maskrcnn_coco.records import Action, Culprit, Incident
from maskrcnn_coco.training.session import Session

AT, STEPS = 8, 36
LOWERED = 1e-4


def lowered_at(step: int) -> Incident:
    """What is on record where the rate of the box head was lowered at ``step``, and proved to be too high."""
    action = Action("lower_lr", {"components": ["box_head"], "factor": LOWERED, "to_step": step})
    culprit = Culprit(component="box_head")
    words: dict[str, Any] = {"explain": "", "fix": "", "outcome": "recovered", "lost_steps": 0, "evidence": []}
    return Incident(
        id="0001",
        step=step,
        epoch=0,
        onset_step=step,
        symptom="diverged",
        cause="LR_TOO_HIGH",
        confidence=0.97,
        culprit=culprit,
        action=action,
        **words,
    )


@pytest.mark.parametrize(("lr", "back"), [(5e-3, True), (20.0, False)])
def test_a_lowered_rate_comes_back_whole_where_the_plan_s_own_holds(
    lr: float, back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Session] = []
    set_lr = Session.set_lr

    def after_an_incident(session: Session, step: int) -> dict[str, float]:
        seen[:] = [session]
        if step == AT and not session.incidents:
            session.incidents.append(lowered_at(step))
            session.progress.lr_factors = {"box_head": LOWERED}
        rates = set_lr(session, step)
        if lr > 1:  # the others are no part of this
            for group in session.optimizer.param_groups:
                group["lr"] *= 1.0 if group["component"] == "box_head" and step >= AT else 2e-4
        return rates

    monkeypatch.setattr(Session, "set_lr", after_an_incident)
    settings = config(None, tmp_path, lr=lr, epochs=STEPS // 3, schedule="constant", patience=None)
    train(settings, model=tiny_model(), train_data=OwnData(12), quiet=True)
    plan = Schedule(seen[0].schedule.lr, 2, STEPS, kind="constant")
    shares = [line["lr"]["box_head"] / plan.at(line["step"])["box_head"] for line in lines(tmp_path)]
    assert shares[AT + 1] == pytest.approx(LOWERED)
    assert len(seen[0].incidents) == 1, "it is safe to have it back, or it is not given back"
    if back:
        assert shares[-1] == pytest.approx(1.0) and not seen[0].progress.lr_factors
    else:
        assert max(shares[AT:]) <= 1.5 * LOWERED * 1.001
