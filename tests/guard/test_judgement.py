"""The one judge of both ways of stepping: which fault is named where several show at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from maskrcnn_coco.errors import GuardStop
from maskrcnn_coco.guard.guard import Guard
from maskrcnn_coco.guard.judgement import Instruments, Measured
from maskrcnn_coco.guard.verdict import Verdict
from maskrcnn_coco.records import StepRecord

NAN, INF = math.nan, math.inf


def instruments(scaler: torch.amp.GradScaler | None = None) -> Instruments:
    model = nn.Linear(2, 2)
    return Guard(model, torch.optim.SGD(model.parameters(), lr=0.1), scaler=scaler, say=False).instruments


def seen(step: int = 0, loss: float = 1.0, norm: float = 1.0, **more: Any) -> Measured:
    record = StepRecord(step, 0, {"loss": loss}, loss, norm, {"all": norm}, {"all": 0.1}, None, [], True)
    return Measured(record, [norm], {"all": 0.01}, **more)


SUSPICION = Verdict("input_nonfinite", "image 3 holds NaN", suspicion=True)


@pytest.mark.parametrize(
    ("measured", "symptom"),
    [
        (seen(), None),
        (seen(loss=NAN, norm=INF, error="RuntimeError: boom"), "crash"),
        (seen(loss=NAN, norm=NAN, buffers=lambda: ["bn.running_mean"]), "loss_nonfinite"),
        (seen(loss=INF), "loss_nonfinite"),
        (seen(norm=INF, buffers=lambda: ["bn.running_mean"]), "grad_nonfinite"),
        (seen(buffers=lambda: ["bn.running_mean"]), "buffer_nonfinite"),
        (seen(states=True, norm=NAN), "optimizer_nonfinite"),
        (seen(suspicion=SUSPICION), None),
        (seen(loss=NAN, suspicion=SUSPICION), "input_nonfinite"),
        (seen(norm=NAN, suspicion=SUSPICION), "input_nonfinite"),
        (seen(buffers=lambda: ["m"], suspicion=SUSPICION), "input_nonfinite"),
        (seen(loss=NAN, without_gradient=["loss"]), None),
        (seen(loss=1e21), "diverged"),
    ],
)
def test_the_fault_that_others_hide_behind_is_named(measured: Measured, symptom: str | None):
    verdict = instruments().judge(measured)
    assert (verdict.symptom if verdict is not None else None) == symptom


def test_an_overflow_of_scaled_gradients_is_no_fault_and_a_loss_that_is_nan_is():
    parts = instruments(torch.amp.GradScaler("cpu"))
    assert parts.judge(seen(norm=INF)) is None
    verdict = parts.judge(seen(loss=NAN, norm=INF))
    assert verdict is not None and verdict.symptom == "loss_nonfinite"


def test_gradients_that_are_not_finite_are_named_first_and_counted():
    verdict = instruments().judge(seen(norm=NAN, parameters=lambda: (["0.weight", "1.weight"], 7)))
    assert verdict is not None and "2 of 7 gradients" in verdict.message and "0.weight" in verdict.message
    assert "with finite losses" in verdict.message


def test_crashes_in_a_row_end_the_run_and_a_sound_step_between_begins_the_count_anew():
    parts = instruments()
    for _ in range(parts.max_crashes - 1):
        parts.judge(seen(error="KeyError: 'boxes'"))
    assert parts.judge(seen()) is None
    for _ in range(parts.max_crashes - 1):
        parts.judge(seen(error="KeyError: 'boxes'"))
    with pytest.raises(GuardStop, match="boxes"):
        parts.judge(seen(error="KeyError: 'boxes'"))


@pytest.mark.parametrize(("lr", "fits"), [(3e-8, True), (3e-5, False)])
def test_sgd_at_a_rate_for_losses_of_millions_may_start_there(lr: float, fits: bool) -> None:
    """As measured on a detector whose losses are sums; the second rate is that of a first warm-up step."""
    given = instruments()
    given.divergence.absurd = 1e6
    given.optimizer.param_groups[0]["lr"] = lr
    for step in range(3):
        # A loop of somebody's own may have clipped the gradients before they are seen.
        for norm in (1e7, 10.0):
            found = given.judge(seen(step, loss=4.5e6, norm=norm))
            assert (found is None) == fits, found
